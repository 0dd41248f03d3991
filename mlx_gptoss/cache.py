"""Keys and values of one conversation.

MLX arrays are immutable, so `copy` and `snapshot` share them in O(1); the first write after sharing copies what it
writes to. An unshared cache is written in place (MLX donates the buffer). Keys are stored after rotation.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import mlx.core as mx

from mlx_gptoss.config import ModelConfig
from mlx_gptoss.errors import InvalidRequestError

_MIN_GROWTH = 256
_MAX_GROWTH = 8192


@dataclass(slots=True)
class FullLayerCache:
    """A layer that attends to everything.

    `main_k`/`main_v` [B, kv_heads, capacity, D] hold `n_main` positions. `tail_k`/`tail_v` [B, kv_heads, T, D] hold
    the `n_tail` positions after them: the fused decode rewrites that small buffer instead of the large one.
    `merge` moves the tail over; everything else here calls it first.
    """

    main_k: mx.array
    main_v: mx.array
    n_main: int = 0
    tail_k: mx.array | None = None
    tail_v: mx.array | None = None
    n_tail: int = 0

    @property
    def length(self) -> int:
        """Positions held."""
        return self.n_main + self.n_tail

    @property
    def capacity(self) -> int:
        """Positions that fit in the main cache."""
        return self.main_k.shape[2]

    def arrays(self) -> Iterator[mx.array]:
        """Every array."""
        yield from (array for array in (self.main_k, self.main_v, self.tail_k, self.tail_v) if array is not None)

    def copy(self) -> FullLayerCache:
        """Shares the arrays."""
        return FullLayerCache(self.main_k, self.main_v, self.n_main, self.tail_k, self.tail_v, self.n_tail)

    def reserve(self, positions: int) -> None:
        """Makes the main cache hold at least `positions`; what it holds stays."""
        have = self.capacity
        if positions <= have:
            return
        batch, heads, _, dim = self.main_k.shape
        room = mx.zeros((batch, heads, positions - have, dim), dtype=self.main_k.dtype)
        if have == 0:
            # Two arrays, not one shared twice: each must be donatable by itself.
            self.main_k, self.main_v = room, mx.zeros_like(room)
        else:
            self.main_k = mx.concatenate([self.main_k, room], axis=2)
            self.main_v = mx.concatenate([self.main_v, room], axis=2)

    def _grow(self, positions: int) -> None:
        if positions > self.capacity:
            step = max(_MIN_GROWTH, min(self.capacity // 2, _MAX_GROWTH))
            self.reserve(max(-(-positions // _MIN_GROWTH) * _MIN_GROWTH, self.capacity + step))

    def merge(self) -> None:
        """Moves the tail's positions to the end of the main cache."""
        if self.n_tail == 0 or self.tail_k is None or self.tail_v is None:
            return
        keys, values = self.tail_k[:, :, : self.n_tail], self.tail_v[:, :, : self.n_tail]
        self.n_tail = 0
        self.append(keys, values)

    def append(self, keys: mx.array, values: mx.array) -> None:
        """Adds keys and values [B, kv_heads, L, D]."""
        self.merge()
        end = self.n_main + keys.shape[2]
        self._grow(end)
        self.main_k = _write(self.main_k, self.n_main, keys)
        self.main_v = _write(self.main_v, self.n_main, values)
        self.n_main = end

    def view(self) -> tuple[mx.array, mx.array]:
        """Keys and values of all positions, [B, kv_heads, length, D]."""
        self.merge()
        return self.main_k[:, :, : self.n_main], self.main_v[:, :, : self.n_main]

    def truncate(self, length: int) -> None:
        """Forgets all positions from `length` on."""
        self.n_tail = max(0, min(self.n_tail, length - self.n_main))
        self.n_main = min(self.n_main, length)


