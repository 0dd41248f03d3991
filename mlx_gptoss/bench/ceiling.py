"""The ceilings that speeds are measured against, measured on the machine at hand."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import mlx.core as mx

from mlx_gptoss.bench.spec import Ceiling

COPY_BYTES = 1 << 30
MATMUL_SIZE = 4096
_CPU_SHRINK = 4


def measure_ceiling(*, copy_bytes: int = COPY_BYTES, size: int = MATMUL_SIZE, repeats: int = 5) -> Ceiling:
    """Copies an array of `copy_bytes` and multiplies two matrices [size, size]; the medians. CPUs get smaller ones."""
    on_cpu = mx.default_device() == mx.Device(mx.cpu)
    if on_cpu:
        copy_bytes, size = copy_bytes // _CPU_SHRINK, size // (4 * _CPU_SHRINK)
    x = mx.zeros((copy_bytes // 4,), dtype=mx.float32)
    mx.eval(x)
    copied = _seconds(lambda y: y + 1.0, x, repeats)
    dtype = mx.float32 if on_cpu else mx.bfloat16
    a = (mx.random.normal((size, size)) * size**-0.5).astype(dtype)
    mx.eval(a)
    multiplied = _seconds(lambda y: y @ a, a, repeats)
    mx.clear_cache()
    return Ceiling(copy_bytes_s=2 * x.nbytes / copied, matmul_flops=2.0 * size**3 / multiplied)


def _seconds(step: Callable[[mx.array], mx.array], start: mx.array, repeats: int) -> float:
    """Seconds of one of four dependent steps, the median of `repeats`."""
    times = []
    for attempt in range(repeats + 1):
        began = time.perf_counter()
        y = start
        for _ in range(4):
            y = step(y)
        mx.eval(y)
        if attempt:
            times.append((time.perf_counter() - began) / 4)
    return statistics.median(times)
