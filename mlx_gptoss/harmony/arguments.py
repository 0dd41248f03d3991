"""A call's raw arguments as a JSON object, leniently: what models get wrong is mended, and nothing raises."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any, Final

MAX_CHARACTERS: Final = 2_000_000
"""Longer arguments are only tried as they are."""

MAX_OPEN: Final = 100
"""Deepest nesting at which a cut-off text is still completed."""

_FENCE: Final = re.compile(r"\A\s*```[A-Za-z0-9]*\s*\n?(.*?)\n?\s*```\s*\Z", re.DOTALL)
_QUOTED: Final = r'"(?:[^"\\]|\\.)*(?:"|\Z)'
_PYTHON: Final = re.compile(_QUOTED + r"|'((?:[^'\\]|\\.)*)(?:'|\Z)|\b(True|False|None)\b", re.DOTALL)
_PYTHON_NAMES: Final = {"True": "true", "False": "false", "None": "null"}
_STRINGS: Final = re.compile(_QUOTED + r"|,(?=\s*[}\]])", re.DOTALL)


def parse_arguments(raw: str) -> dict[str, Any] | None:
    """The object that `raw` means, or None when it means none.

    Beyond JSON it accepts: nothing at all (no arguments), an object inside a JSON string, code fences, words before the
    first brace, raw line breaks in strings, trailing commas, Python literals, and an object cut off before its end.
    """
    text = raw.strip()
    if not text:
        return {}
    value = _load(text)
    if isinstance(value, str) and value.strip() != text:
        value = _load(value.strip())
    if isinstance(value, dict):
        return value
    if value is not None or len(text) > MAX_CHARACTERS:
        return None
    fence = _FENCE.match(text)
    if fence:
        text = fence.group(1).strip()
    brace = text.find("{")
    if brace < 0:
        return None
    text = text[brace:]
    mends: tuple[Callable[[str], Any], ...] = (_load, _first_object, _without_trailing_commas, _from_python, _completed)
    for mend in mends:
        value = mend(text)
        if isinstance(value, dict):
            return value
    return None


def _load(text: str) -> Any | None:
    try:
        return json.loads(text, strict=False, parse_constant=_no_constant)
    except (ValueError, RecursionError):
        return None


def _no_constant(name: str) -> None:
    """NaN and Infinity are not JSON; null is the nearest value that every client can read back."""


def _first_object(text: str) -> Any | None:
    try:
        return json.JSONDecoder(strict=False, parse_constant=_no_constant).raw_decode(text)[0]
    except (ValueError, RecursionError):
        return None


def _without_trailing_commas(text: str) -> Any | None:
    return _load(_STRINGS.sub(lambda match: "" if match.group() == "," else match.group(), text))


def _from_python(text: str) -> Any | None:
    """Single-quoted strings, True, False and None, as Python writes a dict."""

    def as_json(match: re.Match[str]) -> str:
        if match.group(2):
            return _PYTHON_NAMES[match.group(2)]
        if match.group(1) is None:
            return match.group()
        return '"' + match.group(1).replace("\\'", "'").replace('"', '\\"') + '"'

    return _without_trailing_commas(_PYTHON.sub(as_json, text))


def _completed(text: str) -> Any | None:
    """Close the strings, arrays and objects that a cut-off text leaves open, dropping a half-written last member."""
    closers: list[str] = []
    members_end = 0
    open_there: tuple[str, ...] = ()
    in_string = escaped = False
    for index, char in enumerate(text):
        if in_string:
            if escaped:
                escaped = False
            elif char == "\\":
                escaped = True
            elif char == '"':
                in_string = False
        elif char == '"':
            in_string = True
        elif char in "{[":
            closers.append("}" if char == "{" else "]")
            members_end, open_there = index + 1, tuple(closers[:MAX_OPEN])
        elif char in "}]":
            if not closers or closers.pop() != char:
                return None
        elif char == ",":
            members_end, open_there = index, tuple(closers[:MAX_OPEN])
    if not 0 < len(closers) < MAX_OPEN:
        return None
    safe = text[:members_end] + "".join(reversed(open_there))
    end = "".join(reversed(closers))
    whole = text[:-1] if escaped else text
    for attempt in (whole + ('"' if in_string else "") + end, whole.rstrip().rstrip(",:") + end, safe):
        value = _load(attempt)
        if value is not None:
            return value
    return None