@dataclass(slots=True)
class SlidingLayerCache:
    """A layer that attends to the last W positions: position p lies in slot p % W of `ring_k`/`ring_v`
    [B, kv_heads, W, D]."""

    ring_k: mx.array
    ring_v: mx.array

    @property
    def window(self) -> int:
        """W."""
        return self.ring_k.shape[2]

    def arrays(self) -> Iterator[mx.array]:
        """Both rings."""
        yield self.ring_k
        yield self.ring_v

    def copy(self) -> SlidingLayerCache:
        """Shares the arrays."""
        return SlidingLayerCache(self.ring_k, self.ring_v)

    def previous(self, offset: int) -> tuple[mx.array, mx.array]:
        """The min(offset, W - 1) positions before `offset`, oldest first: what a query at `offset` sees besides
        itself."""
        count = min(offset, self.window - 1)
        return _unroll(self.ring_k, offset - count, count), _unroll(self.ring_v, offset - count, count)

    def current(self, end: int) -> tuple[mx.array, mx.array]:
        """The last min(end, W) positions in ring order (attention does not mind the order)."""
        if end >= self.window:
            return self.ring_k, self.ring_v
        return self.ring_k[:, :, :end], self.ring_v[:, :, :end]

    def append(self, keys: mx.array, values: mx.array, offset: int) -> None:
        """Writes keys and values [B, kv_heads, L, D] of the positions from `offset` on."""
        window, length = self.window, keys.shape[2]
        if length >= window:
            keys, values = keys[:, :, length - window :], values[:, :, length - window :]
            turn = (offset + length) % window
            self.ring_k, self.ring_v = _roll(keys, turn), _roll(values, turn)
            return
        slot = offset % window
        head = min(length, window - slot)
        if head == length:
            self.ring_k, self.ring_v = _write(self.ring_k, slot, keys), _write(self.ring_v, slot, values)
            return
        for part, at in ((slice(0, head), slot), (slice(head, length), 0)):
            self.ring_k = _write(self.ring_k, at, keys[:, :, part])
            self.ring_v = _write(self.ring_v, at, values[:, :, part])


LayerCache = FullLayerCache | SlidingLayerCache


def _write(array: mx.array, start: int, values: mx.array) -> mx.array:
    """`array` with `values` from position `start` on. The object given never changes (a snapshot may hold it), yet
    MLX writes in place when nothing else holds its buffer by the time the result is evaluated."""
    fresh = array.reshape(array.shape)
    fresh[:, :, start : start + values.shape[2]] = values
    return fresh


def _unroll(ring: mx.array, start: int, count: int) -> mx.array:
    slot = start % ring.shape[2]
    first = ring[:, :, slot : slot + count]
    missing = count - first.shape[2]
    return first if missing == 0 else mx.concatenate([first, ring[:, :, :missing]], axis=2)


