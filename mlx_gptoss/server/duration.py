"""Durations as Ollama writes them: a number of seconds, or Go's `1h30m`, `300ms`, `-1`."""

from __future__ import annotations

import math
import re

_UNITS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_PART = re.compile(r"(\d+(?:\.\d*)?|\.\d+)(ns|us|µs|ms|s|m|h)")


def duration_seconds(value: str | float | int) -> float:
    """Seconds; negative means for ever. Raises ValueError that says what is expected."""
    if isinstance(value, bool):
        raise ValueError(f"not a duration: {value!r}")
    if isinstance(value, int | float):
        # A whole number may be beyond what a float can hold.
        if not abs(value) < 1e300:
            raise ValueError(f"not a duration: {value!r}"[:100])
        return float(value)
    text = value.strip()
    sign = -1.0 if text.startswith("-") else 1.0
    bare = text.lstrip("+-")
    if re.fullmatch(r"\d+(\.\d*)?", bare) and len(bare) < 20:
        return sign * float(bare)
    total, position = 0.0, 0
    for part in _PART.finditer(bare):
        if part.start() != position:
            break
        total += float(part[1]) * _UNITS[part[2]]
        position = part.end()
    if position != len(bare) or not bare or not math.isfinite(total):
        raise ValueError(f"not a duration: {value!r}; expected seconds or for example 5m, 1h30m, -1")
    return sign * total
