"""Checks kernels in this process, where no other can be started: in an application that is no Python interpreter.

A kernel that crashes takes the program along, once: a note beside the results names the kernel that is being checked,
and the next start leaves that one off.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path

from mlx_gptoss.kernels.check import KernelReport, check_kernel, off
from mlx_gptoss.kernels.selfcheck_child import backend_from
from mlx_gptoss.kernels.shapes import Shapes
from mlx_gptoss.liveness import alive

_CRASHED = "the program ended while the kernel was being checked"


def check_here(
    spec: str, shapes: Shapes, kernels: Sequence[str], *, time_limit_s: float, measure: bool, note: Path
) -> list[KernelReport]:
    """One report a kernel, in order. `note` is the file that outlives a crash; it goes once all are checked.

    A kernel that gives no result in `time_limit_s` is off, and so are those after it, until the next start: the device
    is busy with it, and a thread cannot be ended from outside.
    """
    crashed = _read(note)
    found: list[KernelReport] = []
    for at, kernel in enumerate(kernels):
        if kernel in crashed:
            found.append(off(kernel, _CRASHED))
            continue
        _write(note, [*crashed, kernel])
        report = _within(time_limit_s, partial(_checked, kernel, spec, shapes, measure))
        if report is None:
            found.append(off(kernel, f"no result after {time_limit_s:.0f} s"))
            found += [off(later, f"not checked, since {kernel} hangs") for later in kernels[at + 1 :]]
            return found
        found.append(report)
    # Those that crashed an earlier start are in the results now.
    with suppress(OSError):
        note.unlink()
    return found


def _checked(kernel: str, spec: str, shapes: Shapes, measure: bool) -> KernelReport:
    try:
        return check_kernel(kernel, shapes, backend_from(spec), measure=measure)
    except Exception as error:  # as the checking process would end
        return off(kernel, f"{type(error).__name__}: {error}")


def _within(seconds: float, work: Callable[[], KernelReport]) -> KernelReport | None:
    """The result of `work`, done on another thread; None when it takes longer."""
    results: list[KernelReport] = []
    thread = threading.Thread(target=lambda: results.append(work()), name="mlx-gptoss-check", daemon=True)
    thread.start()
    thread.join(seconds)
    return results[0] if results else None


def _read(note: Path) -> list[str]:
    """The kernels during whose check a program ended. A note of a program that is still at it says nothing."""
    try:
        written = json.loads(note.read_text(encoding="utf-8"))
        # With our own id it is of an earlier process.
        running = int(written["process"]) != os.getpid() and alive(int(written["process"]))
        return [] if running else [str(kernel) for kernel in written["kernels"]]
    except (OSError, ValueError, TypeError, KeyError):
        return []


def _write(note: Path, kernels: Sequence[str]) -> None:
    try:
        note.parent.mkdir(parents=True, exist_ok=True)
        note.write_text(json.dumps({"process": os.getpid(), "kernels": kernels}), encoding="utf-8")
    except OSError:
        return  # then a crash is met again at the next start
