"""The kernel back end of this machine's GPU, for benchmarks."""

from __future__ import annotations

import mlx.core as mx

from mlx_gptoss.errors import KernelError
from mlx_gptoss.kernels.backend import Backend, MetalBackend
from mlx_gptoss.kernels.cuda import CudaBackend
from mlx_gptoss.kernels.tuning import family_of


def device_backend() -> Backend:
    """Metal on a Mac, CUDA beside an NVIDIA GPU. Raises KernelError on a machine with neither."""
    info = mx.device_info()
    family = family_of(str(info.get("device_name", "")))
    if mx.metal.is_available():
        return MetalBackend(family)
    if mx.cuda.is_available():
        major, minor = info.get("compute_capability_major", 9), info.get("compute_capability_minor", 0)
        return CudaBackend(f"sm_{major}{minor}", family)
    raise KernelError("this machine has no GPU that MLX can use")
