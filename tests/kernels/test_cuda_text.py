"""Metal text as CUDA text: the rewrites, the program, the compiler and the kept device code. No GPU is needed."""

from __future__ import annotations

from pathlib import Path

import mlx.core as mx
import pytest

from mlx_gptoss.errors import KernelError
from mlx_gptoss.kernels import cuda
from mlx_gptoss.kernels.backend import Template
from mlx_gptoss.kernels.cuda import device_code, shim_text
from mlx_gptoss.kernels.cuda_text import CudaText, rewrite, translate
from mlx_gptoss.kernels.nvrtc import compile_cubin, compiler_version, compressed
from mlx_gptoss.kernels.source import BUILTINS, load_kernel, parse_kernel

needs_compiler = pytest.mark.skipif(compiler_version() == "none", reason="neither NVRTC nor nvcc is installed")

REWRITES = [
    ("const device float* x", "const float* x"),
    ("const constant int* n", "const int* n"),
    ("constant const int& n", "const int& n"),
    ("thread float& y", "float& y"),
    ("threadgroup float* p = s;", "float* p = s;"),
    ("threadgroup float s[8 * N];", "__shared__ __align__(16) float s[8 * N];"),
    ("threadgroup uint4 a[4], b[2];", "__shared__ __align__(16) uint4 a[4], b[2];"),
    ("threadgroup vec<T, 4> v[3];", "__shared__ __align__(16) vec<T, 4> v[3];"),
    ("threadgroup atomic_uint n;", "__shared__ __align__(16) atomic_uint n;"),
    ("constant float TABLE[4] = {1, 2};", "__device__ const float TABLE[4] = {1, 2};"),
    ("constant constexpr int C = 3;", "constexpr int C = 3;"),
    ("(const device uint4*)p", "(const uint4*)p"),
    ("x [[buffer(0)]], y [[max_total]]", "x , y "),
    ("v.xy + v.zw", "v.xy() + v.zw()"),
    ("threadgroup_barrier(mem_flags::mem_device)", "threadgroup_barrier(mem_flags::mem_device)"),
    ("#pragma clang loop unroll(full)", "#pragma unroll"),
    ("a[b[0]]", "a[b[0]]"),
]


@pytest.mark.parametrize(("metal", "wanted"), REWRITES, ids=[metal for metal, _ in REWRITES])
def test_rewrites(metal: str, wanted: str) -> None:
    assert " ".join(rewrite(metal).split()) == " ".join(wanted.split())


def text_of(
    template: Template = (("T", mx.bfloat16), ("N", 64), ("TOPK", 4), ("THREADS", 32)), threads: int = 32
) -> CudaText:
    inputs = [mx.bfloat16, mx.int32, mx.float32, mx.float32]
    return translate(load_kernel("prefill_moe_sum"), template, inputs, [mx.float32], threads)


def test_a_variant_is_named_by_everything_that_changes_its_code() -> None:
    other = (("T", mx.bfloat16), ("N", 68), ("TOPK", 4), ("THREADS", 32))
    names = {text_of().entry, text_of(other).entry, text_of(threads=64).entry}
    assert len(names) == 3
    assert text_of() == text_of()
    assert text_of().entry.startswith("prefill_moe_sum_")


def test_types_that_cuda_text_cannot_name_are_refused() -> None:
    with pytest.raises(KernelError, match="no CUDA text"):
        translate(load_kernel("prefill_moe_sum"), [], [mx.complex64] * 4, [mx.float32], 32)


@pytest.mark.parametrize("size", [48 * 1024, 48 * 1024 + 16])
def test_threadgroup_memory_beyond_what_a_text_may_declare_is_asked_for(size: int) -> None:
    text = (
        "template <int MEMORY>\n"
        "[[kernel]] void large(const device uint* a [[buffer(0)]], device uint* b [[buffer(1)]]) "
        "{ threadgroup uint4 memory[MEMORY / 16]; memory[0].x = a[0]; b[0] = memory[0].x; }"
    )
    program = translate(parse_kernel("large", {"large.metal": text}), (("MEMORY", size),), [mx.uint32], [mx.uint32], 32)
    beyond = size > 48 * 1024
    assert program.memory == (size if beyond else 0)
    assert ("extern __shared__ __align__(1024) uint4 memory[];" in program.text) == beyond
    if compiler_version() != "none":
        assert compile_cubin(shim_text() + program.text, "sm_90a", program.entry).startswith(b"\x7fELF")