def _roll(x: mx.array, turn: int) -> mx.array:
    """x, oldest first and exactly W long, as a ring whose next slot is `turn`."""
    if turn == 0:
        return mx.contiguous(x)
    split = x.shape[2] - turn
    return mx.concatenate([x[:, :, split:], x[:, :, :split]], axis=2)


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The sliding layers of a cache at one position: what trimming cannot bring back. Shares arrays. `written`: see
    SequenceCache."""

    offset: int
    rings: tuple[tuple[mx.array, mx.array], ...]
    written: int

    @property
    def nbytes(self) -> int:
        """Bytes of the rings."""
        return sum(keys.nbytes + values.nbytes for keys, values in self.rings)


class SequenceCache:
    """Keys and values of `batch` sequences of one length, for every layer of a model.

    `dtype` is the stored dtype. `written` counts the positions that the rings have seen, those trimmed since included.
    Not safe to use from several threads at once.
    """

    def __init__(self, config: ModelConfig, batch: int = 1, dtype: mx.Dtype = mx.bfloat16) -> None:
        if isinstance(batch, bool) or not isinstance(batch, int) or batch < 1:
            raise InvalidRequestError("a cache is for one sequence or more", param="batch", got=repr(batch)[:60])
        self.batch = batch
        self.dtype = dtype
        self._offset = 0
        self._written = 0
        self.layers: list[LayerCache] = []
        for layer in range(config.num_layers):
            size = config.sliding_window if config.is_sliding(layer) else 0
            shape = (batch, config.num_kv_heads, size, config.head_dim)
            keys, values = mx.zeros(shape, dtype=dtype), mx.zeros(shape, dtype=dtype)
            self.layers.append(SlidingLayerCache(keys, values) if size else FullLayerCache(keys, values))

    @property
    def offset(self) -> int:
        """Positions written, and the position of the next token."""
        return self._offset

    @property
    def written(self) -> int:
        """Positions whose slots of the rings hold what was written last: `offset`, or more after a trim."""
        return self._written

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays, shared ones included."""
        return sum(array.nbytes for array in self.arrays())

    def arrays(self) -> list[mx.array]:
        """Every array: evaluate these to make pending writes happen."""
        return [array for layer in self.layers for array in layer.arrays()]

    def advance(self, positions: int) -> None:
        """Counts positions that have been written to every layer."""
        self._offset += positions
        self._written = self._offset

    def reserve(self, positions: int) -> None:
        """Makes room for `positions` in all, so that no later write moves the cache."""
        for layer in self.layers:
            if isinstance(layer, FullLayerCache):
                layer.merge()
                layer.reserve(positions)

    def copy(self) -> SequenceCache:
        """An independent cache with the same content, in O(1)."""
        twin = SequenceCache.__new__(SequenceCache)
        twin.batch, twin.dtype, twin._offset, twin._written = self.batch, self.dtype, self._offset, self._written
        twin.layers = [layer.copy() for layer in self.layers]
        return twin

    def can_trim(self, positions: int) -> bool:
        """Whether `trim(positions)` is possible: always without sliding layers, else only while every ring still
        holds what the shorter sequence needs."""
        if not 0 <= positions <= self._offset:
            return False
        rings = [layer.window for layer in self.layers if isinstance(layer, SlidingLayerCache)]
        # A query sees one position less than a ring holds: the last one written may go, and no other.
        return not rings or self._written <= min(rings) or self._offset - positions >= self._written - 1

    def trim(self, positions: int) -> None:
        """Forgets the last `positions` positions. Raises InvalidRequestError when `can_trim` says no."""
        if not self.can_trim(positions):
            raise InvalidRequestError(
                f"the cache cannot be trimmed by {positions} positions",
                param="positions",
                expected="at most 1, once, after the sliding window has passed, or a snapshot to restore",
                got=f"{positions} of {self._offset}",
            )
        self._truncate(self._offset - positions)

    def snapshot(self) -> Snapshot:
        """Remembers the sliding layers, so that `restore` can return here after more positions. O(1)."""
        rings = tuple((layer.ring_k, layer.ring_v) for layer in self.layers if isinstance(layer, SlidingLayerCache))
        return Snapshot(self._offset, rings, self._written)

    def restore(self, snapshot: Snapshot) -> None:
        """Returns to a snapshot taken of this history. Raises InvalidRequestError when it lies ahead."""
        if snapshot.offset > self._offset:
            raise InvalidRequestError(
                "the snapshot lies ahead of the cache",
                param="snapshot",
                expected=f"at most {self._offset}",
                got=str(snapshot.offset),
            )
        rings = iter(snapshot.rings)
        for layer in self.layers:
            if isinstance(layer, SlidingLayerCache):
                layer.ring_k, layer.ring_v = next(rings)
        self._written = snapshot.written
        self._truncate(snapshot.offset)

    def _truncate(self, offset: int) -> None:
        self._offset = offset
        for layer in self.layers:
            if isinstance(layer, FullLayerCache):
                layer.truncate(offset)
