"""Checks one kernel against its twin, in this process, and times it."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import mlx.core as mx
import numpy as np

from mlx_gptoss.errors import GptOssError
from mlx_gptoss.kernels.backend import Backend, StockBackend
from mlx_gptoss.kernels.cases import HALVES, Case, build_case
from mlx_gptoss.kernels.shapes import Shapes

SHORT, LONG = 2, 10
REPEATS = 3

Status = Literal["ok", "off"]


@dataclass(frozen=True, slots=True)
class KernelReport:
    """What a check found. `reason` is empty for a kernel that is on.

    `max_error` is the largest difference from the twin as a share of the twin's largest value; `microseconds` the time
    that one call more takes among those that the device gets together; `gigabytes_per_second` the least bytes of a call
    over that time; `speedup` the time of MLX's own operations over it. None: not measured.
    """

    kernel: str
    status: Status
    reason: str = ""
    max_error: float | None = None
    microseconds: float | None = None
    gigabytes_per_second: float | None = None
    speedup: float | None = None

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @staticmethod
    def from_dict(data: dict[str, Any]) -> KernelReport:
        """Raises TypeError or ValueError when `data` is not a report."""
        report = KernelReport(**data)
        if report.status not in ("ok", "off") or not isinstance(report.kernel, str):
            raise ValueError("not a kernel report")
        return report


def off(kernel: str, reason: str, max_error: float | None = None) -> KernelReport:
    """A kernel that stays off, and why, in one line."""
    return KernelReport(kernel, "off", " ".join(reason.split())[:300], max_error)


def check_kernel(kernel: str, shapes: Shapes, backend: Backend, *, measure: bool = True) -> KernelReport:
    """Run a kernel and its twin on the same random data. Never raises for what a kernel does wrong."""
    try:
        case = build_case(kernel, shapes, backend)
        pairs = [(error, case.tolerance) for error in _errors(case.outputs, backend)]
        if case.packed is not None:
            pairs += [(error, HALVES) for error in _errors(case.packed, backend)]
    except GptOssError as problem:
        return off(kernel, str(problem))
    except (RuntimeError, ValueError, TypeError) as problem:  # what MLX raises when a kernel does not build or launch
        return off(kernel, f"{type(problem).__name__}: {problem}")
    if any(np.isnan(error) for error, _ in pairs):
        return off(kernel, "the kernel's numbers are not finite where its twin's are")
    error, most = max(pairs, key=lambda pair: (pair[0] > pair[1], pair[0]))
    if error > most:
        return off(kernel, f"the kernel disagrees with its twin by {error:.1e} (at most {most:.0e})", error)
    if not measure:
        return KernelReport(kernel, "ok", max_error=error)
    taken = _microseconds(lambda: (case.timed or case.run)(backend))
    stock = _stock_microseconds(case)
    return KernelReport(kernel, "ok", "", error, taken, case.bytes / taken / 1e3, stock / taken)


def _errors(run: Callable[[Backend], Sequence[mx.array]], backend: Backend) -> list[float]:
    got = run(backend)
    mx.eval(got)
    want = run(StockBackend())
    mx.eval(want)
    return [_error(a, b) for a, b in zip(got, want, strict=True)]


def _error(got: mx.array, want: mx.array) -> float:
    """Largest difference over largest value; NaN where the kernel alone is not finite."""
    if got.shape != want.shape:
        return float("inf")
    a, b = (np.array(array.astype(mx.float32)).astype(np.float64) for array in (got, want))
    finite = np.isfinite(b)
    if not np.array_equal(np.isfinite(a), finite) or not np.array_equal(a[~finite], b[~finite]):
        return float("nan")
    largest = float(np.abs(b[finite]).max(initial=0.0))
    return float(np.abs(a[finite] - b[finite]).max(initial=0.0)) / max(largest, 1e-6)


def _stock_microseconds(case: Case) -> float:
    stock = case.stock
    return _microseconds(lambda: case.run(StockBackend()) if stock is None else [stock()])


def _microseconds(run: Callable[[], Sequence[mx.array]]) -> float:
    def taken(count: int) -> float:
        started = time.perf_counter()
        mx.eval([list(run()) for _ in range(count)])
        took = time.perf_counter() - started
        mx.synchronize()  # MLX lets go of the arrays now, and not while the next calls are timed
        return took

    taken(SHORT)
    short, long = (min(taken(count) for _ in range(REPEATS)) for count in (SHORT, LONG))
    # A difference: what it costs once to hand work over and to wait for it is no kernel's. At worst all of it is.
    return max((long - short) / (LONG - SHORT), long / LONG / 10) * 1e6
