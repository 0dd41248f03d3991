"""A request body as JSON that everything behind can handle: objects, finite numbers, real characters, bounded depth."""

from __future__ import annotations

import json
import math
import re
from typing import Any, NoReturn

from mlx_gptoss.errors import InvalidRequestError

MAX_DEPTH = 128
_SURROGATE_ESCAPE = re.compile(r"\\u[dD][89a-fA-F]")
_SURROGATE = re.compile("[\ud800-\udfff]")


def parse_object(raw: bytes) -> dict[str, Any]:
    """The JSON object in `raw`. Raises InvalidRequestError for anything else.

    `NaN`, infinities and numbers beyond double precision are refused: they could not be sent back. An escape that
    is half of a surrogate pair becomes U+FFFD.
    """
    try:
        text = raw.decode("utf-8-sig")
        value = json.loads(text, parse_constant=_no_constant, parse_float=_finite)
    except RecursionError:
        raise _too_deep() from None
    except UnicodeDecodeError as error:
        raise InvalidRequestError("the body is not UTF-8", got=error.reason) from error
    except ValueError as error:
        raise InvalidRequestError("the body is not JSON", got=str(error)[:200]) from error
    if not isinstance(value, dict):
        raise InvalidRequestError("the body is not a JSON object", got=type(value).__name__)
    if raw.count(b"{") + raw.count(b"[") > MAX_DEPTH:
        _check_depth(value)
    if _SURROGATE_ESCAPE.search(text):
        mended = _mended(value)
        return mended if isinstance(mended, dict) else {}
    return value


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"number out of range: {text[:40]}")
    return number


def _too_deep() -> InvalidRequestError:
    return InvalidRequestError("the body is nested too deeply", expected=f"at most {MAX_DEPTH} levels")


def _check_depth(value: Any) -> None:
    level = [value]
    for _ in range(MAX_DEPTH):
        level = [
            inner
            for outer in level
            for inner in (outer.values() if isinstance(outer, dict) else outer)
            if isinstance(inner, dict | list)
        ]
        if not level:
            return
    raise _too_deep()


def _mended(value: Any) -> Any:
    if isinstance(value, str):
        return _SURROGATE.sub("\ufffd", value)
    if isinstance(value, list):
        return [_mended(item) for item in value]
    if isinstance(value, dict):
        return {_mended(key): _mended(item) for key, item in value.items()}
    return value
