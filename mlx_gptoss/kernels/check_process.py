"""Checks kernels in a process of their own: one that hangs or crashes takes that process along and nothing else."""

from __future__ import annotations

import json
import os
import queue
import re
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mlx_gptoss.kernels.check import KernelReport, off
from mlx_gptoss.kernels.shapes import Shapes

PYTHON_VARIABLE = "MLX_GPTOSS_PYTHON"
"""Names the Python that checks kernels, for programs that are no Python themselves."""


class NoProcessError(Exception):
    """No checking process can be started here; its text says why."""


def check_in_process(
    spec: str, shapes: Shapes, kernels: Sequence[str], *, time_limit_s: float, measure: bool
) -> list[KernelReport]:
    """One report a kernel, in order, from as many processes as it takes. Raises NoProcessError when none starts."""
    python = checking_python()
    found: dict[str, KernelReport] = {}
    while len(found) < len(kernels):
        waiting = [kernel for kernel in kernels if kernel not in found]
        order = {"backend": spec, "shapes": asdict(shapes), "kernels": waiting, "measure": measure}
        outcome = _one_process(python, order, time_limit_s)
        found.update((report.kernel, report) for report in outcome.reports)
        remaining = [kernel for kernel in waiting if kernel not in found]
        if remaining and not outcome.started:
            raise NoProcessError(outcome.reason)
        if remaining:
            victim = outcome.stuck if outcome.stuck in remaining else remaining[0]
            found[victim] = off(victim, outcome.reason)
    return [found[kernel] for kernel in kernels]


def checking_python() -> str:
    """The Python to start: the one named by MLX_GPTOSS_PYTHON, else this process's own.

    A frozen or embedding program is not a Python: started again it would be a second copy of itself. Raises
    NoProcessError there.
    """
    named = os.environ.get(PYTHON_VARIABLE)
    if named:
        return named
    own = sys.executable
    if getattr(sys, "frozen", False) or not own or not re.match(r"py(thon|py)", Path(own).name, re.IGNORECASE):
        raise NoProcessError(f"this program is no Python interpreter; {PYTHON_VARIABLE} can name one")
    return own


@dataclass(frozen=True, slots=True)
class _Outcome:
    """What one process reported before it ended; the kernel it was at; why it ended early; whether it began at all."""

    reports: list[KernelReport]
    stuck: str | None
    reason: str
    started: bool


def _one_process(python: str, order: dict[str, Any], time_limit_s: float) -> _Outcome:
    with tempfile.TemporaryFile() as errors:
        try:
            process = subprocess.Popen(
                [python, "-m", "mlx_gptoss.kernels.selfcheck_child"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                env=_environment(),
                text=True,
                encoding="utf-8",
                errors="replace",
            )
        except OSError as error:
            raise NoProcessError(f"{python}: {error.strerror or error}") from error
        lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        reader = threading.Thread(target=_feed, args=(process, json.dumps(order), lines), daemon=True)
        reader.start()
        reports: list[KernelReport] = []
        at: str | None = None
        started = False
        reason = ""
        try:
            while (line := lines.get(timeout=time_limit_s)) is not None:
                try:
                    message = json.loads(line)
                    if "start" in message:
                        at, started = str(message["start"]), True
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
        return _Outcome(reports, at, reason, started)


def _feed(process: subprocess.Popen[str], order: str, lines: queue.SimpleQueue[str | None]) -> None:
    if process.stdin is None or process.stdout is None:
        return
    try:
        with process.stdin as pipe:
            pipe.write(order)
    except (OSError, ValueError):
        pass  # the process is gone: its exit code says the rest
    try:
        with process.stdout as output:
            for line in output:
                lines.put(line)
    except (OSError, ValueError):
        pass  # as above
    finally:
        lines.put(None)


def _environment() -> dict[str, str]:
    """This process's, with its import path, and float32 products of twins in full precision on NVIDIA GPUs too."""
    path = os.pathsep.join(entry for entry in sys.path if entry)
    return {**os.environ, "PYTHONPATH": path, "MLX_ENABLE_TF32": "0"}
