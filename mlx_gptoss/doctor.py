"""What `mlx-gptoss doctor` finds out: the device, its memory, versions, every kernel, and a model folder's health."""

from __future__ import annotations

import os
import platform
import subprocess
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import mlx.core as mx

from mlx_gptoss import __version__, folder, loader
from mlx_gptoss.config import ModelConfig
from mlx_gptoss.errors import GptOssError, KernelError
from mlx_gptoss.kernels.backend import Backend, StockBackend
from mlx_gptoss.kernels.backends import backend_named
from mlx_gptoss.kernels.cases import CASES
from mlx_gptoss.kernels.check import KernelReport
from mlx_gptoss.kernels.selfcheck import self_check
from mlx_gptoss.kernels.shapes import Shapes

MAX_TOTAL = 1 << 50
"""Limits at or above this many bytes are drivers' ways to say "none"."""


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes. `recommended` is what the GPU may keep resident (Metal's working-set limit), `wired_limit` the owner's own
    setting of it (`iogpu.wired_limit_mb`, 0 for the system's default). None: this platform does not say."""

    total: int | None
    free: int | None
    recommended: int | None
    wired_limit: int | None


@dataclass(frozen=True, slots=True)
class ModelHealth:
    """A model folder, checked without reading its weights: `problem` is empty when all is well."""

    path: str
    problem: str
    size_bytes: int
    layers: int
    experts: int
    precision: dict[str, str]
    source: str
    loading: str = ""
    """How weights are loaded: `wrapped` where Metal maps them where they lie, `read` elsewhere; empty on a problem."""


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """Everything `doctor` knows."""

    device: str
    architecture: str
    memory: Memory
    versions: dict[str, str]
    system: str
    backend: str
    family: str
    kernels: tuple[KernelReport, ...]
    model: ModelHealth | None

    @property
    def healthy(self) -> bool:
        """Whether no kernel is off and the model folder, if one was looked at, is sound."""
        return all(report.status == "ok" for report in self.kernels) and not (self.model and self.model.problem)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {**asdict(self), "healthy": self.healthy}


def diagnose(model: Path | None = None, *, backend: str = "auto", kernels: tuple[str, ...] = ()) -> Diagnosis:
    """Examine this machine, and the model folder `model` when given. Kernels are checked and timed anew.

    `backend`: "auto", "metal", "cuda" or "stock"; `kernels`: only these (default all). Raises KernelError when the
    machine does not have `backend` or a kernel does not exist.
    """
    chosen = backend_named(backend)
    health = None if model is None else examine_folder(model)
    info = mx.device_info()
    return Diagnosis(
        device=str(info.get("device_name", platform.processor() or "unknown")),
        architecture=str(info.get("architecture", platform.machine())),
        memory=_memory(info),
        versions=_versions(),
        system=platform.platform(),
        backend=chosen.name,
        family=chosen.family,
        kernels=_kernels(chosen, model if health is not None and not health.problem else None, kernels),
        model=health,
    )


def examine_folder(path: Path) -> ModelHealth:
    """Checks config, manifest, shapes, alignment and file headers. What is wrong becomes `problem`, never an error."""
    try:
        config = ModelConfig.from_file(path / folder.CONFIG_NAME)
        manifest = folder.read_manifest(path)
        folder.check_alignment(manifest)
        folder.check_tensors(manifest, config, str(path))
        for file in manifest.files:
            loader.check_header(path / file, [record for record in manifest.tensors if record.file == file])
    except GptOssError as error:
        return ModelHealth(str(path), str(error), 0, 0, 0, {}, "")
    except OSError as error:
        return ModelHealth(str(path), f"{error.strerror or error}", 0, 0, 0, {}, "")
    size = sum((path / file).stat().st_size for file in manifest.files)
    precision = {part: str(choice) for part, choice in manifest.precision.items()}
    loading = "wrapped" if loader.can_wrap() else "read"
    source = manifest.source.kind
    return ModelHealth(str(path), "", size, config.num_layers, config.num_experts, precision, source, loading)


def _kernels(backend: Backend, model: Path | None, kernels: tuple[str, ...]) -> tuple[KernelReport, ...]:
    for name in kernels:
        if name not in CASES:
            raise KernelError("there is no such kernel", expected=", ".join(CASES), got=name)
    if isinstance(backend, StockBackend):
        return ()
    shapes = Shapes() if model is None else Shapes.of(ModelConfig.from_file(model / folder.CONFIG_NAME))
    return self_check(backend, shapes, kernels=kernels or tuple(CASES), fresh=True, measure=True).reports


def _memory(info: dict[str, Any]) -> Memory:
    def bytes_of(*keys: str) -> int | None:
        for key in keys:
            value = info.get(key)
            if isinstance(value, int) and 0 < value < MAX_TOTAL:
                return value
        return None

    return Memory(
        total=bytes_of("memory_size", "total_memory") or _physical_memory(),
        free=bytes_of("free_memory"),
        recommended=bytes_of("max_recommended_working_set_size"),
        wired_limit=_wired_limit(),
    )


def _physical_memory() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError, AttributeError):
        return None


def _wired_limit() -> int | None:
    if platform.system() != "Darwin":
        return None
    try:
        done = subprocess.run(
            ["/usr/sbin/sysctl", "-n", "iogpu.wired_limit_mb"], capture_output=True, text=True, timeout=5, check=False
        )
        return int(done.stdout.strip()) * 2**20
    except (OSError, ValueError, subprocess.TimeoutExpired):
        return None


def _versions() -> dict[str, str]:
    versions = {"mlx-gptoss": __version__, "python": platform.python_version()}
    for name in ("mlx", "mlx-metal", "mlx-cuda-13", "mlx-cuda-12", "openai-harmony"):
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions
