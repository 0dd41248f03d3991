"""MXFP4 (OCP Microscaling v1.0): 32 values of E2M1 sharing one E8M0 scale.

A block is 16 bytes, two codes a byte, the low nibble being the even element; code bit 3 is the sign. Quantising tries
the three scales that can be optimal and keeps the one with the least squared error. With m the largest magnitude and
e = floor(log2 m) - 2: at e + 2 every grid point up to m is also one at e + 1, and below e - 1 the largest value alone
loses more than the other 31 can win, so no other scale is ever better.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

import numpy as np
from numpy.typing import NDArray

from mlx_gptoss.convert.files import Bytes
from mlx_gptoss.convert.jobs import Allocate, Output, fresh, row_chunks
from mlx_gptoss.convert.tensors import Floats, Rows, to_floats

BLOCK: Final = 32
BIAS: Final = 127
MAGNITUDES: Final = np.array([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0], np.float32)
TABLE: Final = np.concatenate([MAGNITUDES, -MAGNITUDES])
_SLICE_BLOCKS: Final = 8192
_TOP: Final = 125  # 6 * 2^125 is the largest float32 of the format; one more overflows when decoded


def round_codes(scaled: Floats) -> NDArray[np.uint8]:
    """Magnitude codes 0..7 of non-negative values, to nearest, ties to the even code, saturating at 6."""
    codes = (scaled > 0.25).view(np.uint8) + (scaled >= 0.75)
    for edge, inclusive in ((1.25, False), (1.75, True), (2.5, False), (3.5, True), (5.0, False)):
        codes += (scaled >= edge) if inclusive else (scaled > edge)
    return codes


def quantise_blocks(values: Floats) -> tuple[Bytes, Bytes, float]:
    """Blocks U8 [n, 16], scales U8 [n] and the summed squared error of `values` float32 [n, 32] (finite)."""
    blocks = np.empty((len(values), BLOCK // 2), np.uint8)
    scales = np.empty(len(values), np.uint8)
    error = 0.0
    for start in range(0, len(values), _SLICE_BLOCKS):
        part = slice(start, start + _SLICE_BLOCKS)
        blocks[part], scales[part], lost = _quantise_slice(values[part])
        error += lost
    return blocks, scales, error


def _quantise_slice(values: Floats) -> tuple[Bytes, Bytes, float]:
    magnitude = np.abs(values)
    top = magnitude.max(axis=1)
    # frexp gives m = f * 2^x with f in [0.5, 1), so floor(log2 m) = x - 1.
    base = np.frexp(top)[1] - 3
    best_error = np.full(len(values), np.inf)
    best_codes = np.zeros(values.shape, np.uint8)
    best_exponent = np.zeros(len(values), np.int32)
    for shift in (0, 1, -1):
        exponent = np.clip(base + shift, -BIAS, _TOP)
        scaled = np.ldexp(magnitude, -exponent[:, None])
        codes = round_codes(scaled)
        difference = scaled - MAGNITUDES[codes]
        error = np.ldexp(np.einsum("ij,ij->i", difference, difference, dtype=np.float64), 2 * exponent)
        better = error < best_error
        best_error = np.where(better, error, best_error)
        best_exponent = np.where(better, exponent, best_exponent)
        best_codes[better] = codes[better]
    best_exponent[top == 0] = 0
    best_codes |= np.signbit(values).view(np.uint8) << np.uint8(3)
    packed = best_codes[:, 0::2] | (best_codes[:, 1::2] << np.uint8(4))
    return packed, (best_exponent + BIAS).astype(np.uint8), float(best_error.sum())


def dequantise_blocks(blocks: Bytes, scales: Bytes) -> Floats:
    """float32 [n, 32] of blocks U8 [n, 16] and scales U8 [n]."""
    codes = np.empty((len(blocks), BLOCK), np.uint8)
    codes[:, 0::2] = blocks & 0x0F
    codes[:, 1::2] = blocks >> 4
    with np.errstate(over="ignore"):
        values: Floats = np.ldexp(TABLE[codes], scales.astype(np.int32)[:, None] - BIAS)
    return values


@dataclass(slots=True)
class _Tally:
    error: float = 0.0
    power: float = 0.0


@dataclass(frozen=True, slots=True)
class QuantiseExperts:
    """Dense experts [E, N, K] into MXFP4 blocks U8 [E, N, K/32, 16] and scales U8 [E, N, K/32]."""

    tensor: Rows
    outputs: tuple[Output, ...]
    _tally: _Tally = field(default_factory=_Tally)

    @classmethod
    def of(cls, matrix: str, tensor: Rows) -> QuantiseExperts:
        experts, rows, cols = tensor.shape
        groups = (experts, rows, cols // BLOCK)
        return cls(tensor, (Output(f"{matrix}.blocks", "U8", (*groups, 16)), Output(f"{matrix}.scales", "U8", groups)))

    def produce(self, allocate: Allocate) -> Iterator[tuple[int, Bytes]]:
        for start, count in row_chunks(self.tensor):
            raw = fresh(count * self.tensor.row_bytes).reshape(count, -1)
            self.tensor.fill(start, raw)
            values = to_floats(raw, self.tensor.dtype).reshape(-1, BLOCK)
            blocks, scales, error = quantise_blocks(values)
            self._tally.error += error
            self._tally.power += float(np.einsum("ij,ij->", values, values, dtype=np.float64))
            yield 0, blocks.reshape(-1)
            yield 1, scales

    def note(self) -> str | None:
        relative = math.sqrt(self._tally.error / self._tally.power) if self._tally.power else 0.0
        name = self.outputs[0].name.removesuffix(".blocks")
        return f"{name} quantised to mxfp4: relative RMS error {relative:.5f}"


@dataclass(slots=True)
class TransposedExperts:
    """Dense experts stored [E, K, N] as rows of [E, N, K]; holds one expert at a time."""

    inner: Rows
    _expert: int = -1
    _slab: NDArray[np.uint8] | None = None

    @property
    def dtype(self) -> str:
        return self.inner.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        experts, cols, rows = self.inner.shape
        return experts, rows, cols

    @property
    def rows(self) -> int:
        return self.shape[0] * self.shape[1]

    @property
    def row_bytes(self) -> int:
        return self.shape[2] * self._item

    @property
    def _item(self) -> int:
        return self.inner.row_bytes // self.inner.shape[2]

    def fill(self, start: int, out: Bytes) -> None:
        _, rows, cols = self.shape
        kind = np.uint32 if self._item == 4 else np.uint16
        done = 0
        while done < len(out):
            expert, row = divmod(start + done, rows)
            if expert != self._expert or self._slab is None:
                self._slab = np.empty((cols, self.inner.row_bytes), np.uint8)
                self.inner.fill(expert * cols, self._slab)
                self._expert = expert
            count = min(rows - row, len(out) - done)
            out[done : done + count].view(kind)[:] = self._slab.view(kind)[:, row : row + count].T
            done += count
        if start + done == self.rows:
            self._expert, self._slab = -1, None
