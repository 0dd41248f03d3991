"""Stored conversations: what a prompt shares with them is not prefilled again.

Full-attention layers can be cut back to any length. Sliding layers keep only their window, so a sequence can be
re-entered at its end, a little before its end while the window is not full, or at a snapshot and one token before it.
A lookup yields the furthest of those positions that lies within the common prefix and leaves a token to prefill.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mlx_gptoss.engine.prefix import TokenIds, common_prefix, reached
from mlx_gptoss.engine.spill import SpillStore

MAX_SNAPSHOTS = 48
MAX_ENTRIES = 512
"""A lookup compares the prompt with every entry."""


@dataclass(slots=True)
class Stored:
    """One sequence that can be re-entered. `cache` holds exactly `tokens`; `snapshots` rise in offset.

    From `keep_from` on the sequence is of no use to any but its own conversation's next turn."""

    tokens: TokenIds
    cache: Any
    snapshots: tuple[Any, ...] = ()
    key: str | None = None
    keep_from: int = 0
    last_used: int = field(default=0, compare=False)

    @property
    def nbytes(self) -> int:
        return int(self.cache.nbytes) + sum(int(snapshot.nbytes) for snapshot in self.snapshots)


@dataclass(frozen=True, slots=True)
class Hit:
    """A cache at `position`, ready to go on from there, and the snapshots it brings along."""

    position: int
    cache: Any
    snapshots: tuple[Any, ...]


def reentry(stored: Stored, length: int) -> int:
    """The furthest position <= `length` at which `stored` can be re-entered; 0 when there is none."""
    end = len(stored.tokens)
    if length >= end:
        return end
    if stored.cache.can_trim(end - length):
        return length
    return max((reached(snapshot.offset, length) for snapshot in stored.snapshots), default=0)


def enter(stored: Stored, position: int, *, share: bool) -> Hit:
    """The stored sequence cut back to `position`; with `share` the original stays as it is."""
    cache = stored.cache.copy() if share else stored.cache
    end, whole = len(stored.tokens), True
    if position < end:
        states = {snapshot.offset: snapshot for snapshot in stored.snapshots}
        if position in states:
            cache.restore(states[position])
        elif cache.can_trim(end - position):
            whole = _cut(cache, end - position)
        else:
            cache.restore(states[position + 1])
            whole = _cut(cache, 1)
    kept = tuple(snapshot for snapshot in stored.snapshots if snapshot.offset < position)
    # The next sequence may be cut back to here as well, and to one token before it if the window is whole.
    return Hit(position, cache, (*kept, cache.snapshot()) if whole else kept)


def _cut(cache: Any, count: int) -> bool:
    """Drops the last `count` positions; whether one more could be dropped after that."""
    whole = cache.offset == count or cache.can_trim(count + 1)
    cache.trim(count)
    return bool(whole)


def thin(snapshots: Sequence[Any], limit: int = MAX_SNAPSHOTS) -> tuple[Any, ...]:
    """At most `limit` snapshots: the first, the latest, and of the rest those that leave the smallest gaps."""
    kept = list(snapshots)
    while len(kept) > limit:
        gaps = [kept[i + 1].offset - kept[i - 1].offset for i in range(1, len(kept) - 2)]
        del kept[1 + gaps.index(min(gaps))]
    return tuple(kept)


class PrefixCache:
    """Sequences in memory up to `budget` bytes, least recently used out first, into `spill` where there is one."""

    def __init__(self, budget: int, spill: SpillStore | None = None) -> None:
        self._budget = budget
        self._spill = spill
        self._entries: list[Stored] = []
        self._clock = itertools.count(1)
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def nbytes(self) -> int:
        return self._bytes

    @property
    def spill(self) -> SpillStore | None:
        return self._spill

    def best(self, prompt: TokenIds, live: Iterable[Stored] = ()) -> int:
        """How many tokens of `prompt` need no prefill."""
        return self._find(prompt, live)[0]

    def lookup(self, prompt: TokenIds, live: Iterable[Stored] = ()) -> Hit | None:
        """The best start for `prompt`, from the stored sequences and those in progress (`live`, which are shared)."""
        position, found, owned = self._find(prompt, live)
        if self._spill is not None:
            spilled, handle = self._spill.best(prompt[: len(prompt) - 1])
            if handle is not None and spilled > position:
                restored = self._spill.load(handle)
                if restored is not None:
                    tokens, cache, snapshots, keep_from = restored
                    found = Stored(tokens, cache, snapshots, None, keep_from)
                    position, owned = reentry(found, min(spilled, len(prompt) - 1)), False
                    if position < keep_from:
                        self.store(found)
                        return enter(found, position, share=True) if position else None
                    return enter(found, position, share=False)
        if found is None:
            return None
        found.last_used = next(self._clock)
        # A conversation that goes on takes its own sequence with it: nothing is copied and nothing is left behind.
        moves = owned and position >= found.keep_from
        if moves:
            self._remove(found)
        return enter(found, position, share=not moves)

    def store(self, entry: Stored) -> None:
        """Keeps a sequence; replaces the same tokens and whatever its conversation stored before."""
        if self._budget == 0 or len(entry.tokens) == 0:
            return
        for other in list(self._entries):
            same = len(other.tokens) == len(entry.tokens) and np.array_equal(other.tokens, entry.tokens)
            if same or (entry.key is not None and other.key == entry.key):
                self._remove(other)
        entry.snapshots = thin(entry.snapshots)
        entry.last_used = next(self._clock)
        self._entries.append(entry)
        self._bytes += entry.nbytes
        self._evict(self._budget)

    def shrink(self, size: int) -> None:
        """Lets the least recently used go until at most `size` bytes are left; the budget stays."""
        self._evict(size)

    def clear(self) -> None:
        """Forgets everything, spilled sequences included."""
        self._entries.clear()
        self._bytes = 0
        if self._spill is not None:
            self._spill.clear()

    def _find(self, prompt: TokenIds, live: Iterable[Stored]) -> tuple[int, Stored | None, bool]:
        best: tuple[int, Stored | None, bool] = (0, None, False)
        for owned, candidates in ((True, self._entries), (False, live)):
            for stored in candidates:
                length = min(common_prefix(prompt, stored.tokens), len(prompt) - 1)
                if length > best[0] and (position := reentry(stored, length)) > best[0]:
                    best = (position, stored, owned)
        return best

    def _remove(self, entry: Stored) -> None:
        self._entries = [other for other in self._entries if other is not entry]
        self._bytes -= entry.nbytes

    def _evict(self, size: int) -> None:
        while self._entries and (self._bytes > size or len(self._entries) > MAX_ENTRIES):
            oldest = min(self._entries, key=lambda entry: entry.last_used)
            self._remove(oldest)
            if self._spill is not None:
                self._spill.save(oldest.tokens, oldest.cache, oldest.snapshots, oldest.keep_from)
