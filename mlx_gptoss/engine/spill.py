"""Conversations on disk: what falls out of the prefix cache, written by a thread of its own."""

from __future__ import annotations

import contextlib
import itertools
import os
import queue
import shutil
import tempfile
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from mlx_gptoss.engine.cache_state import Arrays, pack, unpack
from mlx_gptoss.engine.prefix import TokenIds, common_prefix, reached
from mlx_gptoss.liveness import alive

_FOLDER = "mlx-gptoss-spill-"
_WRITES_IN_FLIGHT = 2


@dataclass(slots=True)
class Spilled:
    """One conversation on its way to disk or there. `arrays` are set until the file is whole; `failed` is set by the
    writer and `dropped` by the engine's thread."""

    tokens: TokenIds
    positions: tuple[int, ...]
    keep_from: int
    path: Path
    nbytes: int
    arrays: Arrays | None = field(repr=False)
    failed: bool = False
    dropped: threading.Event = field(default_factory=threading.Event, repr=False)


class SpillStore:
    """At most `budget` bytes of files below `folder`, least recently used out first. The files belong to this
    process and go with it; what a crashed one left is removed. All methods are for the engine's thread."""

    def __init__(self, folder: Path, budget: int, make_cache: Callable[[], Any]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        _remove_stale(folder)
        self._folder = Path(tempfile.mkdtemp(prefix=f"{_FOLDER}{os.getpid()}-", dir=folder))
        self._budget = budget
        self._make_cache = make_cache
        self._entries: list[Spilled] = []
        self._numbers = itertools.count()
        self._writes: queue.Queue[Spilled | None] = queue.Queue(_WRITES_IN_FLIGHT)
        self._writer: threading.Thread | None = None

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def nbytes(self) -> int:
        return sum(entry.nbytes for entry in self._entries)

    def save(self, tokens: TokenIds, cache: Any, snapshots: tuple[Any, ...], keep_from: int) -> None:
        """Takes a sequence over. It is dropped instead when the disk cannot keep up."""
        if self._writes.full() or cache.nbytes > self._budget:
            return
        arrays = pack(cache, snapshots)
        size = sum(array.nbytes for array in arrays.values())
        positions = (*(snapshot.offset for snapshot in snapshots), len(tokens))
        path = self._folder / f"{next(self._numbers)}.safetensors"
        entry = Spilled(tokens, positions, keep_from, path, size, arrays)
        if self._writer is None:
            self._writer = threading.Thread(target=self._write, name="mlx-gptoss-spill", daemon=True)
            self._writer.start()
        self._entries.append(entry)
        self._writes.put(entry)
        for failed in [other for other in self._entries if other.failed]:
            self._drop(failed)
        while self.nbytes > self._budget:
            self._drop(self._entries[0])

    def best(self, prompt: TokenIds) -> tuple[int, Spilled | None]:
        """The furthest position at which a spilled sequence can be re-entered for `prompt`, and which one."""
        best: tuple[int, Spilled | None] = (0, None)
        for entry in self._entries:
            if entry.failed:
                continue
            shared = common_prefix(prompt, entry.tokens)
            position = max((reached(offset, shared) for offset in entry.positions), default=0)
            if position > best[0]:
                best = (position, entry)
        return best

    def load(self, entry: Spilled) -> tuple[TokenIds, Any, tuple[Any, ...], int] | None:
        """Brings a sequence back and forgets its file: tokens, cache, snapshots, keep_from. None when the file is
        gone or damaged."""
        arrays = entry.arrays
        try:
            if arrays is None:
                arrays = load_file(entry.path)
            cache, snapshots = unpack(self._make_cache(), arrays)
        except (OSError, SafetensorError, KeyError, ValueError):
            return None
        finally:
            self._drop(entry)
        return entry.tokens, cache, snapshots, entry.keep_from

    def clear(self) -> None:
        """Forgets everything and removes the folder."""
        for entry in self._entries:
            entry.dropped.set()
        self._entries.clear()
        if self._writer is not None:
            self._writes.put(None)
            self._writer.join()
            self._writer = None
        shutil.rmtree(self._folder, ignore_errors=True)

    def _drop(self, entry: Spilled) -> None:
        entry.dropped.set()
        self._entries = [other for other in self._entries if other is not entry]
        with contextlib.suppress(OSError):
            entry.path.unlink(missing_ok=True)

    def _write(self) -> None:
        while (entry := self._writes.get()) is not None:
            arrays = entry.arrays
            if arrays is None or entry.dropped.is_set():
                continue
            partial = entry.path.with_suffix(".partial")
            try:
                save_file(arrays, partial)
                partial.replace(entry.path)
            except (OSError, SafetensorError):
                with contextlib.suppress(OSError):
                    partial.unlink(missing_ok=True)
                entry.failed = True
            if entry.dropped.is_set():
                with contextlib.suppress(OSError):
                    entry.path.unlink(missing_ok=True)
            entry.arrays = None


def _remove_stale(folder: Path) -> None:
    for left in folder.glob(f"{_FOLDER}*"):
        owner = left.name.removeprefix(_FOLDER).partition("-")[0]
        if owner.isdigit() and not alive(int(owner)):
            shutil.rmtree(left, ignore_errors=True)
