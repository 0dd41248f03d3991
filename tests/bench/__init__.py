"""The shader bench: type-checks and executes the Metal text that MLX would compile, on any CPU.

Run one kernel and look at everything it did:

    spec = KernelSpec(name, input_names, output_names, source, header="", atomic_outputs=False)
    result = run_kernel(spec, inputs, template=[("T", mx.bfloat16)], grid=(n, 1, 1), threadgroup=(256, 1, 1),
                        output_shapes=[(n,)], output_dtypes=[mx.float32], schedule="forward" | "reverse" | "random")
    result.outputs            list of numpy arrays, bfloat16 as uint16
    result.floats(0)          output 0 as float32, whatever its dtype
    result.bytes_read["x"]    with `count_bytes=True`: every load by name of buffer, also `unique_read`,
    result.bytes_written      `unique_written`, `loads`, `stores`

Inputs are numpy arrays, `mx.array`s (any dtype), or `Bfloat16(bits)` around a uint16 array. Every launch runs between
guard pages; a wild access, a lane that diverges at a synchronisation, a threadgroup over its memory limit, an output
element that nobody wrote and the like raise `ShaderFaultError` with the kernel, buffer, threadgroup, simdgroup, lane
and source line. `checked=True` looks at every single access: races between lanes, uninitialised threadgroup memory, the
exact bounds of every buffer and array.

Type-check the text, with the lint for what Apple's compiler rejects and clang accepts:

    for diagnostic in check_kernel(spec, inputs, template=..., output_dtypes=...): ...   # [] means clean
    for diagnostic in check_text(text): ...                                              # a whole .metal text

Drop-in for `mx.fast.metal_kernel`, eager, returning `mx.array`s:

    kernel = bench_metal_kernel(name=..., input_names=..., output_names=..., source=..., header=...)
    (out,) = kernel(inputs=[...], template=[...], grid=..., threadgroup=..., output_shapes=..., output_dtypes=...)
"""

from __future__ import annotations

from tests.bench.check import check_kernel, check_text
from tests.bench.drop_in import bench_metal_kernel
from tests.bench.dtypes import Bfloat16
from tests.bench.executor import RunResult, run_kernel
from tests.bench.faults import Diagnostic, ShaderCompileError, ShaderFaultError
from tests.bench.spec import KernelSpec

__all__ = [
    "Bfloat16",
    "Diagnostic",
    "KernelSpec",
    "RunResult",
    "ShaderCompileError",
    "ShaderFaultError",
    "bench_metal_kernel",
    "check_kernel",
    "check_text",
    "run_kernel",
]
