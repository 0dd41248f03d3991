"""Which kernels of a back end a model runs, one by one."""

from __future__ import annotations

from collections.abc import Collection
from typing import TypeVar

from mlx_gptoss.errors import KernelError
from mlx_gptoss.kernels.backend import Backend, StockBackend
from mlx_gptoss.kernels.prefill_attention import ATTENTION
from mlx_gptoss.kernels.prefill_moe import DOWN, GATE_UP
from mlx_gptoss.kernels.source import kernel_names

Kernel = TypeVar("Kernel")

_NEURAL_ACCELERATORS = frozenset({"m5", "m5-pro", "m5-max", "m5-ultra"})
_MLX_IS_FASTER = frozenset({ATTENTION, GATE_UP, DOWN})
"""Matrix products of a prompt, which MLX gives to the neural accelerators of the chips above; our text cannot."""


class Switchboard:
    """`backend`'s kernels, except those that are `off` or that MLX's own operations beat on this chip.

    Raises KernelError for a name in `off` that is no kernel's.
    """

    def __init__(self, backend: Backend, off: Collection[str] = ()) -> None:
        unknown = sorted(set(off) - set(kernel_names()))
        if unknown:
            raise KernelError("there is no such kernel", got=unknown[0])
        self.backend = backend
        self.off = frozenset(off) | (_MLX_IS_FASTER if backend.family in _NEURAL_ACCELERATORS else frozenset())
        self._stock = StockBackend()

    def on(self, kernel: str) -> bool:
        """Whether a kernel runs on the back end."""
        return kernel not in self.off

    def backend_for(self, kernel: str) -> Backend:
        """The back end, or the stock one (the kernel's twin) for a kernel that is off."""
        return self._stock if kernel in self.off else self.backend

    def choose(self, kernel: str, function: Kernel, stand_in: Kernel) -> Kernel:
        """The kernel's function, or the one that stands in for it while it is off."""
        return function if self.on(kernel) else stand_in
