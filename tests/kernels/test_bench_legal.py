"""Small legal Metal programs, written from the language's specification: the type check must accept every one."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest

from tests.bench import KernelSpec, ShaderCompileError, check_kernel, check_text, run_kernel
from tests.bench.spec import Template
from tests.kernels.corpus_files import programs

PROLOGUE = "#include <metal_stdlib>\n#include <metal_simdgroup>\nusing namespace metal;\n"
PROGRAMS = {header[0]: program for header, program in programs("legal")}


@pytest.mark.parametrize("name", sorted(PROGRAMS))
def test_is_accepted(name: str) -> None:
    assert [str(d) for d in check_text(PROLOGUE + PROGRAMS[name] + "\n")] == []


SPEC = KernelSpec(
    "shared",
    ["x", "scale"],
    ["y"],
    "threadgroup T part[N];\nuint i = thread_position_in_grid.x, t = thread_index_in_threadgroup;\n"
    "part[t] = x[i];\nthreadgroup_barrier(mem_flags::mem_threadgroup);\n"
    "y[i] = T(twice(float(part[N - 1 - t])) * scale[0]);",
    "METAL_FUNC float twice(float x) { return 2.0f * x; }\n",
)


def test_a_kernel_as_mlx_generates_it_is_accepted_and_runs() -> None:
    x, scale = mx.arange(64).astype(mx.bfloat16), mx.array([0.5])
    template: Template = [("T", mx.bfloat16), ("N", 32)]
    found = check_kernel(SPEC, [x, scale], template=template, output_dtypes=[mx.bfloat16], variants=("given", "device"))
    assert found == []
    result = run_kernel(
        SPEC,
        [x, scale],
        template=template,
        grid=(64, 1, 1),
        threadgroup=(32, 1, 1),
        output_shapes=[(64,)],
        output_dtypes=[mx.bfloat16],
        checked=True,
    )
    want = np.concatenate([np.arange(31, -1, -1), np.arange(63, 31, -1)])
    assert result.floats(0).tolist() == want.tolist()


def test_a_pointer_to_device_memory_fails_where_mlx_gives_constant() -> None:
    source = "const device float* p = scale; y[thread_position_in_grid.x] = p[0];"
    spec = KernelSpec("small", ["scale"], ["y"], source)
    assert check_kernel(spec, [mx.zeros((8,))], output_dtypes=[mx.float32]) == []
    found = check_kernel(spec, [mx.zeros((7,))], output_dtypes=[mx.float32])
    assert found
    assert found[0].source == source
    with pytest.raises(ShaderCompileError):
        run_kernel(
            spec,
            [mx.zeros((7,))],
            grid=(1, 1, 1),
            threadgroup=(1, 1, 1),
            output_shapes=[(1,)],
            output_dtypes=[mx.float32],
        )


def test_a_negative_template_argument_does_not_compile() -> None:
    # The number becomes part of the function's name.
    spec = KernelSpec("negative", ["x"], ["y"], "y[0] = float(N);")
    assert check_kernel(spec, [mx.zeros((8,))], template=[("N", -1)], output_dtypes=[mx.float32])
