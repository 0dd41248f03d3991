"""A back end of `mlx_gptoss.kernels` that runs every kernel on the bench.

backend = BenchBackend()
backend = BenchBackend(guard="fast")                       # large inputs stay where they are: for whole models
backend = BenchBackend(checked=True, schedule="random")    # every access looked at
backend = BenchBackend(strict=True)                        # type-check and lint each text first
...
backend.records[-1].result.bytes_read["weight"]            # with count_bytes=True
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import mlx.core as mx

from mlx_gptoss.kernels.backend import Size3, Template, check_launch
from mlx_gptoss.kernels.source import KernelSource
from tests.bench.check import check_kernel
from tests.bench.dtypes import to_mlx
from tests.bench.executor import THREADGROUP_LIMIT, RunResult, Schedule, run_kernel
from tests.bench.faults import ShaderCompileError
from tests.bench.memory import Side
from tests.bench.spec import KernelSpec


@dataclass(frozen=True, slots=True)
class LaunchRecord:
    """One launch: the kernel's name, its geometry, and what the bench saw."""

    kernel: str
    grid: Size3
    threadgroup: Size3
    result: RunResult


class BenchBackend:
    """Runs kernels on the CPU, eagerly.

    `guard` and `threadgroup_limit` are as in `run_kernel`. `allow_unwritten` suits kernels that leave documented parts
    of an output undefined. `launches` names the kernels launched, in order. With `keep_records` or `count_bytes` every
    launch is kept in `records` (its outputs too).
    """

    name = "bench"

    def __init__(
        self,
        *,
        family: str = "bench",
        schedule: Schedule = "forward",
        seed: int = 0,
        guard: Side | Literal["fast"] = "end",
        checked: bool = False,
        count_bytes: bool = False,
        strict: bool = False,
        allow_unwritten: bool = True,
        keep_records: bool = False,
        threadgroup_limit: int = THREADGROUP_LIMIT,
    ) -> None:
        self.family = family
        self.launches: list[str] = []
        self.records: list[LaunchRecord] = []
        self._schedule: Schedule = schedule
        self._seed = seed
        self._guard: Side | Literal["fast"] = guard
        self._checked = checked
        self._count_bytes = count_bytes
        self._strict = strict
        self._allow_unwritten = allow_unwritten
        self._keep = keep_records or count_bytes
        self._threadgroup_limit = threadgroup_limit
        self._specs: dict[str, KernelSpec] = {}

    @property
    def results(self) -> list[RunResult]:
        """What the bench saw of each kept launch."""
        return [record.result for record in self.records]

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
        """Runs one kernel. Raises ShaderCompileError and ShaderFaultError."""
        check_launch(kernel, inputs, template, grid, threadgroup, output_shapes, output_dtypes)
        spec = self._spec(kernel)
        if self._strict:
            found = check_kernel(spec, inputs, template=template, output_dtypes=output_dtypes)
            if found:
                raise ShaderCompileError(kernel.name, found)
        result = run_kernel(
            spec,
            inputs,
            template=template,
            grid=grid,
            threadgroup=threadgroup,
            output_shapes=output_shapes,
            output_dtypes=output_dtypes,
            schedule=self._schedule,
            seed=self._seed,
            count_bytes=self._count_bytes,
            checked=self._checked,
            guard=self._guard,
            allow_unwritten=self._allow_unwritten,
            threadgroup_limit=self._threadgroup_limit,
        )
        self.launches.append(kernel.name)
        if self._keep:
            self.records.append(LaunchRecord(kernel.name, grid, threadgroup, result))
        return [to_mlx(array, kind) for array, kind in zip(result.outputs, result.output_types, strict=True)]

    def _spec(self, kernel: KernelSource) -> KernelSpec:
        """The arguments that the Metal back end gives to `mx.fast.metal_kernel`."""
        if kernel.digest not in self._specs:
            includes = "".join(f"#include <{name}>\n" for name in kernel.system_includes)
            self._specs[kernel.digest] = KernelSpec(
                kernel.name,
                tuple(kernel.input_names),
                tuple(kernel.output_names),
                kernel.source,
                includes + kernel.header,
            )
        return self._specs[kernel.digest]
