"""The back end that the prefill tests run on: this machine's GPU where MLX has one, else the shader bench."""

from __future__ import annotations

from mlx_gptoss.kernels.backend import Backend, StockBackend
from mlx_gptoss.kernels.backends import default_backend


def device_or_bench(threadgroup_limit: int = 32768) -> Backend:
    """The bench is that of a GPU with `threadgroup_limit` bytes of threadgroup memory."""
    found = default_backend()
    if not isinstance(found, StockBackend):
        return found
    from tests.bench.backend import BenchBackend  # the GPU machine needs no host compiler

    return BenchBackend(threadgroup_limit=threadgroup_limit)
