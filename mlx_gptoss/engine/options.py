"""How an engine runs, and what it reports about itself."""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Integral
from pathlib import Path

from mlx_gptoss.errors import InvalidRequestError

DEFAULT_PREFIX_CACHE_BYTES = 2 << 30


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """Bounds of one engine.

    `max_batch` sequences are prefilled or decoded at once and `max_queue` more may wait. `prefill_chunk` is in
    tokens; None adapts it to the machine. `context` in tokens (None: the model's own). `prefix_cache_bytes` bounds
    the stored conversations (0: none are kept); with `spill_dir` the ones that fall out go to disk, up to
    `spill_bytes`. Snapshots for reuse lie at least `snapshot_gap` tokens apart, except at a prompt's first boundary and
    at its end.
    """

    max_batch: int = 8
    max_queue: int = 64
    prefill_chunk: int | None = None
    context: int | None = None
    prefix_cache_bytes: int = DEFAULT_PREFIX_CACHE_BYTES
    spill_dir: Path | None = None
    spill_bytes: int = 16 << 30
    snapshot_gap: int = 256

    def __post_init__(self) -> None:
        for name, low in (
            ("max_batch", 1),
            ("max_queue", 0),
            ("prefix_cache_bytes", 0),
            ("spill_bytes", 0),
            ("snapshot_gap", 1),
        ):
            value = getattr(self, name)
            if not _is_whole(value) or value < low:
                raise InvalidRequestError(f"{name} is out of range", param=name, expected=f">= {low}", got=repr(value))
        for name in ("prefill_chunk", "context"):
            value = getattr(self, name)
            if value is not None and (not _is_whole(value) or value < 1):
                raise InvalidRequestError(f"{name} is out of range", param=name, expected=">= 1", got=repr(value))


def _is_whole(value: object) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)


@dataclass(frozen=True, slots=True)
class EngineStats:
    """A moment of an engine's life. Totals count since it started; bytes are of the prefix cache."""

    active: int = 0
    queued: int = 0
    requests_total: int = 0
    prompt_tokens_total: int = 0
    cached_tokens_total: int = 0
    completion_tokens_total: int = 0
    steps_total: int = 0
    prefix_entries: int = 0
    prefix_cache_bytes: int = 0
    spilled_entries: int = 0
    spilled_bytes: int = 0
    peak_memory_bytes: int = 0
