"""The record of finished tensors that lets an interrupted conversion go on where it stopped.

A text file in the target: one JSON line that identifies source and plan, then one line per finished job with the
hashes of its tensors. A line is appended only after the bytes it speaks of are on disk, and a torn last line is
ignored, so what the journal says is always true.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field

JOURNAL_NAME = ".conversion"
JOURNAL_LIMIT = 64 << 20


@dataclass(frozen=True, slots=True)
class Finished:
    """A finished job: SHA-256 of each output in order, and the job's note."""

    hashes: tuple[str, ...]
    note: str | None


@dataclass(frozen=True, slots=True)
class Journal:
    """An open journal. `finished` is what earlier runs did, by name of the job's first output."""

    fd: int
    finished: Mapping[str, Finished] = field(default_factory=dict)

    def append(self, entries: Mapping[str, Finished]) -> None:
        """Adds lines and forces them to disk."""
        lines = [json.dumps({"job": k, "sha256": list(v.hashes), "note": v.note}) for k, v in entries.items()]
        data = ("\n".join(lines) + "\n").encode()
        while data:
            data = data[os.write(self.fd, data) :]
        os.fsync(self.fd)

    def close(self) -> None:
        os.close(self.fd)


def read_journal(folder_fd: int, key: str) -> tuple[dict[str, Finished], int] | None:
    """Finished jobs and the length of the journal's intact part, or None when there is none for `key`."""
    try:
        fd = os.open(JOURNAL_NAME, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder_fd)
    except OSError:
        return None
    with os.fdopen(fd, "rb") as f:
        data = f.read(JOURNAL_LIMIT)
    intact = data[: data.rfind(b"\n") + 1]
    lines = intact.splitlines()
    try:
        if not lines or json.loads(lines[0]).get("key") != key:
            return None
        finished: dict[str, Finished] = {}
        for line in lines[1:]:
            entry = json.loads(line)
            finished[entry["job"]] = Finished(tuple(entry["sha256"]), entry["note"])
    except (ValueError, KeyError, TypeError, AttributeError):
        return None
    return finished, len(intact)


def open_journal(folder_fd: int, key: str) -> Journal:
    """Opens the journal for `key`, keeping what it says when it is for the same key, else starting an empty one."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
    earlier = read_journal(folder_fd, key)
    fd = os.open(JOURNAL_NAME, flags, 0o666, dir_fd=folder_fd)
    if earlier is not None:
        os.truncate(fd, earlier[1])
        os.lseek(fd, 0, os.SEEK_END)
        return Journal(fd, earlier[0])
    os.truncate(fd, 0)
    os.write(fd, (json.dumps({"key": key}) + "\n").encode())
    os.fsync(fd)
    return Journal(fd)
