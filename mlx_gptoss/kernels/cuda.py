"""The `cuda` back end: the shaders' own text on an NVIDIA GPU, through MLX's CUDA build.

A variant (a kernel with its template arguments, array types and threadgroup) is translated and compiled once, without
MLX's own CUDA headers, which take seconds. The device code stays on disk, keyed by text, shim, architecture and
compiler; a later process loads it in a millisecond.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path

import mlx.core as mx
from platformdirs import user_cache_path

from mlx_gptoss.errors import KernelError
from mlx_gptoss.kernels.backend import Size3, Template, check_launch
from mlx_gptoss.kernels.cuda_text import CudaText, translate
from mlx_gptoss.kernels.nvrtc import compile_cubin, compiler_version, compressed
from mlx_gptoss.kernels.source import KernelSource

_MAGIC = (b"\x7fELF", b"\x50\xed\x55\xba")
"""How device code begins: a cubin, or a container of compressed ones."""
_HASH_BYTES = 32
_SHIM = ("cuda_shim.h", "cuda_shim_simd.h")
_ARCHITECTURE_SPECIFIC = {"sm_90": "sm_90a"}
"""The target with an architecture's own instructions, which no later one has: products of four simdgroups together."""

_VariantKey = tuple[object, ...]


@dataclass(frozen=True, slots=True)
class _Variant:
    entry: str
    cubin: bytes
    memory: int


class CudaBackend:
    """Launches kernels on the NVIDIA GPU. `architecture` is "sm_90" and the like."""

    name = "cuda"

    def __init__(self, architecture: str, family: str, cache_folder: Path | None = None) -> None:
        self.architecture = _ARCHITECTURE_SPECIFIC.get(architecture, architecture)
        self.family = family
        self._folder = cubin_folder() if cache_folder is None else cache_folder
        self._variants: dict[_VariantKey, _Variant] = {}

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
        key: _VariantKey = (
            kernel.digest,
            tuple(value for _, value in template),
            tuple(array.dtype for array in inputs),
            tuple(output_dtypes),
            threadgroup,
        )
        variant = self._variants.get(key)
        if variant is None:
            check_launch(kernel, inputs, template, grid, threadgroup, output_shapes, output_dtypes)
            variant = self._variants[key] = self._load(kernel, inputs, template, threadgroup, output_dtypes)
        return mx.fast.precompiled_cuda_kernel(
            name=variant.entry,
            compiled_source=variant.cubin,
            inputs=list(inputs),
            output_shapes=list(output_shapes),
            output_dtypes=list(output_dtypes),
            scalars=[],
            grid=grid,
            threadgroup=threadgroup,
            shared_memory=variant.memory,
            ensure_row_contiguous=True,
        )

    def _load(
        self,
        kernel: KernelSource,
        inputs: Sequence[mx.array],
        template: Template,
        threadgroup: Size3,
        output_dtypes: Sequence[mx.Dtype],
    ) -> _Variant:
        threads = threadgroup[0] * threadgroup[1] * threadgroup[2]
        if threads % 32:
            raise KernelError("a threadgroup is whole simdgroups", got=f"{threads} threads", where=kernel.name)
        text = translate(kernel, template, [array.dtype for array in inputs], output_dtypes, threads)
        return _Variant(text.entry, device_code(text, self.architecture, self._folder), text.memory)


def device_code(text: CudaText, architecture: str, folder: Path | None) -> bytes:
    """The device code of `text` for `architecture`, from `folder` where a sound one lies there, else compiled and kept.

    An entry is a SHA-256 followed by the code; one that is damaged is compiled anew. `folder` None keeps nothing.
    Raises KernelError when the text does not compile.
    """
    shim = shim_text()
    key = hashlib.sha256("\0".join((text.digest, shim, architecture, compiler_version())).encode()).hexdigest()
    path = None if folder is None else folder / f"{text.entry}-{key[:16]}.cubin"
    if path is not None:
        kept = _read(path)
        if kept is not None:
            return kept
    code = compressed(compile_cubin(shim + text.text, architecture, text.entry), architecture)
    if path is not None:
        _write(path, code)
    return code


def cubin_folder() -> Path:
    """Where device code is kept: `cuda/` in the user's cache folder of mlx-gptoss."""
    return user_cache_path("mlx-gptoss") / "cuda"


@cache
def shim_text() -> str:
    """metal/cuda_shim.h and cuda_shim_simd.h without comments and indentation."""
    folder = resources.files("mlx_gptoss.metal")
    text = "".join(folder.joinpath(name).read_text(encoding="utf-8") for name in _SHIM)
    lines = (line.split("//")[0].strip() for line in text.splitlines())
    return "\n".join(line for line in lines if line) + "\n"


def _read(path: Path) -> bytes | None:
    try:
        data = path.read_bytes()
    except OSError:
        return None
    code = data[_HASH_BYTES:]
    if hashlib.sha256(code).digest() != data[:_HASH_BYTES] or not code.startswith(_MAGIC):
        return None
    return code


def _write(path: Path, code: bytes) -> None:
    """Put an entry in place in one step. A cache that cannot be written is no error: the code is in memory."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=path.name, suffix=".part")
        try:
            with os.fdopen(handle, "wb") as sink:
                sink.write(hashlib.sha256(code).digest() + code)
            os.replace(name, path)
        except OSError:
            os.unlink(name)
            raise
    except OSError:
        return
