"""Tuning constants that a user found for their own GPU (`mlx-gptoss bench --tune`), kept in a file of theirs.

The file is JSON: `{"version": 1, "families": {"m4-max": {"qkv": {"rows": 4, ...}, ...}}}`, the fields of Tuning. What
it does not name stays as it comes with the package.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mlx_gptoss.errors import ConfigError
from mlx_gptoss.kernels.tuning import TRIAL, TUNINGS, Attention, Rows, Tuning, own_tuning, packaged_tuning
from mlx_gptoss.registry import home_folder

VARIABLE = "MLX_GPTOSS_TUNING"
VERSION = 1
_MOST = {"rows": 16, "simdgroups": 32, "unroll": 16, "share": 32, "passes": 32, "stagers": 16}
"""What a simdgroup's registers and a threadgroup hold."""
_STAGED_BYTES = 30_720
"""Of the 32 KB of threadgroup memory that every GPU has; sums need the rest."""
OPTIONAL = (
    "qkv_alone",
    "qkv_halves",
    "out_halves",
    "gate_up_alone",
    "down_alone",
    "gate_up_several",
    "down_several",
)
"""Fields of Tuning that may be None."""
_HINT = "Delete the file, or run `mlx-gptoss bench --tune` again."


def tuning_file() -> Path:
    """$MLX_GPTOSS_TUNING, or tuning.json beside the models."""
    override = os.environ.get(VARIABLE)
    return Path(override).expanduser() if override else home_folder() / "tuning.json"


def stored_tuning(family: str) -> Tuning | None:
    """The user's constants of a family, None where there are none. Raises ConfigError for a file that is broken."""
    return _read(tuning_file()).get(family)


@contextmanager
def on_trial(family: str, tuning: Tuning) -> Iterator[None]:
    """Within, `family` has these constants (in this thread)."""
    token = TRIAL.set((family, tuning))
    try:
        yield
    finally:
        TRIAL.reset(token)


def save(family: str, tuning: Tuning) -> Path:
    """Writes a family's constants into the user's file, beside those of other families. Returns the file."""
    path = tuning_file()
    families = {name: dataclasses.asdict(known) for name, known in _read(path).items()}
    families[family] = dataclasses.asdict(tuning)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps({"version": VERSION, "families": families}, indent=1) + "\n", encoding="utf-8")
    partial.replace(path)
    own_tuning.cache_clear()
    return path


def _read(path: Path) -> Mapping[str, Tuning]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise ConfigError(
            "the tuning file cannot be read", got=str(error)[:120], where=str(path), hint=_HINT
        ) from error
    families = data.get("families") if isinstance(data, dict) else None
    if not isinstance(families, dict) or data.get("version") != VERSION:
        raise ConfigError("the tuning file is not ours", expected=f"version {VERSION}", where=str(path), hint=_HINT)
    try:
        return {family: _tuning(family, fields) for family, fields in families.items() if family in TUNINGS}
    except (TypeError, ValueError, AttributeError) as error:
        raise ConfigError("the tuning file is broken", got=str(error)[:120], where=str(path), hint=_HINT) from error


def _tuning(family: str, fields: Mapping[str, Any]) -> Tuning:
    base = packaged_tuning(family)
    changes: dict[str, Any] = {}
    for name, value in fields.items():
        before = getattr(base, name)
        if value is None and name in OPTIONAL:
            changes[name] = None
        elif name in OPTIONAL or isinstance(before, Rows | Attention):
            numbers: dict[str, Any] = {
                part: 0 if part == "stagers" and number == 0 else _positive(number, _MOST.get(part))
                for part, number in value.items()
            }
            rows = Rows(**numbers) if before is None else dataclasses.replace(before, **numbers)
            if isinstance(rows, Rows) and rows.simdgroups + rows.stagers > _MOST["simdgroups"]:
                raise ValueError(f"{rows} are too many simdgroups")
            changes[name] = rows
        elif isinstance(before, bool):
            if not isinstance(value, bool):
                raise ValueError(f"{value!r} is neither true nor false")
            changes[name] = value
        elif name == "staged_bytes":
            changes[name] = _positive(value, max(base.staged_bytes, _STAGED_BYTES))
        else:
            changes[name] = _positive(value)
    return dataclasses.replace(base, **changes)


def _positive(value: object, most: int | None = None) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{value!r} is no positive integer")
    if most is not None and value > most:
        raise ValueError(f"{value} is more than {most}")
    return value
