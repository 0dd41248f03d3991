"""Rewrites a kernel's Metal text into CUDA: address spaces, attributes and the signature.

Most of the language is bridged by the types of metal/cuda_shim.h. What C++ cannot be taught is rewritten here, on
text whose comments are stripped already:

    device, thread                       erased (a macro would break CUDA's own `__device__`)
    constant                             `const`; tables at namespace scope become `__device__ const`
    threadgroup T name[...];             `__shared__`, 16-byte aligned, as Metal aligns it
    threadgroup T name[MEMORY / n];      `extern __shared__`, where that is more than a text may declare
    threadgroup T* and the like          erased
    [[...]]                              erased
    v.xy                                 v.xy()
    #pragma clang loop unroll(full)      #pragma unroll
    built-in arguments                   computed from threadIdx, blockIdx and blockDim
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import mlx.core as mx

from mlx_gptoss.errors import KernelError
from mlx_gptoss.kernels.backend import Template
from mlx_gptoss.kernels.source import BUILTINS, KernelSource

_TYPES: Mapping[mx.Dtype, str] = {
    mx.bool_: "bool",
    mx.int8: "int8_t",
    mx.uint8: "uchar",
    mx.int16: "short",
    mx.uint16: "ushort",
    mx.int32: "int",
    mx.uint32: "uint",
    mx.int64: "long",
    mx.uint64: "ulong",
    mx.float16: "half",
    mx.bfloat16: "bfloat",
    mx.float32: "float",
}

_VALUES: Mapping[str, str] = {
    "thread_position_in_grid": "uint3(blockIdx.x * blockDim.x + threadIdx.x, blockIdx.y * blockDim.y + threadIdx.y, "
    "blockIdx.z * blockDim.z + threadIdx.z)",
    "thread_position_in_threadgroup": "uint3(threadIdx.x, threadIdx.y, threadIdx.z)",
    "threadgroup_position_in_grid": "uint3(blockIdx.x, blockIdx.y, blockIdx.z)",
    "threadgroups_per_grid": "uint3(gridDim.x, gridDim.y, gridDim.z)",
    "threads_per_threadgroup": "uint3(blockDim.x, blockDim.y, blockDim.z)",
    "dispatch_threads_per_threadgroup": "uint3(blockDim.x, blockDim.y, blockDim.z)",
    "threads_per_grid": "uint3(gridDim.x * blockDim.x, gridDim.y * blockDim.y, gridDim.z * blockDim.z)",
    "grid_size": "uint3(gridDim.x * blockDim.x, gridDim.y * blockDim.y, gridDim.z * blockDim.z)",
    "grid_origin": "uint3(0, 0, 0)",
    "thread_index_in_threadgroup": "MSL_INDEX",
    "thread_index_in_simdgroup": "metal::msl_lane()",
    "simdgroup_index_in_threadgroup": "__shfl_sync(0xffffffffu, MSL_INDEX / 32, 0)",
    "simdgroups_per_threadgroup": "MSL_COUNT / 32",
    "dispatch_simdgroups_per_threadgroup": "MSL_COUNT / 32",
    "threads_per_simdgroup": "32",
    "thread_execution_width": "32",
    "quadgroup_index_in_threadgroup": "MSL_INDEX / 4",
    "quadgroups_per_threadgroup": "MSL_COUNT / 4",
    "dispatch_quadgroups_per_threadgroup": "MSL_COUNT / 4",
    "thread_index_in_quadgroup": "metal::msl_lane() % 4",
}

_INDEX_MACROS = (
    "#define MSL_INDEX (threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z))\n"
    "#define MSL_COUNT (blockDim.x * blockDim.y * blockDim.z)\n"
)

_ATTRIBUTE = re.compile(r"\[\[[^\[\]]*\]\]")
_UNROLL = re.compile(r"#\s*pragma\s+clang\s+loop\s+unroll\s*\(\s*(?:full|enable)\s*\)")
_UNROLL_BY = re.compile(r"#\s*pragma\s+clang\s+loop\s+unroll_count\s*\(\s*(\d+)\s*\)")
_PRAGMA = re.compile(r"#\s*pragma\s+(?:METAL|clang)\b[^\n]*")
_SWIZZLE = re.compile(r"\.(xy|zw|xz|yw|yz|yx|xyz|yzw)\b(?!\s*\()")
_TYPE = r"[A-Za-z_][\w:]*(?:\s*<[^;{}()]*?>)?"
_SHARED = re.compile(
    rf"\bthreadgroup\s+({_TYPE})\s+(\w+\s*(?:\[[^;={{}}]*\])?\s*(?:,\s*\w+\s*(?:\[[^;={{}}]*\])?\s*)*;)"
)
_MEMORY = re.compile(r"__shared__ __align__\(16\) (\w+ \w+)\s*\[\s*MEMORY[^;]*;")
_DECLARED_BYTES = 48 * 1024
"""Of threadgroup memory, as much as a text may declare; what MEMORY bytes are beyond that, the launch asks for."""
_TABLE = re.compile(r"\b(?:static\s+)?constant\s+((?:constexpr\s+|const\s+|static\s+)*)([^;(){}*&=]*?)=")
_CONST_CONSTANT = re.compile(r"\bconst\s+constant\b|\bconstant\s+const\b|\bconstant\b")
_SPACE = re.compile(r"\b(?:device|threadgroup|thread)\b(?!\s*\()")


@dataclass(frozen=True, slots=True)
class CudaText:
    """One compilable CUDA program: the text after the shim, the name of its entry, a hash of both, and the bytes of
    threadgroup memory that a launch has to ask for."""

    entry: str
    text: str
    digest: str
    memory: int = 0


def translate(
    kernel: KernelSource,
    template: Template,
    input_dtypes: Sequence[mx.Dtype],
    output_dtypes: Sequence[mx.Dtype],
    threads: int,
) -> CudaText:
    """The CUDA text of one variant of `kernel`: its template arguments, array types and threads a threadgroup.

    The text follows metal/cuda_shim.h. Raises KernelError for an array type or built-in that CUDA text cannot name.
    """
    # Without __restrict__: loads through restricted pointers are known to be of what nobody writes, and the assembler
    # moves each down to its first use. A simdgroup_barrier behind them could no longer hold a kernel's loads together.
    parameters: list[str] = []
    arguments: list[str] = []
    entry_parameters: list[str] = []
    for argument, dtype in zip(kernel.inputs, input_dtypes, strict=True):
        kind = _type_name(dtype, kernel.name)
        parameters.append(f"const {kind}* {argument.name}")
        entry_parameters.append(f"const {kind}* {argument.name}")
        arguments.append(argument.name)
    for argument, dtype in zip(kernel.outputs, output_dtypes, strict=True):
        kind = _type_name(dtype, kernel.name)
        parameters.append(f"{kind}* {argument.name}")
        entry_parameters.append(f"{kind}* {argument.name}")
        arguments.append(argument.name)
    for name in kernel.builtins:
        parameters.append(f"{BUILTINS[name]} {name}")
        arguments.append(_VALUES[name])
    body = rewrite(kernel.source)
    memory = dict(template).get("MEMORY", 0)
    if isinstance(memory, int) and memory > _DECLARED_BYTES:
        body = _MEMORY.sub(r"extern __shared__ __align__(1024) \1[];", body)
    else:
        memory = 0
    header = rewrite(kernel.header)
    head, call = "", f"{kernel.name}_body"
    if template:
        kinds = {parameter.name: parameter.kind for parameter in kernel.template}
        head = "template <" + ", ".join(f"{kinds[name]} {name}" for name, _ in template) + ">\n"
        call += "<" + ", ".join(_template_value(value, kernel.name) for _, value in template) + ">"
    program = (
        f"{_INDEX_MACROS}namespace metal {{\n{header}\n"
        f"{head}MSL_FN void {kernel.name}_body({', '.join(parameters)}) {{\n"
        f'{body}\n}}\nextern "C" __global__ void __launch_bounds__({threads}) ENTRY({", ".join(entry_parameters)}) {{\n'
        f"{call}({', '.join(arguments)});\n}}\n}}\n"
    )
    digest = hashlib.sha256(program.encode()).hexdigest()
    entry = f"{kernel.name}_{digest[:12]}"
    return CudaText(entry, f"#define ENTRY {entry}\n{program}", digest, memory)


def rewrite(text: str) -> str:
    """Metal text without comments as CUDA text: see the module's table."""
    text = _ATTRIBUTE.sub("", text)
    text = _UNROLL.sub("#pragma unroll", text)
    text = _UNROLL_BY.sub(r"#pragma unroll \1", text)
    text = _PRAGMA.sub("", text)
    text = _SWIZZLE.sub(r".\1()", text)
    text = _SHARED.sub(r"__shared__ __align__(16) \1 \2", text)
    text = _TABLE.sub(_table, text)
    text = _CONST_CONSTANT.sub("const", text)
    return _SPACE.sub("", text)


def _table(match: re.Match[str]) -> str:
    declaration = match.group(2)
    if "[" in declaration:
        return f"__device__ const {declaration}="
    return f"constexpr {declaration}="


def _type_name(dtype: mx.Dtype, where: str) -> str:
    name = _TYPES.get(dtype)
    if name is None:
        raise KernelError("arrays of this type have no CUDA text", got=str(dtype), where=where)
    return name


def _template_value(value: int | bool | mx.Dtype, where: str) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value)
    return _type_name(value, where)
