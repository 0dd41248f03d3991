"""What differs between GPUs in prefill is data too: see tuning.py. `benchmarks/kernels_prefill.py --tune` times the
candidates."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from mlx_gptoss.kernels.tuning import DEFAULT_FAMILY

MOST_MEMORY = 232_448
"""Bytes of threadgroup memory that one threadgroup can have on an H100."""


@dataclass(frozen=True, slots=True)
class Tile:
    """A grouped product's tile: `rows` x `columns` by `simd_rows` x `simd_columns` simdgroups.

    An expert's last tile has as many of its `parts` (1, 2 or 4) as it needs. `subnormal`: the GPU multiplies subnormal
    bfloats exactly, so that MXFP4 decodes in a few operations a pair (else through half and float). `buffers`, 3 or 4:
    four simdgroups multiply together, in far more threadgroup memory than Apple's GPUs have; `simd_rows` is a multiple
    of 4 then, 128 columns go to each of `simd_columns`, and a part has 16 rows or a multiple for each of `simd_rows`.
    """

    rows: int
    columns: int
    simd_rows: int
    simd_columns: int
    parts: int = 1
    subnormal: bool = False
    buffers: int = 0

    def memory(self, inner: int) -> int:
        """Bytes of threadgroup memory that `buffers` take in a product over `inner` values."""
        return (self.rows + self.columns) * 128 * self.buffers + self.columns * (96 + inner // 32)

    @property
    def threads(self) -> int:
        return 32 * self.simd_rows * self.simd_columns


@dataclass(frozen=True, slots=True)
class PrefillTuning:
    """All tuning constants of the prefill kernels for one GPU family. Both products share `rows` (one tile map)."""

    gate_up: Tile = field(default_factory=lambda: Tile(64, 64, 2, 2, 2))
    down: Tile = field(default_factory=lambda: Tile(64, 64, 2, 2, 2))
    sort_threads: int = 1024
    topk_simdgroups: int = 4
    rope_threads: int = 256
    sum_threads: int = 256


_APPLE = PrefillTuning()
_HOPPER = Tile(128, 256, 4, 2, 2, True, 3)

TUNINGS: Mapping[str, PrefillTuning] = {
    **{f"m{generation}{size}": _APPLE for generation in range(1, 6) for size in ("", "-pro", "-max", "-ultra")},
    "h100": PrefillTuning(gate_up=_HOPPER, down=_HOPPER),
    "bench": PrefillTuning(
        gate_up=Tile(32, 32, 1, 2, 2), down=Tile(32, 64, 2, 1), sort_threads=128, rope_threads=64, sum_threads=32
    ),
}


def prefill_tuning_for(family: str) -> PrefillTuning:
    """The constants of a family, or those of DEFAULT_FAMILY."""
    return TUNINGS.get(family, TUNINGS[DEFAULT_FAMILY])
