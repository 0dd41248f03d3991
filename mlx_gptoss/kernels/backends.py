"""Which back end this machine has."""

from __future__ import annotations

import os

import mlx.core as mx

from mlx_gptoss.errors import KernelError
from mlx_gptoss.kernels.backend import Backend, MetalBackend, StockBackend
from mlx_gptoss.kernels.cuda import CudaBackend
from mlx_gptoss.kernels.tuning import family_of

_GRAPHS = {"MLX_MAX_OPS_PER_BUFFER": "60", "MLX_MAX_MB_PER_BUFFER": "1000000000"}
"""MLX's CUDA build cuts its work into graphs. A few a decode step let the GPU start on the first while the host builds
the rest; cut by bytes too, as is MLX's default, there would be dozens. It reads these when a thread first uses the GPU;
what the user has set stays."""


def default_backend() -> Backend:
    """The kernels' back end on this machine: metal, cuda, or stock where MLX has no GPU."""
    if mx.metal.is_available():
        return MetalBackend(family_of(_device("device_name")))
    if cuda_available():
        for name, value in _GRAPHS.items():
            os.environ.setdefault(name, value)
        return CudaBackend(_device("architecture"), family_of(_device("device_name")))
    return StockBackend()


def backend_named(name: str) -> Backend:
    """The back end called "auto", "metal", "cuda" or "stock". Raises KernelError when this machine does not have it."""
    if name == "stock":
        return StockBackend()
    found = default_backend()
    if name not in ("auto", found.name):
        here = " or ".join(dict.fromkeys(("auto", "stock", found.name)))
        raise KernelError("this machine does not have that back end", expected=here, got=name)
    return found


def cuda_available() -> bool:
    """Whether MLX is its CUDA build and sees a GPU."""
    return bool(mx.cuda.is_available())


def _device(key: str) -> str:
    return str(mx.device_info().get(key, ""))
