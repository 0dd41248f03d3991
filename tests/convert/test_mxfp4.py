"""The MXFP4 quantiser against brute force and the 16-entry table."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from mlx_gptoss.convert.mxfp4 import dequantise_blocks, quantise_blocks, round_codes
from tests.tiny import FP4_VALUES, dequantize_mxfp4

BLOCKS = npst.arrays(np.float32, (3, 32), elements=st.floats(-(2.0**20), 2.0**20, width=32, allow_subnormal=False))


def brute_force(values: npt.NDArray[np.float32]) -> float:
    """Least squared error over every scale, each value going to its nearest table entry."""
    wide = values.astype(np.float64)
    best = np.inf
    for exponent in range(-40, 40):
        grid = FP4_VALUES.astype(np.float64) * 2.0**exponent
        error = np.abs(wide[:, None] - grid[None, :]).min(axis=1)
        best = min(best, float((error**2).sum()))
    return best


@settings(max_examples=60, deadline=None)
@given(BLOCKS)
def test_no_scale_is_better(values: npt.NDArray[np.float32]) -> None:
    values = np.where(np.abs(values) < 2.0**-20, 0, values).astype(np.float32)
    blocks, scales, error = quantise_blocks(values)
    least = sum(brute_force(row) for row in values)
    assert abs(error - least) <= 1e-9 * max(least, 1e-30)
    actual = dequantize_mxfp4(blocks[:, None], scales[:, None]).astype(np.float64)
    assert abs(((actual - values) ** 2).sum() - error) <= 1e-6 * max(error, 1e-30)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 252))
def test_what_is_mxfp4_already_survives_exactly(seed: int, scale: int) -> None:
    rng = np.random.default_rng(seed)
    blocks = rng.integers(0, 256, (4, 16), dtype=np.uint8)
    scales = np.full(4, scale, np.uint8)
    values = dequantise_blocks(blocks, scales)
    assert np.array_equal(values, dequantize_mxfp4(blocks[:, None], scales[:, None]))
    again = quantise_blocks(values)
    assert again[2] == 0
    assert np.array_equal(dequantise_blocks(again[0], again[1]), values)


def test_every_code_and_every_tie() -> None:
    magnitudes = FP4_VALUES[:8]
    assert round_codes(magnitudes).tolist() == list(range(8))
    middles = ((magnitudes[:-1] + magnitudes[1:]) / 2).astype(np.float32)
    assert round_codes(middles).tolist() == [0, 2, 2, 4, 4, 6, 6]
    assert round_codes(np.nextafter(middles, np.float32(0))).tolist() == list(range(7))
    assert round_codes(np.nextafter(middles, np.float32(9))).tolist() == list(range(1, 8))
    assert round_codes(np.array([7.9, 100.0], np.float32)).tolist() == [7, 7]


def test_zero_and_extreme_blocks() -> None:
    values = np.zeros((3, 32), np.float32)
    values[1, 0] = np.finfo(np.float32).max
    values[2, 5] = np.float32(2.0**-140)
    blocks, scales, _ = quantise_blocks(values)
    decoded = dequantise_blocks(blocks, scales)
    assert not decoded[0].any()
    assert (scales < 255).all()
    assert abs(decoded[1, 0] / values[1, 0] - 1) < 0.26
    assert np.isfinite(decoded).all()
