"""The compiler: clang from the `ziglang` wheel, and a cache of what it made, keyed by everything that went in."""

from __future__ import annotations

import contextlib
import fcntl
import functools
import hashlib
import importlib.util
import os
import platform
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from mlx_gptoss.errors import KernelError
from tests.bench.faults import Diagnostic

_HERE = Path(__file__).parent
_SHIM = _HERE / "shim"
_RUNTIME = _HERE / "runtime"
_LANGUAGE = (
    *("-x", "clcpp", "-cl-std=clc++2021", "-cl-no-stdinc"),
    *("-Xclang", "-cl-ext=+all,-cl_khr_fp64,-__opencl_c_fp64"),
    *("-ffp-contract=off", "-fPIC", "-O1", "-gline-tables-only", "-gdwarf-4"),
    *("-fno-delete-null-pointer-checks", "-fno-strict-aliasing"),
    *("-Xclang", "-ffloat16-excess-precision=none", "-Xclang", "-fbfloat16-excess-precision=none"),
    *("-Wno-unknown-attributes", "-Wno-duplicate-decl-specifier", "-Wno-unused-value"),
)
# The address sanitiser's outlined callbacks tell the runtime of every access, with its width.
_CHECKED = (
    *("-DMSL_CHECKED", "-Xclang", "-fsanitize=kernel-address", "-Xclang", "-fsanitize-recover=kernel-address"),
    *("-mllvm", "-asan-instrumentation-with-call-threshold=0", "-mllvm", "-asan-opt=0"),
    *("-mllvm", "-asan-stack=0", "-mllvm", "-asan-globals=0"),
)
_DIAGNOSTIC = re.compile(
    r"^(?P<file>[^:\n]+):(?P<line>\d+):(?P<column>\d+): (?P<level>fatal error|error|warning|note): (?P<text>.*)$"
)
TEXT_NAME = "kernel.metal"


@functools.cache
def zig() -> Path:
    """The zig binary inside the wheel."""
    spec = importlib.util.find_spec("ziglang")
    if spec is None or spec.origin is None:
        raise KernelError("the shader bench needs a compiler", hint="Run `pip install ziglang`.")
    return Path(spec.origin).parent / "zig"


def machine_flags() -> list[str]:
    """Flags for this processor: x86-64-v3 brings the half conversions and fma; arm64 has both."""
    probes = ["-fstack-clash-protection"] if sys.platform == "linux" else []
    return ["-march=x86-64-v3", *probes] if platform.machine() in ("x86_64", "AMD64") else probes


@functools.cache
def cache_folder() -> Path:
    """Where compiled kernels live: MLX_GPTOSS_BENCH_CACHE, else .cache/ in the repository."""
    chosen = os.environ.get("MLX_GPTOSS_BENCH_CACHE")
    folder = Path(chosen) if chosen else _HERE.parent.parent / ".cache" / "shader-bench"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@functools.cache
def _tool_hash() -> str:
    """Hash of the compiler's identity, the flags, the shim and the runtime."""
    digest = hashlib.sha256()
    binary = zig()
    digest.update(f"{binary.stat().st_size} {binary.stat().st_mtime_ns} {sys.platform} {platform.machine()}".encode())
    digest.update(" ".join([*_LANGUAGE, *_CHECKED, *machine_flags()]).encode())
    for path in sorted([*_SHIM.glob("*.h"), *_RUNTIME.iterdir()]):
        digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()


def key(*parts: str) -> str:
    """Cache key of a compilation."""
    return hashlib.sha256("\0".join((_tool_hash(), *parts)).encode()).hexdigest()[:40]


