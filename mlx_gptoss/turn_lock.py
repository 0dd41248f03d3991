"""A lock between processes: whoever comes second waits, says so in one line, and goes on when the first is done."""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from mlx_gptoss.errors import GptOssError

WAIT_S: Final = 1800.0
"""A conversion of gpt-oss-120b from a slow disk ends within this."""
_POLL_S: Final = 0.1
_TAKEN: Final = {errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES}
_LOG = logging.getLogger(__name__)


@contextmanager
def turn_lock(
    path: Path, doing: str, *, wait_s: float = WAIT_S, waiting: Callable[[], None] | None = None
) -> Iterator[None]:
    """Holds the lock file `path` (made when missing, never deleted: others may be waiting on it).

    `doing` completes "another process is ...". `waiting` is called while another has it, and may raise to give up. The
    lock goes with its process, however that ends. Raises GptOssError when it cannot be had within `wait_s` seconds or
    the file cannot be made.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    except OSError as error:
        raise GptOssError(
            "cannot write to the folder of models",
            got=error.strerror or str(error),
            where=str(path.parent),
            hint="Set MLX_GPTOSS_HOME to a folder that can be written.",
        ) from error
    try:
        _take(handle, doing, wait_s, path, waiting)
        yield
    finally:
        os.close(handle)


def _take(handle: int, doing: str, wait_s: float, path: Path, waiting: Callable[[], None] | None) -> None:
    deadline = time.monotonic() + wait_s
    said = False
    while True:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except OSError as error:
            if error.errno not in _TAKEN:
                return  # a file system without locks: the converter's own lock, or nothing, must do
        if not said:
            _LOG.warning("another process is %s; waiting for it", doing)
            said = True
        if waiting is not None:
            waiting()
        if time.monotonic() > deadline:
            raise GptOssError(
                f"another process is still {doing} after {wait_s:.0f} s",
                where=str(path),
                hint="End that process, then try again.",
            )
        time.sleep(_POLL_S)
