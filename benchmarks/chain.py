"""Times chains of dependent launches, and makes the random weights that they read."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import mlx.core as mx
import numpy as np

from mlx_gptoss.weights import Experts, Linear, LinearFormat

REPEATS = 7
FEWEST_COPIES = 6
CACHE_BYTES = 50 << 20
"""The largest cache of the GPUs that this is run on, an H100's."""


@dataclass(frozen=True, slots=True)
class Timed:
    """One line of the report. `stock_us` is MLX's own operations on the same data, `floor_us` a kernel that only reads
    as many bytes; 0 where not measured."""

    kernel: str
    shape: str
    us: float
    megabytes: float
    error: float
    stock_us: float = 0.0
    floor_us: float = 0.0

    def line(self, ceiling: float) -> str:
        rate = self.megabytes / self.us * 1e3 if self.us else 0.0
        stock = f"  stock {self.stock_us:8.1f} us" if self.stock_us else ""
        if self.floor_us:
            stock += f"  floor {self.floor_us:6.2f} us, {100 * self.floor_us / self.us:.0f}%"
        return (
            f"{self.kernel:18} {self.shape:22} {self.us:8.2f} us {self.megabytes:8.2f} MB {rate:7.0f} GB/s"
            f" {100 * rate / ceiling:5.1f}%  error {self.error:.1e}{stock}"
        )


def gpu_us(step: Callable[[int, mx.array], mx.array], start: mx.array, short: int = 40, long: int = 160) -> float:
    """Microseconds of one `step(i, x) -> x` in a dependent chain.

    The clock stops when the result is there. `mx.synchronize` comes back later, when MLX has also let go of every array
    of the chain, which takes it up to two microseconds a launch.
    """

    def run(count: int) -> float:
        x = start
        for i in range(count):
            x = step(i, x)
        mx.async_eval(x)  # type: ignore[no-untyped-call]  # MLX's stub has no types here
        began = time.perf_counter()
        mx.eval(x)
        took = time.perf_counter() - began
        mx.synchronize()
        return took

    run(4), run(short), run(long)
    slopes = [(run(long) - run(short)) / (long - short) for _ in range(REPEATS)]
    return statistics.median(slopes) * 1e6


def copies_beyond_cache(nbytes: int) -> int:
    """How many arrays of `nbytes` take turns so that none is still in a cache when its turn comes."""
    return max(FEWEST_COPIES, -(-2 * CACHE_BYTES // nbytes))


def copy_ceiling() -> float:
    """GB/s of a large copy, read and write both counted."""
    x = mx.random.uniform(shape=(1 << 28,))
    mx.eval(x)
    us = gpu_us(lambda _i, y: y + 1.0, x, 4, 12)
    return 2 * x.nbytes / us / 1e3


def error_of(got: mx.array, want: mx.array) -> float:
    """The largest error over the largest value; infinite where finiteness differs."""
    a, b = np.array(got.astype(mx.float32)), np.array(want.astype(mx.float32))
    if not np.array_equal(np.isfinite(a), np.isfinite(b)):
        return float("inf")
    finite = np.isfinite(b)
    return float(np.abs(a[finite] - b[finite]).max() / max(1e-9, np.abs(b[finite]).max()))


def random_linear(rows: int, columns: int, fmt: LinearFormat) -> Linear:
    weight = (mx.random.normal((rows, columns)) * columns**-0.5).astype(mx.bfloat16)
    bias = mx.random.normal((rows,)).astype(mx.bfloat16)
    if fmt == "bf16":
        linear = Linear(weight, bias)
    elif fmt == "mxfp8":
        packed, scales, *_ = mx.quantize(weight, group_size=32, bits=8, mode="mxfp8")
        linear = Linear(packed, bias, scales, None, "mxfp8", 32)
    else:
        packed, scales, biases = mx.quantize(weight, group_size=64, bits=int(fmt[1:]))
        linear = Linear(packed, bias, scales, biases, fmt, 64)
    mx.eval(linear.weight, linear.scales, linear.biases, linear.bias)
    return linear


def random_experts(count: int, rows: int, columns: int) -> Experts:
    blocks = mx.random.randint(0, 2**31 - 1, (count, rows, columns // 8), dtype=mx.int32).view(mx.uint32)
    scales = mx.random.randint(118, 123, (count, rows, columns // 32)).astype(mx.uint8)
    bias = mx.random.normal((count, rows)).astype(mx.bfloat16)
    mx.eval(blocks, scales, bias)
    return Experts(bias, blocks=blocks, scales=scales)


def linear_bytes(linear: Linear, rows: int | None = None) -> int:
    """Bytes of a matrix's rows that a product must read."""
    total = sum(a.nbytes for a in (linear.weight, linear.scales, linear.biases) if a is not None)
    return total if rows is None else total * rows // linear.rows


@mx.compile
def waiting(a: mx.array, x: mx.array) -> mx.array:
    """`a` in bfloat16, once x is there. In one launch: without it MLX runs products of a chain beside each other."""
    return (a + 0.0 * x.reshape(-1)[:1]).astype(mx.bfloat16)


def stock_project(x: mx.array, linear: Linear) -> mx.array:
    x = x.astype(mx.bfloat16)
    if linear.scales is None:
        return x @ linear.weight.T
    mode = "mxfp8" if linear.biases is None else "affine"
    return mx.quantized_matmul(
        x, linear.weight, linear.scales, linear.biases, group_size=linear.group_size, bits=linear.bits, mode=mode
    )
