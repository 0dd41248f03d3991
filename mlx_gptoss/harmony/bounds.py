"""Bounds on schemas that come from outside: size, depth and JSON types, checked without recursion."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, Final

from mlx_gptoss.errors import SchemaError

MAX_DEPTH: Final = 64
"""Nesting of objects and arrays."""

MAX_VALUES: Final = 20_000
"""Objects, arrays, keys and scalars together."""

MAX_CHARACTERS: Final = 500_000
"""Characters in keys and strings together."""

MAX_BITS: Final = 1_024
"""Of an integer."""


def schema_text(schema: Mapping[str, Any]) -> str:
    """A schema within the bounds as compact JSON."""
    return json.dumps(schema, ensure_ascii=False, separators=(",", ":"), default=dict)


def check_schema_bounds(schema: Mapping[str, Any], *, param: str, where: str) -> None:
    """Raise SchemaError unless `schema` is a JSON object within the bounds above."""
    if not isinstance(schema, Mapping):
        raise SchemaError("a schema is not an object", param=param, got=type(schema).__name__, where=where)
    values = 0
    characters = 0
    pending: list[tuple[object, int]] = [(schema, 1)]
    while pending:
        value, depth = pending.pop()
        values += 1
        if depth > MAX_DEPTH:
            raise SchemaError("the schema is nested too deep", param=param, expected=f"{MAX_DEPTH} levels", where=where)
        if isinstance(value, str):
            characters += len(value)
        elif isinstance(value, Mapping):
            for key, inner in value.items():
                if not isinstance(key, str):
                    raise SchemaError("a key of the schema is not text", param=param, got=repr(key)[:80], where=where)
                characters += len(key)
                values += 1
                pending.append((inner, depth + 1))
        elif isinstance(value, Sequence) and not isinstance(value, bytes | bytearray):
            pending += [(inner, depth + 1) for inner in value]
        elif isinstance(value, float) and not math.isfinite(value):
            raise SchemaError("the schema holds a number that JSON lacks", param=param, got=str(value), where=where)
        elif isinstance(value, int) and value.bit_length() > MAX_BITS:
            raise SchemaError("a number of the schema is too large", param=param, where=where)
        elif value is not None and not isinstance(value, bool | int | float):
            raise SchemaError("the schema is not JSON", param=param, got=type(value).__name__, where=where)
        if values > MAX_VALUES or characters > MAX_CHARACTERS:
            raise SchemaError(
                "the schema is too large",
                param=param,
                expected=f"at most {MAX_VALUES} values and {MAX_CHARACTERS} characters",
                where=where,
            )
