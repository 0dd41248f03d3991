"""Which kernels this machine may use: each is compiled and compared with its twin once, at a model's shapes.

The checks run in a process of their own with a time limit a kernel, so that a kernel that hangs or takes its process
down costs that kernel and nothing else; in an application that is no Python interpreter they run in the application.
Results are kept by back end, chip, system, MLX version, shapes and shader text. A kernel that is off is named in one
line; its twin takes over.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import platform
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import mlx.core as mx
from platformdirs import user_cache_path

from mlx_gptoss.errors import KernelError
from mlx_gptoss.kernels.backend import Backend, StockBackend
from mlx_gptoss.kernels.cases import CASES
from mlx_gptoss.kernels.check import KernelReport
from mlx_gptoss.kernels.check_here import check_here
from mlx_gptoss.kernels.check_process import NoProcessError, check_in_process
from mlx_gptoss.kernels.cuda import shim_text
from mlx_gptoss.kernels.prefill_tuning import prefill_tuning_for
from mlx_gptoss.kernels.shapes import Shapes
from mlx_gptoss.kernels.source import load_kernel, text_names
from mlx_gptoss.kernels.tuning import tuning_for

TIME_LIMIT_S = 60.0
"""For one kernel, compiling and MLX's start included."""
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class SelfCheck:
    """A machine's kernels: `backend` runs those that are on."""

    backend: Backend
    reports: tuple[KernelReport, ...]

    @property
    def disabled(self) -> frozenset[str]:
        """Names of the kernels that are off."""
        return frozenset(report.kernel for report in self.reports if report.status == "off")

    def backend_for(self, *kernels: str) -> Backend:
        """The back end, or the stock one (the twins) when any of `kernels` is off."""
        return StockBackend() if self.disabled.intersection(kernels) else self.backend


def self_check(
    backend: Backend,
    shapes: Shapes,
    *,
    kernels: Sequence[str] = tuple(CASES),
    spec: str | None = None,
    time_limit_s: float = TIME_LIMIT_S,
    fresh: bool = False,
    measure: bool = False,
    folder: Path | None = None,
) -> SelfCheck:
    """Check `kernels` on `backend`, or recall what an earlier check on this machine found.

    `spec` names the back end to the checking process (default: its name); `fresh` ignores kept results; `measure` also
    times the kernels. Every kernel that is off is logged once, as a warning. Raises KernelError
    for a name that is no kernel's, never for what a kernel does.
    """
    if isinstance(backend, StockBackend):
        return SelfCheck(backend, ())
    for kernel in kernels:
        if kernel not in CASES:
            raise KernelError("there is no such kernel", got=kernel)
    path = (cache_folder() if folder is None else folder) / f"{machine_key(backend, shapes, kernels)}.json"
    reports = None if fresh or measure else _recall(path, kernels)
    if reports is None:
        note = path.with_suffix(".checking")
        reports = run_checks(
            spec or backend.name, shapes, kernels, time_limit_s=time_limit_s, measure=measure, note=note
        )
        if not note.exists():  # else it hung, and others were not checked for that
            _keep(path, reports)
    for report in reports:
        if report.status == "off":
            _LOG.warning("kernel %s is off, MLX's own operations take its place: %s", report.kernel, report.reason)
    return SelfCheck(backend, tuple(reports))


def run_checks(
    spec: str, shapes: Shapes, kernels: Sequence[str], *, time_limit_s: float, measure: bool, note: Path
) -> list[KernelReport]:
    """One report a kernel, in order: from processes of their own, or from this one where none can be started."""
    try:
        return check_in_process(spec, shapes, kernels, time_limit_s=time_limit_s, measure=measure)
    except NoProcessError as reason:
        _LOG.info("the kernels are checked in this process: %s", reason)
        return check_here(spec, shapes, kernels, time_limit_s=time_limit_s, measure=measure, note=note)


def machine_key(backend: Backend, shapes: Shapes, kernels: Sequence[str]) -> str:
    """A hash of everything that could change a check's result."""
    info = mx.device_info()
    parts = [
        backend.name,
        backend.family,
        str(info.get("device_name", "")),
        str(info.get("architecture", "")),
        platform.platform(),
        str(getattr(mx, "__version__", "")),  # a frozen application has no package metadata
        repr(shapes),
        repr(tuning_for(backend.family)),
        repr(prefill_tuning_for(backend.family)),
        shim_text() if backend.name == "cuda" else "",
        *(f"{text} {load_kernel(text).digest}" for text in text_names() if text.partition(".")[0] in kernels),
    ]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:32]


def cache_folder() -> Path:
    """Where results are kept: `kernels/` in the user's cache folder of mlx-gptoss."""
    return user_cache_path("mlx-gptoss") / "kernels"


def _recall(path: Path, kernels: Sequence[str]) -> list[KernelReport] | None:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        reports = [KernelReport.from_dict(item) for item in data["reports"]]
    except (OSError, ValueError, TypeError, KeyError):
        return None
    return reports if [report.kernel for report in reports] == list(kernels) else None


def _keep(path: Path, reports: Sequence[KernelReport]) -> None:
    """Put results in place in one step; a cache that cannot be written only means another check next time."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, suffix=".part")
        with os.fdopen(handle, "w", encoding="utf-8") as sink:
            json.dump({"reports": [report.to_dict() for report in reports]}, sink)
        os.replace(name, path)
    except OSError:
        return