@needs_compiler
def test_every_built_in_argument_compiles() -> None:
    arguments = ", ".join(f"{kind} {name} [[{name}]]" for name, kind in BUILTINS.items())
    uses = " ".join(f"s += {name}{'.x' if kind == 'uint3' else ''};" for name, kind in BUILTINS.items())
    text = (
        f"[[kernel]] void all_built_ins(const device uint* a [[buffer(0)]], device uint* b [[buffer(1)]], {arguments})"
        f" {{ uint s = a[0]; {uses} b[0] = s; }}"
    )
    kernel = parse_kernel("all_built_ins", {"all_built_ins.metal": text})
    program = translate(kernel, [], [mx.uint32], [mx.uint32], 64)
    assert compile_cubin(shim_text() + program.text, "sm_90", program.entry).startswith(b"\x7fELF")


@needs_compiler
def test_an_error_names_the_kernel_and_what_the_compiler_said() -> None:
    text = (
        "[[kernel]] void broken(const device uint* a [[buffer(0)]], device uint* b [[buffer(1)]]) { b[0] = missing; }"
    )
    program = translate(parse_kernel("broken", {"broken.metal": text}), [], [mx.uint32], [mx.uint32], 32)
    with pytest.raises(KernelError, match=r"missing.*broken") as caught:
        compile_cubin(shim_text() + program.text, "sm_90", program.entry)
    assert "\n" not in str(caught.value)


@needs_compiler
def test_device_code_is_compiled_once_and_a_damaged_entry_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[str] = []

    def compile_and_count(text: str, architecture: str, where: str) -> bytes:
        compiled.append(where)
        return compile_cubin(text, architecture, where)

    monkeypatch.setattr(cuda, "compile_cubin", compile_and_count)
    code = device_code(text_of(), "sm_90", tmp_path)
    assert device_code(text_of(), "sm_90", tmp_path) == code
    assert len(compiled) == 1
    (entry,) = tmp_path.iterdir()
    for damage in (b"", entry.read_bytes()[:-1], b"\0" * 64, entry.read_bytes()[32:]):
        entry.write_bytes(damage)
        assert device_code(text_of(), "sm_90", tmp_path) == code
        assert device_code(text_of(), "sm_90", tmp_path) == code
    assert len(compiled) == 5
    device_code(text_of(), "sm_80", tmp_path)
    assert len(compiled) == 6
    assert not list(tmp_path.glob("*.part"))


@needs_compiler
def test_a_folder_that_cannot_be_written_still_gives_code(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("not a folder")
    assert device_code(text_of(), "sm_90", blocked / "deeper").startswith((b"\x7fELF", b"\x50\xed\x55\xba"))


@needs_compiler
def test_code_is_shortened_where_the_toolkit_can_and_left_alone_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    cubin = compile_cubin(shim_text() + text_of().text, "sm_90", "short")
    assert len(compressed(cubin, "sm_90")) <= len(cubin)
    monkeypatch.setenv("PATH", "")
    monkeypatch.setenv("CUDA_HOME", "/nowhere")
    assert compressed(cubin, "sm_90") == cubin


@needs_compiler
@pytest.mark.parametrize("architecture", ["sm_80", "sm_90", "sm_120"])
def test_the_shim_compiles_for_other_generations(architecture: str) -> None:
    inputs = [mx.bfloat16, mx.bfloat16, mx.bfloat16, mx.bfloat16, mx.int32]
    kernel = load_kernel("prefill_attention")
    program = translate(kernel, [("T", mx.bfloat16), ("B", mx.bfloat16), ("GROUP", 8)], inputs, [mx.bfloat16], 128)
    assert compile_cubin(shim_text() + program.text, architecture, program.entry).startswith(b"\x7fELF")


@needs_compiler
@pytest.mark.parametrize("truncated", [False, True])
def test_the_draw_compiles_at_the_released_vocabulary(truncated: bool) -> None:
    shape: Template = [("N", 201_088), ("CHUNK", 2048), ("SIMDGROUPS", 16), ("TRUNCATED", truncated)]
    inputs, outputs = [*[mx.float32] * 6, mx.int32], [mx.int32, *[mx.float32] * 3]
    program = translate(load_kernel("draw_token"), shape, inputs, outputs, 512)
    assert compile_cubin(shim_text() + program.text, "sm_90", program.entry).startswith(b"\x7fELF")