@functools.cache
def rules_hash() -> str:
    """Hash of the bench's own Python, for results that the lint had a part in."""
    digest = hashlib.sha256()
    for path in sorted(_HERE.glob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()


@contextlib.contextmanager
def locked(name: str) -> Iterator[None]:
    """One process at a time for this key."""
    with open(cache_folder() / f"{name}.lock", "w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def _run(arguments: Sequence[str], text: str | None = None) -> subprocess.CompletedProcess[str]:
    environment = dict(
        os.environ, ZIG_GLOBAL_CACHE_DIR=str(cache_folder() / "zig"), ZIG_LOCAL_CACHE_DIR=str(cache_folder() / "zig")
    )
    return subprocess.run(
        [str(zig()), *arguments], input=text, capture_output=True, text=True, env=environment, check=False, timeout=300
    )


def parse_diagnostics(stderr: str, text: str, levels: Sequence[str]) -> list[Diagnostic]:
    """The compiler's messages at these levels. One in a shim header is placed at the line that led there."""
    lines = text.split("\n")
    found: list[Diagnostic] = []
    pending: Diagnostic | None = None
    # Clang names the way to a header once, and not again for the next error there.
    last = (0, 0)
    for raw in stderr.splitlines():
        match = _DIAGNOSTIC.match(raw)
        if match is None:
            continue
        ours = match["file"] == TEXT_NAME
        line, column, message = int(match["line"]), int(match["column"]), match["text"]
        if match["level"] == "note":
            if pending is not None and ours:
                last = (line, column)
                found.append(Diagnostic("compiler", line, column, pending.message, _line(lines, line)))
                pending = None
            continue
        if pending is not None:
            found.append(Diagnostic("compiler", *last, pending.message, _line(lines, last[0])))
            pending = None
        if match["level"] not in levels:
            continue
        if ours:
            found.append(Diagnostic("compiler", line, column, message, _line(lines, line)))
        else:
            pending = Diagnostic("compiler", 0, 0, f"{message} ({Path(match['file']).name}:{line})")
    if pending is not None:
        found.append(Diagnostic("compiler", *last, pending.message, _line(lines, last[0])))
    return found


def _line(lines: Sequence[str], number: int) -> str:
    return lines[number - 1] if 0 < number <= len(lines) else ""


def _flags(checked: bool) -> list[str]:
    """Everything that must agree between a translation unit and the precompiled shim."""
    return [*_LANGUAGE, *machine_flags(), *(_CHECKED if checked else ()), "-fno-caret-diagnostics", "-ferror-limit=40"]


@functools.cache
def _shim(checked: bool) -> Path:
    """The shim as a precompiled header."""
    target = cache_folder() / f"shim-{key('shim', str(checked), str(_SHIM))}.pch"
    if target.exists():
        return target
    with locked(target.stem):
        if not target.exists():
            partial = target.with_suffix(f".{os.getpid()}.tmp")
            emit = [
                "-Xclang",
                "-emit-pch",
                "-Xclang",
                "-fno-pch-timestamp",
                "-c",
                str(_SHIM / "msl.h"),
                "-o",
                str(partial),
            ]
            done = _run(["clang", *_flags(checked), *emit])
            if done.returncode != 0:
                raise KernelError("the shader bench's shim does not compile", got=done.stderr[-2000:])
            os.replace(partial, target)
    return target


def syntax_check(unit: str, tree: str | None = None) -> tuple[str, str]:
    """(messages, syntax tree as JSON) of a translation unit; the tree is of the namespace `tree`, if given.

    A unit is text in the shim's dialect, the shim itself being there already.
    """
    dump = ["-Xclang", "-ast-dump=json", "-Xclang", f"-ast-dump-filter={tree}"] if tree else []
    done = _run(["clang", *_flags(False), "-include-pch", str(_shim(False)), *dump, "-fsyntax-only", "-"], unit)
    return done.stderr, done.stdout


def build_kernel(unit: str, name: str, checked: bool) -> Path | str:
    """Compiles a translation unit to a shared library. The path, or the compiler's messages when it fails."""
    target = cache_folder() / f"{name}.so"
    if target.exists():
        return target
    with locked(name):
        if target.exists():
            return target
        part = cache_folder() / f"{name}.{os.getpid()}.o"
        shim = ["-include-pch", str(_shim(checked))]
        done = _run(["clang", *_flags(checked), *shim, "-c", "-", "-o", str(part)], unit)
        if done.returncode != 0:
            return done.stderr or f"the compiler ended with status {done.returncode}"
        _link_all([part], target)
    return target


def runtime_library() -> Path:
    """The executor as a shared library."""
    name = "runtime-" + key("runtime")
    target = cache_folder() / f"{name}.so"
    if target.exists():
        return target
    with locked(name):
        if target.exists():
            return target
        parts = []
        for source in sorted(_RUNTIME.glob("*.cpp")):
            part = cache_folder() / f"{name}.{source.stem}.{os.getpid()}.o"
            flags = ["-O2", "-std=c++17", "-fPIC", "-fno-exceptions", "-fno-rtti", "-fno-sanitize=undefined"]
            done = _run(["c++", *flags, "-c", str(source), "-o", str(part)])
            if done.returncode != 0:
                raise KernelError("the shader bench's runtime does not compile", got=done.stderr[-2000:])
            parts.append(part)
        _link_all(parts, target)
    return target


def _link_all(parts: Sequence[Path], target: Path) -> None:
    partial = target.with_suffix(f".{os.getpid()}.tmp")
    names = [str(part) for part in parts]
    if sys.platform == "darwin":
        arguments = ["cc", "-shared", "-Wl,-undefined,dynamic_lookup", *names, "-o", str(partial)]
    else:
        arguments = ["ld.lld", "-shared", *names, "-o", str(partial)]
    done = _run(arguments)
    for part in parts:
        part.unlink(missing_ok=True)
    if done.returncode != 0:
        raise KernelError("the shader bench cannot link a kernel", got=done.stderr[-2000:])
    os.replace(partial, target)
