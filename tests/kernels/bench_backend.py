"""The shader bench as a back end of mlx_gptoss.kernels: the text of our kernels, executed on this CPU."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import mlx.core as mx

from mlx_gptoss.kernels.backend import Size3, Template, check_launch
from mlx_gptoss.kernels.source import KernelSource
from tests.bench import KernelSpec, RunResult, run_kernel
from tests.bench.dtypes import to_mlx
from tests.bench.executor import Schedule


@dataclass(slots=True)
class BenchBackend:
    """Runs every launch at once. `results` keeps what each launch did when `count_bytes` is set; `launches` names the
    kernels launched, in order."""

    schedule: Schedule = "forward"
    count_bytes: bool = False
    family: str = "bench"
    launches: list[str] = field(default_factory=list)
    results: list[RunResult] = field(default_factory=list)

    @property
    def name(self) -> str:
        return "bench"

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
        spec = KernelSpec(
            kernel.name, tuple(kernel.input_names), tuple(kernel.output_names), kernel.source, kernel.header
        )
        result = run_kernel(
            spec,
            list(inputs),
            template=tuple(template),
            grid=grid,
            threadgroup=threadgroup,
            output_shapes=output_shapes,
            output_dtypes=output_dtypes,
            schedule=self.schedule,
            count_bytes=self.count_bytes,
            allow_unwritten=True,
        )
        self.launches.append(kernel.name)
        if self.count_bytes:
            self.results.append(result)
        return [to_mlx(array, kind) for array, kind in zip(result.outputs, result.output_types, strict=True)]
