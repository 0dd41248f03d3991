"""`mx.fast.metal_kernel`'s interface on the bench."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import mlx.core as mx

from tests.bench.dtypes import to_mlx
from tests.bench.executor import Size3, run_kernel
from tests.bench.spec import KernelSpec, Template


def bench_metal_kernel(
    name: str,
    input_names: Sequence[str],
    output_names: Sequence[str],
    source: str,
    header: str = "",
    ensure_row_contiguous: bool = True,
    atomic_outputs: bool = False,
) -> Callable[..., list[mx.array]]:
    """A callable with the signature of `mx.fast.metal_kernel`'s result; it runs at once."""
    spec = KernelSpec(
        name, tuple(input_names), tuple(output_names), source, header, ensure_row_contiguous, atomic_outputs
    )

    def call(
        *,
        inputs: Sequence[object],
        output_shapes: Sequence[Sequence[int]],
        output_dtypes: Sequence[mx.Dtype],
        grid: Size3,
        threadgroup: Size3,
        template: Template | None = None,
        init_value: float | None = None,
        verbose: bool = False,
        stream: object = None,
    ) -> list[mx.array]:
        del verbose, stream
        result = run_kernel(
            spec,
            [mx.array(v) if isinstance(v, (bool, int, float)) else v for v in inputs],
            template=tuple(template or ()),
            grid=grid,
            threadgroup=threadgroup,
            output_shapes=output_shapes,
            output_dtypes=output_dtypes,
            init_value=init_value,
            guard="fast",
            allow_unwritten=True,
        )
        return [to_mlx(array, kind) for array, kind in zip(result.outputs, result.output_types, strict=True)]

    return call
