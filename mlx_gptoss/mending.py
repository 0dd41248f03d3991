"""What to do about a kernel that passed its check and fails while a model runs: find it, switch it off, go on."""

from __future__ import annotations

import logging
import re
from collections.abc import Collection
from typing import Final, Literal

from mlx_gptoss.errors import InternalError, KernelError
from mlx_gptoss.kernels.backend import Backend
from mlx_gptoss.kernels.source import kernel_names
from mlx_gptoss.kernels.watched import WatchedBackend, out_of_memory

PROBATION: Final = 64
"""Calls of the model without trouble after which a watch or a trial is over."""
_ATTEMPTS: Final = 3
"""Watches, and trials in vain, in a model's life: damaged weights must not cost every request a second run."""
_IN_MLX_TEXT: Final = re.compile(r"custom_kernel_(\w+)")
_LOG = logging.getLogger(__name__)

Mode = Literal["ordinary", "watched", "trial"]


class Mender:
    """Decides with which kernels a model goes on after trouble.

    An error that names a kernel switches it off. One that names none has the work done again, every launch evaluated
    by itself ("watched"), which names it. Where that does not help, and for numbers that are not finite, the work is
    done without kernels ("trial"): if it succeeds they stay off, else they were not to blame and come back. `backend`
    and `off` are what to run with now.
    """

    def __init__(self, backend: Backend, off: Collection[str]) -> None:
        self._whole = backend
        self._off = frozenset(off)
        self._mode: Mode = "ordinary"
        self._reason = ""
        self._watches = 0
        self._vain = 0
        self._left = 0

    @property
    def backend(self) -> Backend:
        return WatchedBackend(self._whole) if self._mode == "watched" else self._whole

    @property
    def off(self) -> frozenset[str]:
        """Names of the kernels that do not run."""
        return frozenset(kernel_names()) if self._mode == "trial" else self._off

    def mend(self, error: Exception) -> bool:
        """After `error`: whether the same work, begun anew with `backend` and `off` as they are then, may succeed."""
        kernel = _named(error)
        numbers = isinstance(error, InternalError)
        if out_of_memory(error) or not (numbers or isinstance(error, (KernelError, RuntimeError))):
            return False
        if self._mode == "trial":
            self._mode = "ordinary"
            self._vain += 1
            return False
        if kernel is not None and kernel not in self._off:
            self._mode = "ordinary"
            self._off |= {kernel}
            _LOG.warning(
                "kernel %s failed while running and is off now, MLX's own operations take its place: %s",
                kernel,
                _line(error),
            )
            return True
        if self._vain >= _ATTEMPTS or self._off >= set(kernel_names()):
            return False
        watch = self._mode == "ordinary" and not numbers and self._watches < _ATTEMPTS
        self._mode, self._left, self._reason = "watched" if watch else "trial", PROBATION, _line(error)
        self._watches += watch
        return True

    def survived(self) -> bool:
        """After a call without trouble: whether `backend` or `off` are others from now on."""
        if self._mode == "ordinary":
            return False
        self._left -= 1
        if self._left > 0:
            return False
        tried, self._mode = self._mode, "ordinary"
        if tried == "trial":
            self._off = frozenset(kernel_names())
            _LOG.warning(
                "the kernels failed while running and are off now, MLX's own operations take their place "
                "(`mlx-gptoss doctor` looks at each): %s",
                self._reason,
            )
        return tried == "watched"


def _named(error: Exception) -> str | None:
    """The kernel that an error speaks of."""
    known = set(kernel_names())
    if isinstance(error, KernelError):
        return error.where if error.where in known else None
    # MLX adds template arguments to the name.
    said = _IN_MLX_TEXT.search(str(error))
    fitting = [name for name in known if said is not None and said[1].startswith(name)]
    return max(fitting, key=len, default=None)


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
