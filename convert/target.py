"""The target folder on disk: created, locked, and written without ever following a symlink."""

from __future__ import annotations

import errno
import fcntl
import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from mlx_gptoss.convert.journal import JOURNAL_NAME
from mlx_gptoss.convert.layout import Layout, Shard
from mlx_gptoss.convert.shard_file import ShardFile, open_shard
from mlx_gptoss.errors import ConversionError, GptOssError, InsufficientDiskError
from mlx_gptoss.folder import CONFIG_NAME

_SHARD = re.compile(r"model-\d{5}-of-\d{5}\.safetensors")
_IGNORED = {".DS_Store"}
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


@dataclass(frozen=True, slots=True)
class Target:
    """An open, locked folder. `marker` is the file that, written last, says the folder is complete.

    `created` tells whether this run made the folder.
    """

    path: Path
    fd: int
    created: bool
    marker: str

    def names(self) -> set[str]:
        """Names in the folder, but for what a file browser may leave there."""
        return set(os.listdir(self.fd)) - _IGNORED

    def check_ours(self) -> None:
        """Raises ConversionError unless the folder is empty or holds an unfinished or finished conversion."""
        names = self.names()
        ours = {n for n in names if self._is_ours(n)}
        if names and (names - ours or not names & {JOURNAL_NAME, self.marker}):
            raise ConversionError(
                "the target folder is not empty",
                expected="an empty or new folder, or an unfinished conversion",
                got=", ".join(sorted(names - ours or names)[:5]),
                where=str(self.path),
            )

    def _is_ours(self, name: str) -> bool:
        if _SHARD.fullmatch(name) or name == JOURNAL_NAME:
            return True
        return name.removeprefix(".").removesuffix(".part") in (CONFIG_NAME, self.marker)

    def clear(self) -> None:
        """Removes what a conversion wrote: the marker first, so that the folder stops being a model at once, and the
        journal last, so that until then the rest is known to be ours."""
        names = {n for n in self.names() if self._is_ours(n)}
        if self.marker in names:
            os.unlink(self.marker, dir_fd=self.fd)
            os.fsync(self.fd)
        for name in sorted(names - {self.marker}, key=lambda n: n == JOURNAL_NAME):
            os.unlink(name, dir_fd=self.fd)

    def discard(self) -> None:
        """Removes everything this conversion wrote, and the folder when this run made it."""
        self.clear()
        if self.created and not self.names():
            os.rmdir(self.path)

    def size_of(self, name: str) -> int | None:
        """Length of a regular file of the folder, or None."""
        try:
            info = os.stat(name, dir_fd=self.fd, follow_symlinks=False)
        except FileNotFoundError:
            return None
        return info.st_size if stat.S_ISREG(info.st_mode) and info.st_nlink == 1 else None

    def allocated(self) -> int:
        """Bytes of disk that the folder's files take already."""
        total = 0
        for name in self.names():
            total += os.stat(name, dir_fd=self.fd, follow_symlinks=False).st_blocks * 512
        return total

    def open_shard(self, shard: Shard) -> ShardFile:
        """Opens a shard for writing, at its full length and with its header. The caller closes it."""
        if self.size_of(shard.name) is None:
            self.unlink(shard.name)
        return open_shard(self.fd, shard)

    def replace(self, name: str, data: bytes) -> None:
        """Writes a small file by rename: it is there whole or not at all."""
        part = f".{name}.part"
        if part in self.names():
            os.unlink(part, dir_fd=self.fd)
        fd = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666, dir_fd=self.fd)
        try:
            view = memoryview(data)
            while view:
                view = view[os.write(fd, view) :]
            os.fsync(fd)
        finally:
            os.close(fd)
        os.rename(part, name, src_dir_fd=self.fd, dst_dir_fd=self.fd)
        os.fsync(self.fd)

    def unlink(self, name: str) -> None:
        """Removes a file if it is there."""
        if name in self.names():
            os.unlink(name, dir_fd=self.fd)


@contextmanager
def open_target(path: Path, marker: str) -> Iterator[Target]:
    """Makes (if need be), opens and locks the folder `path`. Raises ConversionError when another process has it."""
    created = False
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            path.mkdir()
            created = True
        except FileExistsError:
            pass
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as e:
        if e.errno in (errno.ELOOP, errno.ENOTDIR) and path.is_symlink():
            raise ConversionError(
                "the target is a symlink", expected="a folder", where=str(path), hint="Name the folder itself"
            ) from None
        if e.errno in _FULL:
            raise disk_full(path) from None
        raise ConversionError("cannot make the target folder", got=e.strerror or str(e), where=str(path)) from None
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise ConversionError(
                "another conversion is writing to this folder",
                where=str(path),
                hint="Wait for it to end, or choose another target",
            ) from None
        yield Target(path, fd, created, marker)
    finally:
        os.close(fd)


def check_space(path: Path, layout: Layout, allocated: int = 0) -> None:
    """Raises InsufficientDiskError unless the disk of `path` has room for the rest of `layout`."""
    probe = path
    while not probe.exists() and probe != probe.parent:
        probe = probe.parent
    try:
        info = os.statvfs(probe)
    except OSError as e:
        raise ConversionError("cannot use the target folder", got=e.strerror or str(e), where=str(path)) from None
    free = info.f_bavail * info.f_frsize
    needed = max(0, layout.size - allocated) + (1 << 20)
    if needed > free:
        raise InsufficientDiskError(
            "not enough room on the target disk",
            expected=f"{needed / 1e9:.2f} GB free",
            got=f"{free / 1e9:.2f} GB",
            where=str(path),
            hint="Free some space, or choose a target on another disk",
        )


def disk_full(path: Path) -> InsufficientDiskError:
    return InsufficientDiskError(
        "the target disk is full", where=str(path), hint="Free some space and run the same command again; it resumes"
    )


def as_own_error(error: OSError, path: Path) -> GptOssError:
    """An OSError of the target as one of ours."""
    if error.errno in _FULL:
        return disk_full(path)
    return ConversionError("cannot write to the target folder", got=error.strerror or str(error), where=str(path))
