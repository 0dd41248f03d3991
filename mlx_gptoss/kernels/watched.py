"""WatchedBackend: evaluates every launch by itself, so that the kernel that fails can be named."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

import mlx.core as mx

from mlx_gptoss.errors import KernelError
from mlx_gptoss.kernels.backend import Backend, Size3, Template
from mlx_gptoss.kernels.source import KernelSource

_OUT_OF_MEMORY: Final = re.compile(r"malloc|allocate\b|out ?of ?memory|insufficient memory", re.IGNORECASE)


def out_of_memory(error: Exception) -> bool:
    """Whether MLX says that there is no room, which is no kernel's fault."""
    return isinstance(error, MemoryError) or _OUT_OF_MEMORY.search(str(error)) is not None


class WatchedBackend:
    """`backend`, launch by launch: slow, and nothing is lazy.

    MLX builds and runs kernels when their results are wanted, far from where they were asked for, and its errors seldom
    say which one it was. What goes wrong before a kernel's turn is raised as it is.
    """

    name = "watched"

    def __init__(self, backend: Backend) -> None:
        self.backend = backend
        self.family = backend.family

    def launch(
        self,
        kernel: KernelSource,
        inputs: Sequence[mx.array],
        template: Template,
        grid: Size3,
        threadgroup: Size3,
        output_shapes: Sequence[tuple[int, ...]],
        output_dtypes: Sequence[mx.Dtype],
    ) -> list[mx.array]:
        """As the back end's. Raises KernelError, with the kernel's name as `where`, for whatever the kernel does."""
        mx.eval(list(inputs))
        try:
            outputs = self.backend.launch(kernel, inputs, template, grid, threadgroup, output_shapes, output_dtypes)
            mx.eval(outputs)
        except KernelError as error:
            raise KernelError(
                error.what, expected=error.expected, got=error.got, where=kernel.name, hint=error.hint
            ) from error
        except (RuntimeError, ValueError, TypeError) as error:  # what MLX raises when a kernel does not build or launch
            if out_of_memory(error):
                raise
            raise KernelError("the kernel does not run", got=str(error), where=kernel.name) from error
        return outputs
