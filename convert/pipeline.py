"""Reading, hashing, writing and recording at the same time, in bounded memory.

The caller's thread produces chunks. One thread hashes them, one writes them, and one forces finished tensors to disk
and records them in the journal. A fixed set of buffers goes round, so a slow disk slows the reader.
"""

from __future__ import annotations

import hashlib
import mmap
import queue
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np

from mlx_gptoss.convert.files import Bytes
from mlx_gptoss.convert.journal import Finished, Journal
from mlx_gptoss.convert.layout import Placement
from mlx_gptoss.convert.shard_file import ShardFile

BUFFERS = 6
_POLL_S = 0.2


@dataclass(slots=True, eq=False)
class _Chunk:
    place: Placement
    position: int
    data: Bytes
    base: Bytes | None
    pending: int = 2


@dataclass(slots=True, eq=False)
class _End:
    key: str
    places: tuple[Placement, ...]
    note: str | None
    hashes: tuple[str, ...] = ()
    pending: int = 2


@dataclass(slots=True)
class Pipeline:
    """Writes chunks to the open target files and records finished jobs in `journal`.

    `progress` is called from worker threads with the number of bytes just written.
    `sync_bytes`: finished tensors are recorded when this much has gathered (and at the end).
    """

    files: Mapping[str, ShardFile]
    journal: Journal
    buffer_bytes: int
    progress: Callable[[int], None]
    sync_bytes: int = 256 << 20
    finished: dict[str, Finished] = field(default_factory=dict)
    _error: BaseException | None = None
    _lent: dict[int, Bytes] = field(default_factory=dict)
    _free: queue.Queue[Bytes] = field(default_factory=queue.Queue)
    _to_hash: queue.Queue[_Chunk | _End | None] = field(default_factory=queue.Queue)
    _to_write: queue.Queue[_Chunk | _End | None] = field(default_factory=queue.Queue)
    _to_record: queue.Queue[_End | None] = field(default_factory=queue.Queue)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _threads: list[threading.Thread] = field(default_factory=list)

    def start(self) -> None:
        """Starts the workers."""
        for _ in range(BUFFERS):
            self._free.put(page_aligned(self.buffer_bytes))
        for target in (self._hash, self._write, self._record):
            thread = threading.Thread(target=self._guard, args=(target,), daemon=True)
            thread.start()
            self._threads.append(thread)

    def allocate(self, count: int) -> Bytes:
        """A buffer of `count` bytes, waiting for one to come back. A longer one is made anew."""
        base = self._take()
        if count <= len(base):
            self._lent[base.ctypes.data] = base
            return base[:count]
        self._free.put(base)
        return np.empty(count, np.uint8)

    def _take(self) -> Bytes:
        while True:
            self._check()
            try:
                return self._free.get(timeout=_POLL_S)
            except queue.Empty:
                continue

    def put(self, place: Placement, position: int, data: Bytes) -> None:
        """Sends the next bytes of a tensor, `position` bytes from its start. `data` must not be touched afterwards."""
        self._check()
        base = self._lent.pop(data.ctypes.data, None)
        if base is None and self._to_write.qsize() >= BUFFERS:
            self._wait_for_room()
        chunk = _Chunk(place, position, data, base)
        self._to_hash.put(chunk)
        self._to_write.put(chunk)

    def _wait_for_room(self) -> None:
        while self._to_write.qsize() >= BUFFERS or self._to_hash.qsize() >= BUFFERS:
            self._check()
            threading.Event().wait(0.002)

    def end_job(self, key: str, places: tuple[Placement, ...], note: str | None) -> None:
        """Says that every byte of a job has been sent."""
        end = _End(key, places, note)
        self._to_hash.put(end)
        self._to_write.put(end)

    def close(self, abort: bool = False) -> None:
        """Waits for the workers. Raises what went wrong in them, unless aborting."""
        self._to_hash.put(None)
        self._to_write.put(None)
        for thread in self._threads[:2]:
            thread.join()
        self._to_record.put(None)
        self._threads[2].join()
        if not abort:
            self._check()

    def _check(self) -> None:
        if self._error is not None:
            raise self._error

    def _guard(self, work: Callable[[], None]) -> None:
        try:
            work()
        except BaseException as e:
            if self._error is None:
                self._error = e

    def _hash(self) -> None:
        digests: dict[str, hashlib._Hash] = {}
        while (item := self._to_hash.get()) is not None:
            if isinstance(item, _Chunk):
                digests.setdefault(item.place.output.name, hashlib.sha256()).update(item.data.data)
            else:
                item.hashes = tuple(digests.pop(p.output.name).hexdigest() for p in item.places)
            self._done(item)

    def _write(self) -> None:
        while (item := self._to_write.get()) is not None:
            if isinstance(item, _Chunk):
                self.files[item.place.file].write(item.data, item.place.offset + item.position)
                self.progress(len(item.data))
            self._done(item)

    def _done(self, item: _Chunk | _End) -> None:
        with self._lock:
            item.pending -= 1
            last = item.pending == 0
        if not last:
            return
        if isinstance(item, _End):
            self._to_record.put(item)
        elif item.base is not None:
            self._free.put(item.base)

    def _record(self) -> None:
        batch: dict[str, Finished] = {}
        files: set[str] = set()
        gathered = 0
        while True:
            item = self._to_record.get()
            if item is not None:
                batch[item.key] = Finished(item.hashes, item.note)
                files.update(p.file for p in item.places)
                gathered += sum(p.output.nbytes for p in item.places)
                if gathered < self.sync_bytes:
                    continue
            if batch:
                for name in sorted(files):
                    self.files[name].sync()
                self.journal.append(batch)
                self.finished.update(batch)
                batch, files, gathered = {}, set(), 0
            if item is None:
                return


def page_aligned(count: int) -> Bytes:
    """A buffer of `count` bytes that starts on a page, as unbuffered writes need."""
    return np.frombuffer(mmap.mmap(-1, count), np.uint8)
