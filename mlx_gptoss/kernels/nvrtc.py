"""CUDA text to device code: NVRTC through ctypes, nvcc where NVRTC is missing.

NVRTC comes with MLX's CUDA build (the nvidia-cuda-nvrtc package) or a CUDA toolkit. Neither a GPU nor a driver is
needed to compile.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path

from mlx_gptoss.errors import KernelError

NVCC_TIMEOUT_S = 300.0
_OPTIONS = ("--std=c++17", "--device-as-default-execution-space")


def compile_cubin(text: str, architecture: str, where: str) -> bytes:
    """Device code (cubin) for `architecture` ("sm_90").

    Raises KernelError with the compiler's first errors when the text does not compile, or when no compiler is found.
    """
    library = _nvrtc()
    if library is not None:
        return _compile_nvrtc(library, text, architecture, where)
    nvcc = shutil.which("nvcc") or shutil.which("nvcc", path=os.path.join(_cuda_home(), "bin"))
    if nvcc is None:
        raise KernelError(
            "no CUDA compiler was found",
            expected="libnvrtc (pip install nvidia-cuda-nvrtc) or nvcc",
            where=where,
        )
    return _compile_nvcc(nvcc, text, architecture, where)


def compressed(cubin: bytes, architecture: str) -> bytes:
    """The same device code, a third as long, where the toolkit's `fatbinary` is at hand; else as it is.

    MLX hashes the code of every kernel in every step: 8 KB less are worth 1 to 3 us a launch.
    """
    tool = shutil.which("fatbinary") or shutil.which("fatbinary", path=os.path.join(_cuda_home(), "bin"))
    if tool is None:
        return cubin
    with tempfile.TemporaryDirectory(prefix="mlx-gptoss-fatbin-") as folder:
        source, target = Path(folder, "kernel.cubin"), Path(folder, "kernel.fatbin")
        source.write_bytes(cubin)
        image = f"--image3=kind=elf,sm={architecture.removeprefix('sm_')},file={source}"
        command = [tool, "--64", "--compress-all", "--compress-mode=size", f"--create={target}", image]
        try:
            done = subprocess.run(command, capture_output=True, timeout=NVCC_TIMEOUT_S, check=False)
            packed = target.read_bytes() if done.returncode == 0 else cubin
        except (OSError, subprocess.TimeoutExpired):
            return cubin
    return packed if len(packed) < len(cubin) else cubin


def compiler_version() -> str:
    """`nvrtc-13.0`, `nvcc` or `none`: part of the cache key, since another compiler gives other code."""
    library = _nvrtc()
    if library is None:
        return "nvcc" if shutil.which("nvcc") else "none"
    major, minor = ctypes.c_int(), ctypes.c_int()
    library.nvrtcVersion(ctypes.byref(major), ctypes.byref(minor))
    return f"nvrtc-{major.value}.{minor.value}"


@cache
def _nvrtc() -> ctypes.CDLL | None:
    for candidate in _candidates():
        try:
            beside = sorted(Path(candidate).parent.glob("libnvrtc-builtins.so.*")) if "/" in candidate else []
            for part in beside:
                ctypes.CDLL(str(part))  # NVRTC asks for it by bare name, which a wheel's folder does not answer
            library = ctypes.CDLL(candidate)
        except OSError:
            continue
        library.nvrtcGetErrorString.restype = ctypes.c_char_p
        return library
    return None


def _candidates() -> Iterator[str]:
    """Where libnvrtc may be: loaded already by MLX, in a wheel's folder, in a toolkit, on the linker's path."""
    yield from ("libnvrtc.so.13", "libnvrtc.so.12")
    for folder in sys.path:
        nvidia = Path(folder or ".", "nvidia")
        if nvidia.is_dir():
            yield from (str(path) for path in sorted(nvidia.glob("*/lib/libnvrtc.so.1[23]"), reverse=True))
    for name in ("lib64", "lib"):
        yield from (str(path) for path in sorted(Path(_cuda_home(), name).glob("libnvrtc.so*"), reverse=True))
    found = ctypes.util.find_library("nvrtc")
    if found:
        yield found


def _cuda_home() -> str:
    return os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH") or "/usr/local/cuda"


def _compile_nvrtc(library: ctypes.CDLL, text: str, architecture: str, where: str) -> bytes:
    def check(status: int, doing: str) -> None:
        if status:
            reason = library.nvrtcGetErrorString(status)
            raise KernelError(f"NVRTC failed to {doing}", got=reason.decode() if reason else str(status), where=where)

    program = ctypes.c_void_p()
    source, name = text.encode(), f"{where}.cu".encode()
    check(library.nvrtcCreateProgram(ctypes.byref(program), source, name, 0, None, None), "create a program")
    try:
        options = [f"--gpu-architecture={architecture}".encode(), *(option.encode() for option in _OPTIONS)]
        array = (ctypes.c_char_p * len(options))(*options)
        if library.nvrtcCompileProgram(program, len(options), array):
            raise KernelError("the shader does not compile for CUDA", got=_log(library, program), where=where)
        size = ctypes.c_size_t()
        check(library.nvrtcGetCUBINSize(program, ctypes.byref(size)), "measure the device code")
        code = ctypes.create_string_buffer(size.value)
        check(library.nvrtcGetCUBIN(program, code), "return the device code")
        return code.raw
    finally:
        library.nvrtcDestroyProgram(ctypes.byref(program))


def _log(library: ctypes.CDLL, program: ctypes.c_void_p) -> str:
    size = ctypes.c_size_t()
    library.nvrtcGetProgramLogSize(program, ctypes.byref(size))
    log = ctypes.create_string_buffer(size.value)
    library.nvrtcGetProgramLog(program, log)
    return _first_errors(log.value.decode(errors="replace").splitlines())


def _compile_nvcc(nvcc: str, text: str, architecture: str, where: str) -> bytes:
    with tempfile.TemporaryDirectory(prefix="mlx-gptoss-nvcc-") as folder:
        source, target = Path(folder, "kernel.cu"), Path(folder, "kernel.cubin")
        source.write_text(text, encoding="utf-8")
        flags = ["-cubin", f"-arch={architecture}", "--std=c++17", "--expt-relaxed-constexpr"]
        command = [nvcc, *flags, "-o", str(target), str(source)]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=NVCC_TIMEOUT_S, check=False)
        except (OSError, subprocess.TimeoutExpired) as problem:
            raise KernelError("nvcc could not be run", got=str(problem), where=where) from problem
        if done.returncode or not target.exists():
            raise KernelError(
                "the shader does not compile for CUDA", got=_first_errors(done.stderr.splitlines()), where=where
            )
        return target.read_bytes()


def _first_errors(lines: Sequence[str]) -> str:
    errors = [line.strip() for line in lines if "error" in line] or [line.strip() for line in lines if line.strip()]
    return " | ".join(errors[:3])
