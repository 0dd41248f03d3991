"""Random data for the decode kernels, and how close they must come."""

from __future__ import annotations

import mlx.core as mx
import numpy as np

from mlx_gptoss.kernels.layout import model_params
from mlx_gptoss.weights import Experts, Linear, LinearFormat
from tests.tiny import quantize_linear

PARAMS = model_params(1e-5, 7.0, 1.702)
TOLERANCE = 2e-5
HALVES = 2e-3
"""Sums of halves (metal/halves.h)."""


def floats(rng: np.random.Generator, *shape: int, dtype: mx.Dtype = mx.float32, std: float = 1.0) -> mx.array:
    """Normal numbers."""
    return mx.array(rng.standard_normal(shape, dtype=np.float32) * std).astype(dtype)


def linear(rng: np.random.Generator, rows: int, columns: int, fmt: LinearFormat = "bf16", group: int = 32) -> Linear:
    """A random matrix with a bias in any format."""
    dtype = mx.float32 if fmt == "f32" else mx.bfloat16
    weight = floats(rng, rows, columns, dtype=dtype, std=columns**-0.5)
    plain = Linear(weight, floats(rng, rows, dtype=dtype, std=0.3), format="f32" if fmt == "f32" else "bf16")
    return plain if fmt in ("f32", "bf16") else quantize_linear(plain, fmt, group)


def experts(rng: np.random.Generator, count: int, rows: int, columns: int, *, dense: bool = False) -> Experts:
    """Random expert matrices, MXFP4 or dense bfloat16."""
    bias = floats(rng, count, rows, dtype=mx.bfloat16, std=0.3)
    if dense:
        return Experts(bias, weight=floats(rng, count, rows, columns, dtype=mx.bfloat16, std=columns**-0.5))
    blocks = rng.integers(0, 2**32, (count, rows, columns // 8), dtype=np.uint32)
    scales = rng.integers(118, 123, (count, rows, columns // 32), dtype=np.uint8)
    return Experts(bias, blocks=mx.array(blocks), scales=mx.array(scales))


def close(got: mx.array, want: mx.array, tolerance: float = TOLERANCE) -> None:
    """Asserts an error of at most `tolerance` times the largest value, and no NaN."""
    a, b = np.array(got.astype(mx.float32)), np.array(want.astype(mx.float32))
    assert a.shape == b.shape
    assert np.array_equal(np.isfinite(a), np.isfinite(b))
    finite = np.isfinite(b)
    scale = max(1e-6, float(np.abs(b[finite]).max(initial=0.0)))
    error = float(np.abs(a[finite] - b[finite]).max(initial=0.0)) / scale
    assert error <= tolerance, f"relative error {error:.2e}"
