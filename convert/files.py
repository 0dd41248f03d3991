"""Source files: opened once, read at offsets, and watched for changes."""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mlx_gptoss.errors import CheckpointError, ConversionError

SMALL_FILE_LIMIT = 16 << 20
"""No JSON file of a checkpoint is longer; a longer one is refused before it is read."""

Bytes = NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class _Identity:
    size: int
    mtime_ns: int
    device: int
    inode: int


class SourceFile:
    """A file of a checkpoint, read with pread so that a file cut short is an error and never a fault."""

    def __init__(self, path: Path) -> None:
        """Opens `path`, following symlinks. Raises CheckpointError."""
        self.path = path
        try:
            self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError as e:
            raise CheckpointError("cannot open a weight file", got=e.strerror, where=str(path)) from None
        if hasattr(os, "posix_fadvise"):
            with contextlib.suppress(OSError):
                os.posix_fadvise(self._fd, 0, 0, os.POSIX_FADV_SEQUENTIAL)
        info = os.fstat(self._fd)
        if not stat.S_ISREG(info.st_mode):
            os.close(self._fd)
            raise CheckpointError("a weight file is not a regular file", where=str(path))
        self._identity = _Identity(info.st_size, info.st_mtime_ns, info.st_dev, info.st_ino)

    @property
    def size(self) -> int:
        """Length in bytes when the file was opened."""
        return self._identity.size

    def read_into(self, offset: int, out: Bytes) -> None:
        """Fills the contiguous array `out` from `offset`. Raises CheckpointError when the file ends early."""
        view = out.reshape(-1).data
        done = 0
        while done < len(view):
            try:
                count = os.preadv(self._fd, [view[done:]], offset + done)
            except OSError as e:
                raise CheckpointError("cannot read a weight file", got=e.strerror, where=str(self.path)) from None
            if count == 0:
                raise CheckpointError(
                    "a weight file ended while it was being read",
                    expected=f"{self.size} bytes",
                    got=f"{offset + done} bytes",
                    where=str(self.path),
                )
            done += count

    def read(self, offset: int, count: int) -> bytes:
        """`count` bytes at `offset`; for headers, so callers bound `count`."""
        out = np.empty(count, np.uint8)
        self.read_into(offset, out)
        return out.tobytes()

    def check_unchanged(self) -> None:
        """Raises ConversionError when the file is no longer what it was when opened."""
        try:
            info = os.stat(self.path)
        except OSError:
            info = None
        if info is None or _Identity(info.st_size, info.st_mtime_ns, info.st_dev, info.st_ino) != self._identity:
            raise ConversionError(
                "the source changed while it was being converted",
                where=str(self.path),
                hint="Run the conversion again; it will start over",
            )

    def stamp(self) -> str:
        """Text that differs when the file differs (name, length, time of last change)."""
        return f"{self.path.name}\0{self._identity.size}\0{self._identity.mtime_ns}"

    def close(self) -> None:
        """Closes the file; reading afterwards is an error."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def fingerprint(files: Iterable[SourceFile], extra: Iterable[bytes] = ()) -> str:
    """SHA-256 over the stamps of `files` and the contents of small files and headers in `extra`."""
    digest = hashlib.sha256()
    for stamp in sorted(f.stamp() for f in files):
        digest.update(stamp.encode() + b"\n")
    for data in extra:
        digest.update(hashlib.sha256(data).digest())
    return digest.hexdigest()


def read_small(path: Path, limit: int = SMALL_FILE_LIMIT) -> bytes:
    """A whole small file, following symlinks. Raises CheckpointError when it is absent or longer than `limit`."""
    file = SourceFile(path)
    try:
        if file.size > limit:
            raise CheckpointError(
                f"{path.name} is too long", expected=f"at most {limit} bytes", got=f"{file.size} bytes", where=str(path)
            )
        return file.read(0, file.size)
    finally:
        file.close()
