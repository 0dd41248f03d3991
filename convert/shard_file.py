"""A target file, written at offsets: past the page cache where the system allows it, through it elsewhere.

Weights are written once and read much later, so caching them while writing costs processor time (several times that of
the write itself on preallocated files) and pushes out pages that someone needs.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Final

from mlx_gptoss.convert.files import Bytes
from mlx_gptoss.convert.layout import Shard

DIRECT_BYTES: Final = 4096
"""Offset, length and address of an unbuffered write are multiples of this."""


@dataclass(frozen=True, slots=True)
class ShardFile:
    """An open shard. `direct` is a second descriptor that bypasses the page cache, or -1."""

    fd: int
    direct: int

    def write(self, data: Bytes, offset: int) -> None:
        """Writes all of `data` at `offset`. Raises OSError."""
        view = data.data
        if self.direct >= 0 and offset % DIRECT_BYTES == 0 and data.ctypes.data % DIRECT_BYTES == 0:
            whole = len(view) // DIRECT_BYTES * DIRECT_BYTES
            done = write_all(self.direct, view[:whole], offset) if whole else 0
            view, offset = view[done:], offset + done
        write_all(self.fd, view, offset)

    def sync(self) -> None:
        """Forces the file's bytes to disk."""
        if hasattr(os, "fdatasync"):
            os.fdatasync(self.fd)
        else:
            os.fsync(self.fd)

    def close(self) -> None:
        os.close(self.fd)
        if self.direct >= 0:
            os.close(self.direct)


def write_all(fd: int, view: memoryview, offset: int) -> int:
    """pwrite until everything is written; the number of bytes."""
    done = 0
    while done < len(view):
        done += os.pwrite(fd, view[done:], offset + done)
    return done


def open_shard(folder_fd: int, shard: Shard) -> ShardFile:
    """Opens (or makes) a shard at its full length, with its header. Never follows a symlink. Raises OSError."""
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
    fd = os.open(shard.name, flags, 0o666, dir_fd=folder_fd)
    direct = -1
    try:
        direct = _open_direct(folder_fd, shard.name)
        if os.fstat(fd).st_size != shard.size:
            os.ftruncate(fd, 0)
            _allocate(fd, shard.size, direct >= 0)
        write_all(fd, memoryview(shard.header), 0)
    except BaseException:
        os.close(fd)
        if direct >= 0:
            os.close(direct)
        raise
    return ShardFile(fd, direct)


def _open_direct(folder_fd: int, name: str) -> int:
    if not hasattr(os, "O_DIRECT"):
        return -1
    try:
        return os.open(name, os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_DIRECT, dir_fd=folder_fd)
    except OSError:
        return -1


def _allocate(fd: int, size: int, direct: bool) -> None:
    """Gives a file its length, and its blocks too for unbuffered writes (buffered ones are slow on such blocks)."""
    if direct and hasattr(os, "posix_fallocate"):
        os.posix_fallocate(fd, 0, size)
    else:
        os.ftruncate(fd, size)
