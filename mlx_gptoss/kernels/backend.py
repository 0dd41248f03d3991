"""Where kernels run. A back end launches a kernel's text; the kernel functions above it never know which one.

MetalBackend        mx.fast.metal_kernel, on Apple Silicon
StockBackend        launches nothing: the kernel functions then run their plain-mx twins
(cuda.py)           the same text on an NVIDIA GPU
(the shader bench)  the same text on a CPU, in tests
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol, cast

import mlx.core as mx

from mlx_gptoss.errors import KernelError
from mlx_gptoss.kernels.source import KernelSource

TemplateValue = int | bool | mx.Dtype
Template = Sequence[tuple[str, TemplateValue]]
Size3 = tuple[int, int, int]
MAX_THREADS = 1024
"""Threads of a threadgroup, on every GPU."""


class Backend(Protocol):
    """Something that runs kernels.

    `name` is "metal", "cuda", "bench" or "stock". `family` is the tuning key (see tuning.py).
    """

    @property
    def name(self) -> str: ...

    @property
    def family(self) -> str: ...

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
        """Run `kernel`. `grid` counts threads, as in MLX. Raises KernelError when the text does not compile or fit."""
        ...


class StockBackend:
    """No kernels: every kernel function answers with its plain-mx twin."""

    name = "stock"
    family = "stock"

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
        raise KernelError("the stock back end launches no kernels", got=kernel.name)


class MetalBackend:
    """`mx.fast.metal_kernel`: MLX compiles the text once per process and template."""

    name = "metal"

    def __init__(self, family: str) -> None:
        self.family = family
        self._compiled: dict[str, Callable[..., list[mx.array]]] = {}

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
        check_launch(kernel, inputs, template, grid, threadgroup, output_shapes, output_dtypes)
        compiled = self._compiled.get(kernel.digest)
        if compiled is None:
            compiled = self._compiled[kernel.digest] = self._build(kernel)
        return compiled(
            inputs=list(inputs),
            template=list(template),
            grid=grid,
            threadgroup=threadgroup,
            output_shapes=list(output_shapes),
            output_dtypes=list(output_dtypes),
        )

    @staticmethod
    def _build(kernel: KernelSource) -> Callable[..., list[mx.array]]:
        includes = "".join(f"#include <{name}>\n" for name in kernel.system_includes)
        built = mx.fast.metal_kernel(
            name=kernel.name,
            input_names=kernel.input_names,
            output_names=kernel.output_names,
            source=kernel.source,
            header=includes + kernel.header,
        )
        return cast("Callable[..., list[mx.array]]", built)  # MLX types the callable as object


def check_launch(
    kernel: KernelSource,
    inputs: Sequence[mx.array],
    template: Template,
    grid: Size3,
    threadgroup: Size3,
    output_shapes: Sequence[tuple[int, ...]],
    output_dtypes: Sequence[mx.Dtype],
) -> None:
    """What every back end checks before it launches. Raises KernelError."""
    if len(inputs) != len(kernel.inputs):
        raise KernelError(
            "wrong number of inputs", expected=str(len(kernel.inputs)), got=str(len(inputs)), where=kernel.name
        )
    if len(output_shapes) != len(kernel.outputs) or len(output_dtypes) != len(kernel.outputs):
        raise KernelError("wrong number of outputs", expected=str(len(kernel.outputs)), where=kernel.name)
    if [name for name, _ in template] != [parameter.name for parameter in kernel.template]:
        expected = ", ".join(parameter.name for parameter in kernel.template)
        got = ", ".join(name for name, _ in template)
        raise KernelError("wrong template arguments", expected=expected, got=got, where=kernel.name)
    for argument, array in zip(kernel.inputs, inputs, strict=True):
        if array.size < 8:
            # MLX passes smaller arrays in another address space (and CUDA from a slow pool).
            raise KernelError(
                "an input has fewer than 8 elements", got=f"{argument.name} {tuple(array.shape)}", where=kernel.name
            )
    threads = threadgroup[0] * threadgroup[1] * threadgroup[2]
    if threads > MAX_THREADS:
        raise KernelError(
            "a threadgroup has too many threads", expected=f"at most {MAX_THREADS}", got=str(threads), where=kernel.name
        )
    for size, group in zip(grid, threadgroup, strict=True):
        if group < 1 or size < 1 or size % group:
            raise KernelError(
                "the grid is not whole threadgroups", got=f"grid {grid}, threadgroup {threadgroup}", where=kernel.name
            )
