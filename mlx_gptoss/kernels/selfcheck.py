"""Which kernels this machine may use: each is compiled and compared with its twin once, at a model's shapes.

The checks run in a process of their own with a time limit a kernel, so that a kernel that hangs or takes its process
down costs that kernel and nothing else. Results are kept by back end, chip, system, MLX version, shapes and shader
text. A kernel that is off is named in one line; its twin takes over.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import platform
import queue
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import mlx.core as mx
from platformdirs import user_cache_path

from mlx_gptoss.errors import KernelError
from mlx_gptoss.kernels.backend import Backend, StockBackend
from mlx_gptoss.kernels.cases import CASES, Shapes
from mlx_gptoss.kernels.check import KernelReport, off
from mlx_gptoss.kernels.cuda import shim_text
from mlx_gptoss.kernels.source import load_kernel

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
        reports = run_checks(spec or backend.name, shapes, kernels, time_limit_s=time_limit_s, measure=measure)
        _keep(path, reports)
    for report in reports:
        if report.status == "off":
            _LOG.warning("kernel %s is off, MLX's own operations take its place: %s", report.kernel, report.reason)
    return SelfCheck(backend, tuple(reports))


def run_checks(
    spec: str, shapes: Shapes, kernels: Sequence[str], *, time_limit_s: float, measure: bool
) -> list[KernelReport]:
    """One report a kernel, in order, from as many processes as it takes."""
    found: dict[str, KernelReport] = {}
    while len(found) < len(kernels):
        waiting = [kernel for kernel in kernels if kernel not in found]
        order = {"backend": spec, "shapes": asdict(shapes), "kernels": waiting, "measure": measure}
        reports, stuck, reason = _one_process(order, time_limit_s)
        found.update((report.kernel, report) for report in reports)
        remaining = [kernel for kernel in waiting if kernel not in found]
        if remaining:
            victim = stuck if stuck in remaining else remaining[0]
            found[victim] = off(victim, reason)
    return [found[kernel] for kernel in kernels]


def _one_process(order: dict[str, Any], time_limit_s: float) -> tuple[list[KernelReport], str | None, str]:
    """What one checking process reported before it ended, the kernel it was at, and why it ended early."""
    with tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(
            [sys.executable, "-m", "mlx_gptoss.kernels.selfcheck_child"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            env=_environment(),
            text=True,
        )
        lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        reader = threading.Thread(target=_feed, args=(process, json.dumps(order), lines), daemon=True)
        reader.start()
        reports: list[KernelReport] = []
        at: str | None = None
        reason = ""
        try:
            while (line := lines.get(timeout=time_limit_s)) is not None:
                try:
                    message = json.loads(line)
                    if "start" in message:
                        at = str(message["start"])
                    elif "report" in message:
                        reports.append(KernelReport.from_dict(message["report"]))
                        at = None
                except (ValueError, TypeError, KeyError, AttributeError):
                    continue  # something else in the process wrote to standard output
        except queue.Empty:
            reason = f"no result after {time_limit_s:.0f} s"
        finally:
            process.kill()
            code = process.wait()
            reader.join()
        if not reason and len(reports) < len(order["kernels"]):
            errors.seek(0)
            tail = errors.read().decode(errors="replace").strip().splitlines()[-1:]
            ended = signal.Signals(-code).name if code < 0 else f"exit code {code}"
            reason = f"the checking process ended ({ended}) {tail[0] if tail else ''}"
        return reports, at, reason


def _environment() -> dict[str, str]:
    """This process's, with its import path, and float32 products of twins in full precision on NVIDIA GPUs too."""
    path = os.pathsep.join(entry for entry in sys.path if entry)
    return {**os.environ, "PYTHONPATH": path, "MLX_ENABLE_TF32": "0"}


def _feed(process: subprocess.Popen[str], order: str, lines: queue.SimpleQueue[str | None]) -> None:
    if process.stdin is None or process.stdout is None:
        return
    try:
        with process.stdin as pipe:
            pipe.write(order)
        with process.stdout as output:
            for line in output:
                lines.put(line)
    except (OSError, ValueError):
        pass  # the process is gone: its exit code says the rest
    finally:
        lines.put(None)


def machine_key(backend: Backend, shapes: Shapes, kernels: Sequence[str]) -> str:
    """A hash of everything that could change a check's result."""
    info = mx.device_info()
    parts = [
        backend.name,
        backend.family,
        str(info.get("device_name", "")),
        str(info.get("architecture", "")),
        platform.platform(),
        metadata.version("mlx"),
        repr(shapes),
        shim_text() if backend.name == "cuda" else "",
        *(f"{kernel} {load_kernel(kernel).digest}" for kernel in kernels),
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
