"""A back end whose kernels pass their check and fail later, in the ways that devices fail."""

from __future__ import annotations

from collections.abc import Sequence

import mlx.core as mx

from mlx_gptoss.errors import KernelError
from mlx_gptoss.kernels.backend import Size3, Template
from mlx_gptoss.kernels.source import KernelSource
from tests.bench.backend import BenchBackend


class FailingBackend:
    """The bench, until `victim` has been launched `after` times. Then it does `fault`, always or `times` times."""

    name = "bench"
    family = "bench"

    def __init__(self, fault: str, victim: str, after: int = 0, times: int | None = None) -> None:
        self.fault = fault
        self.victim = victim
        self.after = after
        self.times = times
        self.failed = 0
        self.bench = BenchBackend(guard="fast")

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
        outputs = self.bench.launch(kernel, inputs, template, grid, threadgroup, output_shapes, output_dtypes)
        if kernel.name != self.victim or self.bench.launches.count(kernel.name) <= self.after:
            return outputs
        if self.times is not None and self.failed >= self.times:
            return outputs
        self.failed += 1
        if self.fault == "named":
            raise KernelError("the text does not compile", got="undeclared", where=kernel.name)
        if self.fault == "mlx_names_it":
            raise RuntimeError(f"[metal::Device] Unable to load function custom_kernel_{kernel.name}_float_8_2")
        if self.fault == "nameless":
            raise RuntimeError("[metal::Device] Unable to build metal library from source")
        if self.fault == "no_memory":
            raise RuntimeError("[metal::malloc] Attempting to allocate 99999999999 bytes which is too much")
        return [mx.full(outputs[0].shape, mx.nan, dtype=outputs[0].dtype), *outputs[1:]]
