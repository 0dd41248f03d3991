"""SequenceCache: whatever the order of writes, trims, copies and snapshots, it holds what a plain list would."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from mlx_gptoss.cache import FullLayerCache, SequenceCache, SlidingLayerCache, Snapshot
from mlx_gptoss.engine.cache_state import pack, unpack
from mlx_gptoss.errors import InvalidRequestError
from tests.tiny import tiny_config

HEADS, DIM = 2, 4
Array = npt.NDArray[np.float32]


def _cache(window: int, batch: int = 1) -> SequenceCache:
    return SequenceCache(
        tiny_config(num_layers=2, num_kv_heads=HEADS, head_dim=DIM, sliding_window=window), batch, mx.float32
    )


def _rows(start: int, length: int, salt: int, batch: int = 1) -> Array:
    """Distinct numbers for every position: [batch, HEADS, length, DIM]."""
    rng = np.random.default_rng([start, length, salt])
    return rng.standard_normal((batch, HEADS, length, DIM), dtype=np.float32)


def _append(cache: SequenceCache, rows: Array) -> None:
    keys = mx.array(rows)
    for layer in cache.layers:
        if isinstance(layer, FullLayerCache):
            layer.append(keys, -keys)
        else:
            layer.append(keys, -keys, cache.offset)
    cache.advance(rows.shape[2])


def _check(cache: SequenceCache, history: Array) -> None:
    offset = history.shape[2]
    assert cache.offset == offset
    for layer in cache.layers:
        if isinstance(layer, FullLayerCache):
            keys, values = layer.view()
            expected = history
        else:
            keys, values = layer.previous(offset)
            expected = history[:, :, offset - min(offset, layer.window - 1) :]
        np.testing.assert_array_equal(np.array(keys), expected)
        np.testing.assert_array_equal(np.array(values), -expected)


@pytest.mark.parametrize("window", [1, 2, 5, 16])
@pytest.mark.parametrize("lengths", [(1,) * 20, (3, 5, 1, 1, 9), (16, 16), (40, 1, 7), (15, 1, 1), (5, 5, 5, 5)])
def test_writes_of_any_length(window: int, lengths: tuple[int, ...]) -> None:
    cache = _cache(window, batch=2)
    history = np.zeros((2, HEADS, 0, DIM), np.float32)
    for length in lengths:
        rows = _rows(cache.offset, length, 0, batch=2)
        history = np.concatenate([history, rows], axis=2)
        _append(cache, rows)
        _check(cache, history)


def test_the_ring_keeps_position_p_in_slot_p_modulo_window() -> None:
    cache = _cache(5)
    for length in (3, 4, 11, 1, 1):
        _append(cache, np.arange(cache.offset, cache.offset + length, dtype=np.float32).reshape(1, 1, -1, 1)
                * np.ones((1, HEADS, 1, DIM), np.float32))  # fmt: skip
        layer = cache.layers[0]
        assert isinstance(layer, SlidingLayerCache)
        ring = np.array(layer.ring_k)[0, 0, :, 0]
        for position in range(max(0, cache.offset - 5), cache.offset):
            assert ring[position % 5] == position


def test_current_is_the_window_including_the_newest() -> None:
    cache = _cache(4)
    layer = cache.layers[0]
    assert isinstance(layer, SlidingLayerCache)
    for position in range(9):
        rows = np.full((1, HEADS, 1, DIM), position, np.float32)
        _append(cache, rows)
        keys, _ = layer.current(position + 1)
        seen = sorted(np.array(keys)[0, 0, :, 0].tolist())
        assert seen == list(range(max(0, position - 3), position + 1))


class CacheMachine(RuleBasedStateMachine):
    """A cache, its copies and snapshots against plain arrays."""

    cache: SequenceCache
    history: Array
    others: list[tuple[SequenceCache, Array]]
    snapshots: list[Snapshot]

    @initialize(window=st.sampled_from([1, 3, 8]))
    def start(self, window: int) -> None:
        self.window = window
        self.cache = _cache(window)
        self.history = np.zeros((1, HEADS, 0, DIM), np.float32)
        self.others = []
        self.snapshots = []
        self.salt = 0

    @rule(length=st.sampled_from([1, 1, 1, 2, 5, 8, 13]), lazy=st.booleans())
    def write(self, length: int, lazy: bool) -> None:
        self.salt += 1
        rows = _rows(self.cache.offset, length, self.salt)
        _append(self.cache, rows)
        self.history = np.concatenate([self.history, rows], axis=2)
        if not lazy:
            mx.eval(self.cache.arrays())

    @rule(positions=st.integers(0, 12))
    def trim(self, positions: int) -> None:
        offset = self.cache.offset
        if self.cache.can_trim(positions):
            self.cache.trim(positions)
            self.history = self.history[:, :, : offset - positions]
            self.snapshots = [kept for kept in self.snapshots if kept.offset <= self.cache.offset]
        else:
            assert positions > 1 or positions > offset or self.cache.written > offset
            with pytest.raises(InvalidRequestError):
                self.cache.trim(positions)
            assert self.cache.offset == offset

    @rule()
    def copy(self) -> None:
        self.others = [*self.others[-2:], (self.cache.copy(), self.history)]

    @precondition(lambda self: self.others)
    @rule()
    def swap(self) -> None:
        other = self.others.pop(0)
        self.others.append((self.cache, self.history))
        self.cache, self.history = other
        self.snapshots = []

    @rule()
    def snapshot(self) -> None:
        self.snapshots.append(self.cache.snapshot())

    @precondition(lambda self: self.snapshots)
    @rule(pick=st.integers(0, 100))
    def restore(self, pick: int) -> None:
        kept = self.snapshots[pick % len(self.snapshots)]
        self.cache.restore(kept)
        self.history = self.history[:, :, : kept.offset]
        self.snapshots = [other for other in self.snapshots if other.offset <= kept.offset]

    @rule(positions=st.integers(0, 600))
    def reserve(self, positions: int) -> None:
        self.cache.reserve(positions)

    @rule(length=st.integers(1, 4))
    def fused_tail(self, length: int) -> None:
        """What the fused decode does: positions go to a tail buffer of each full layer."""
        self.salt += 1
        rows = _rows(self.cache.offset, length, self.salt)
        for layer in self.cache.layers:
            if isinstance(layer, FullLayerCache):
                layer.merge()
                padded = np.pad(rows, [(0, 0), (0, 0), (0, 3), (0, 0)])
                layer.tail_k, layer.tail_v, layer.n_tail = mx.array(padded), mx.array(-padded), length
            else:
                layer.append(mx.array(rows), mx.array(-rows), self.cache.offset)
        self.cache.advance(length)
        self.history = np.concatenate([self.history, rows], axis=2)

    @invariant()
    def lengths(self) -> None:
        for layer in self.cache.layers:
            if isinstance(layer, FullLayerCache):
                assert layer.length == self.cache.offset

    @rule()
    def look(self) -> None:
        _check(self.cache, self.history)
        for cache, history in self.others:
            _check(cache, history)

    def teardown(self) -> None:
        if hasattr(self, "cache"):
            self.look()


CacheMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=25, deadline=None)
TestCacheMachine = CacheMachine.TestCase


def test_decode_writes_in_place() -> None:
    """An unshared cache is written where it lies: a step must not allocate another copy of it."""
    config = tiny_config(num_layers=2, num_heads=8, num_kv_heads=8, head_dim=64, sliding_window=16)
    cache = SequenceCache(config, dtype=mx.bfloat16)
    cache.reserve(16384)
    mx.eval(cache.arrays())
    mx.clear_cache()
    rows = mx.ones((1, 8, 1, 64), dtype=mx.bfloat16)
    mx.eval(rows)
    mx.reset_peak_memory()
    before = mx.get_active_memory()
    for _ in range(5):
        for layer in cache.layers:
            if isinstance(layer, FullLayerCache):
                layer.append(rows, rows)
            else:
                layer.append(rows, rows, cache.offset)
        cache.advance(1)
        mx.eval(cache.arrays())
    assert mx.get_peak_memory() - before < cache.nbytes // 8


def test_growth_is_geometric_and_rounded() -> None:
    layer = FullLayerCache(mx.zeros((1, 1, 0, 2)), mx.zeros((1, 1, 0, 2)))
    capacities: list[int] = []
    for _ in range(3000):
        layer.append(mx.ones((1, 1, 1, 2)), mx.ones((1, 1, 1, 2)))
        if not capacities or layer.capacity != capacities[-1]:
            capacities.append(layer.capacity)
            mx.eval(layer.main_k, layer.main_v)
    assert len(capacities) < 10
    assert capacities[0] == 256


def test_reserve_avoids_moves() -> None:
    cache = _cache(8)
    cache.reserve(700)
    full = cache.layers[1]
    assert isinstance(full, FullLayerCache)
    assert full.capacity == 700
    for length in (300, 300, 100):
        _append(cache, _rows(cache.offset, length, 0))
    assert full.capacity == 700
    assert cache.nbytes == sum(array.nbytes for array in cache.arrays())


def test_restore_refuses_a_snapshot_from_the_future() -> None:
    cache = _cache(4)
    _append(cache, _rows(0, 3, 0))
    ahead = cache.copy()
    _append(ahead, _rows(3, 2, 0))
    with pytest.raises(InvalidRequestError, match="ahead"):
        cache.restore(ahead.snapshot())


def test_snapshot_size_does_not_grow() -> None:
    cache = _cache(4)
    _append(cache, _rows(0, 3, 0))
    small = cache.snapshot().nbytes
    _append(cache, _rows(3, 500, 0))
    assert cache.snapshot().nbytes == small == 2 * HEADS * 4 * DIM * 4


def test_one_position_goes_only_once_after_the_window_has_passed() -> None:
    """The ring's slot of the position before was overwritten: a second cut would bring back what is not there."""
    cache = _cache(3)
    _append(cache, _rows(0, 7, 0))
    cache.trim(1)
    cut = cache.snapshot()
    for each in (cache, cache.copy()):
        assert not each.can_trim(1)
        assert each.can_trim(0)
        with pytest.raises(InvalidRequestError, match="cannot be trimmed"):
            each.trim(1)
    _append(cache, _rows(6, 1, 1))
    assert cache.can_trim(1)
    cache.restore(cut)
    assert not cache.can_trim(1)
    there, _ = unpack(_cache(3), pack(cache, ()))
    assert (there.offset, there.written) == (6, 7)


@given(st.integers(-5, 40))
@settings(max_examples=40, deadline=None)
def test_trim_limits(positions: int) -> None:
    short, long = _cache(8), _cache(8)
    _append(short, _rows(0, 8, 0))
    _append(long, _rows(0, 20, 0))
    assert short.can_trim(positions) == (0 <= positions <= 8)
    assert long.can_trim(positions) == (positions in (0, 1))
