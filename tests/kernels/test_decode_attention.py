"""The attention kernels of a decode step on the shader bench, against a float64 oracle over plain lists of keys."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import mlx.core as mx
import numpy as np
import pytest
from numpy.typing import NDArray

from mlx_gptoss.errors import KernelError
from mlx_gptoss.kernels.attention import (
    attention_full,
    attention_full_twin,
    attention_merge,
    attention_merge_twin,
    attention_sliding,
    attention_sliding_twin,
    cache_lengths,
    parts_for,
)
from mlx_gptoss.kernels.tuning import TUNINGS, Attention
from tests.bench.backend import BenchBackend
from tests.bench.executor import Schedule
from tests.kernels.decode_data import close, floats


def wide(array: mx.array) -> NDArray[np.float64]:
    return np.array(array.astype(mx.float32)).astype(np.float64)


def oracle(q: mx.array, keys: mx.array, values: mx.array, sinks: mx.array) -> NDArray[np.float64]:
    """q [heads, 64] over keys, values [kv_heads, n, 64]: softmax with the sink as one more score without a value."""
    heads, group = q.shape[0], q.shape[0] // keys.shape[0]
    out = np.zeros((heads, 64))
    for h in range(heads):
        scores = np.append(wide(keys)[h // group] @ wide(q)[h] / 8.0, wide(sinks)[h])
        powers = np.exp(scores - scores.max())
        out[h] = powers[:-1] @ wide(values)[h // group] / powers.sum()
    return out


@dataclass(slots=True)
class Position:
    """A new position of a batch, and random sinks."""

    q: mx.array
    k: mx.array
    v: mx.array
    sinks: mx.array


def position(
    rng: np.random.Generator, heads: int, kv_heads: int, batch: int = 1, dtype: mx.Dtype = mx.bfloat16
) -> Position:
    return Position(
        floats(rng, batch, heads, 64, std=3.0),
        floats(rng, batch, kv_heads, 64, dtype=dtype),
        floats(rng, batch, kv_heads, 64, dtype=dtype),
        floats(rng, heads, dtype=mx.bfloat16, std=2.0),
    )


def poisoned(array: mx.array, valid: int) -> mx.array:
    """The array with NaN from position `valid` on: what a kernel may not look at."""
    return mx.where((mx.arange(array.shape[1]) < valid)[None, :, None], array, mx.array(mx.nan, array.dtype))


FULL = {
    "one_key": (0, 0, 16, 8),
    "tail_only": (0, 5, 16, 8),
    "main_only": (40, 0, 64, 8),
    "main_and_tail": (37, 3, 64, 8),
    "tail_full": (64, 7, 64, 8),
    "one_main_key": (1, 0, 1, 8),
    "long": (333, 17, 400, 32),
}


@pytest.mark.parametrize("parts", [None, 1, 3])
@pytest.mark.parametrize("case", FULL)
def test_full(case: str, parts: int | None) -> None:
    n_main, n_tail, capacity, tail = FULL[case]
    rng = np.random.default_rng(n_main)
    p = position(rng, 16, 2, batch=3)
    main = [poisoned(floats(rng, 2, capacity, 64, dtype=mx.bfloat16), n_main) for _ in range(2)]
    tails = [poisoned(floats(rng, 2, tail, 64, dtype=mx.bfloat16), n_tail) for _ in range(2)]
    lengths = cache_lengths(offset=n_main + n_tail, n_main=n_main, n_tail=n_tail, capacity=capacity, row=2)
    out, new_k, new_v = attention_full(
        p.q, p.k, p.v, main[0], main[1], tails[0], tails[1], p.sinks, lengths, parts=parts, backend=BenchBackend()
    )
    if parts is not None:
        out = attention_merge([out], p.sinks, backend=BenchBackend())[0]
    for new, fresh, old in ((new_k, p.k, tails[0]), (new_v, p.v, tails[1])):
        assert mx.array_equal(new[:, :n_tail], old[:, :n_tail])
        assert mx.array_equal(new[:, n_tail], fresh[2])
    keys = mx.concatenate([main[0][:, :n_main], new_k[:, : n_tail + 1]], axis=1)
    values = mx.concatenate([main[1][:, :n_main], new_v[:, : n_tail + 1]], axis=1)
    want = oracle(p.q[2], keys, values, p.sinks)
    np.testing.assert_allclose(wide(out), want, atol=1e-5)
    twin = attention_full_twin(p.q, p.k, p.v, main[0], main[1], tails[0], tails[1], p.sinks, lengths, parts=parts)[0]
    twin = twin if parts is None else attention_merge_twin([twin], p.sinks)[0]
    close(out, twin)


SLIDING = {"first": 0, "filling": 5, "one_before_full": 15, "window_boundary": 16, "wrapped": 37, "slot_zero": 48}


@pytest.mark.parametrize("parts", [None, 1])
@pytest.mark.parametrize("case", SLIDING)
def test_sliding(case: str, parts: int | None) -> None:
    """The ring is filled position by position from a plain list; exactly the last 16 are seen."""
    offset, window = SLIDING[case], 16
    rng = np.random.default_rng(offset)
    history = [floats(rng, 2, 64, dtype=mx.bfloat16) for _ in range(2 * (offset + 1))]
    rings = [mx.full((2, window, 64), mx.nan, dtype=mx.bfloat16) for _ in range(2)]
    for at in range(offset):
        for kind in range(2):
            rings[kind][:, at % window] = history[2 * at + kind]
    p = position(rng, 16, 2)
    p.k, p.v = history[2 * offset][None], history[2 * offset + 1][None]
    lengths = cache_lengths(offset=offset, n_main=0, n_tail=0, capacity=0, row=0)
    out, new_k, new_v = attention_sliding(
        p.q, p.k, p.v, rings[0], rings[1], p.sinks, lengths, parts=parts, backend=BenchBackend()
    )
    if parts is not None:
        out = attention_merge([out], p.sinks, backend=BenchBackend())[0]
    seen = range(max(0, offset - window + 1), offset + 1)
    keys = mx.stack([history[2 * at] for at in seen], axis=1)
    values = mx.stack([history[2 * at + 1] for at in seen], axis=1)
    np.testing.assert_allclose(wide(out), oracle(p.q[0], keys, values, p.sinks), atol=1e-5)
    for at in seen:
        assert mx.array_equal(new_k[:, at % window], history[2 * at])
        assert mx.array_equal(new_v[:, at % window], history[2 * at + 1])
    twin = attention_sliding_twin(p.q, p.k, p.v, rings[0], rings[1], p.sinks, lengths, parts=parts)[0]
    close(out, twin if parts is None else attention_merge_twin([twin], p.sinks)[0])


@pytest.mark.parametrize(("heads", "kv_heads"), [(1, 1), (4, 2), (12, 1), (21, 3)])
@pytest.mark.parametrize("dtype", [mx.bfloat16, mx.float16, mx.float32])
def test_groups_and_dtypes(heads: int, kv_heads: int, dtype: mx.Dtype) -> None:
    rng = np.random.default_rng(heads)
    p = position(rng, heads, kv_heads, dtype=dtype)
    main = [floats(rng, kv_heads, 24, 64, dtype=dtype) for _ in range(2)]
    tails = [floats(rng, kv_heads, 8, 64, dtype=dtype) for _ in range(2)]
    lengths = cache_lengths(offset=25, n_main=21, n_tail=4, capacity=24, row=0)
    args = (p.q, p.k, p.v, main[0], main[1], tails[0], tails[1], p.sinks, lengths)
    close(attention_full(*args, backend=BenchBackend())[0], attention_full_twin(*args)[0])
    ring = (p.q, p.k, p.v, main[0], main[1], p.sinks, lengths)
    close(attention_sliding(*ring, backend=BenchBackend())[0], attention_sliding_twin(*ring)[0])


def test_merge_joins_a_batch_with_different_parts() -> None:
    rng = np.random.default_rng(0)
    sinks = floats(rng, 16, std=2.0)
    counts = [1, 4, 17, 2, 8, 1, 3, 9]
    for batch in (1, 5, 8):
        parts = [floats(rng, 16, count, 68) for count in counts[:batch]]
        parts = [mx.concatenate([part[..., :65], mx.abs(part[..., 65:]) + 0.1], axis=-1) for part in parts]
        close(attention_merge(parts, sinks, backend=BenchBackend()), attention_merge_twin(parts, sinks))


@pytest.mark.parametrize("shift", [-1e4, 0.0, 1e4])
def test_extreme_scores_and_sinks(shift: float) -> None:
    """A sink far above all scores gives zero, one far below is not felt; huge scores do not overflow."""
    rng = np.random.default_rng(0)
    p = position(rng, 8, 1)
    p.sinks = mx.full((8,), shift)
    p.q = p.q * 300.0
    main = [floats(rng, 1, 32, 64, dtype=mx.bfloat16) for _ in range(2)]
    tails = [floats(rng, 1, 8, 64, dtype=mx.bfloat16) for _ in range(2)]
    lengths = cache_lengths(offset=32, n_main=32, n_tail=0, capacity=32, row=0)
    out, new_k, new_v = attention_full(
        p.q, p.k, p.v, main[0], main[1], tails[0], tails[1], p.sinks, lengths, backend=BenchBackend()
    )
    keys, values = mx.concatenate([main[0], new_k[:, :1]], axis=1), mx.concatenate([main[1], new_v[:, :1]], axis=1)
    np.testing.assert_allclose(wide(out), oracle(p.q[0], keys, values, p.sinks), atol=1e-3)


@pytest.mark.parametrize("schedule", ["forward", "reverse", "random"])
def test_schedules(schedule: Schedule) -> None:
    rng = np.random.default_rng(11)
    p = position(rng, 8, 1)
    main = [floats(rng, 1, 64, 64, dtype=mx.bfloat16) for _ in range(2)]
    tails = [floats(rng, 1, 8, 64, dtype=mx.bfloat16) for _ in range(2)]
    lengths = cache_lengths(offset=66, n_main=61, n_tail=5, capacity=64, row=0)
    args = (p.q, p.k, p.v, main[0], main[1], tails[0], tails[1], p.sinks, lengths)
    backend = BenchBackend(schedule=schedule)
    close(attention_full(*args, backend=backend)[0], attention_full_twin(*args)[0])
    parts = attention_full(*args, parts=2, backend=backend)[0]
    close(attention_merge([parts], p.sinks, backend=backend)[0], attention_full_twin(*args)[0])


@pytest.mark.parametrize("shape", [Attention(1, 1), Attention(3, 3), Attention(12, 4), Attention(15, 2)])
@pytest.mark.parametrize("dtype", [mx.bfloat16, mx.float32])
def test_full_with_any_shape_of_threadgroup(shape: Attention, dtype: mx.Dtype) -> None:
    """Blocks that end in the main cache, in the tail and behind the new position; strictly, with checks for races."""
    rng = np.random.default_rng(14)
    p = position(rng, 12, 1, dtype=dtype)
    main = [poisoned(floats(rng, 1, 160, 64, dtype=dtype), 149) for _ in range(2)]
    tails = [poisoned(floats(rng, 1, 64, 64, dtype=dtype), 35) for _ in range(2)]
    lengths = cache_lengths(offset=184, n_main=149, n_tail=35, capacity=160, row=0)
    args = (p.q, p.k, p.v, main[0], main[1], tails[0], tails[1], p.sinks, lengths)
    want, want_k, want_v = attention_full_twin(*args)
    tuning = dataclasses.replace(TUNINGS["bench"], full=shape)
    backend = BenchBackend(strict=True, checked=True, guard="end", schedule="random")
    for parts in (None, 2):
        out, new_k, new_v = attention_full(*args, parts=parts, backend=backend, tuning=tuning)
        close(out if parts is None else attention_merge([out], p.sinks, backend=backend)[0], want)
        assert mx.array_equal(new_k[:, :36], want_k[:, :36])
        assert mx.array_equal(new_v[:, :36], want_v[:, :36])


def test_keys_are_read_once_for_all_heads_of_a_group() -> None:
    rng = np.random.default_rng(12)
    p = position(rng, 16, 2)
    main = [floats(rng, 2, 256, 64, dtype=mx.bfloat16) for _ in range(2)]
    tails = [floats(rng, 2, 8, 64, dtype=mx.bfloat16) for _ in range(2)]
    lengths = cache_lengths(offset=203, n_main=200, n_tail=3, capacity=256, row=0)
    backend = BenchBackend(count_bytes=True)
    attention_full(p.q, p.k, p.v, main[0], main[1], tails[0], tails[1], p.sinks, lengths, parts=2, backend=backend)
    result = backend.results[0]
    for name in ("main_k", "main_v"):
        assert result.bytes_read[name] == 2 * 200 * 128
    for name in ("tail_k", "tail_v"):
        assert result.bytes_read[name] == 2 * 3 * 128
        assert result.bytes_written[name.replace("tail", "next")] == 2 * 4 * 128


def test_ring_is_read_and_written_once() -> None:
    rng = np.random.default_rng(13)
    p = position(rng, 16, 2)
    rings = [floats(rng, 2, 128, 64, dtype=mx.bfloat16) for _ in range(2)]
    backend = BenchBackend(count_bytes=True)
    lengths = cache_lengths(offset=1000, n_main=0, n_tail=0, capacity=0, row=0)
    attention_sliding(p.q, p.k, p.v, rings[0], rings[1], p.sinks, lengths, backend=backend)
    assert backend.results[0].bytes_read["ring_k"] == 2 * 127 * 128
    assert backend.results[0].bytes_written["next_v"] == 2 * 128 * 128


@pytest.mark.parametrize("family", TUNINGS)
def test_parts_grow_by_doubling(family: str) -> None:
    seen = [parts_for(n, TUNINGS[family]) for n in range(0, 140_000, 7)]
    assert seen[0] == 1
    assert seen == sorted(seen)
    assert set(seen) <= {1 << i for i in range(8)}
    assert seen[-1] == TUNINGS[family].full.max_parts


def test_mistakes_are_named() -> None:
    rng = np.random.default_rng(0)
    p = position(rng, 8, 2)
    ring = floats(rng, 2, 16, 64, dtype=mx.bfloat16)
    lengths = cache_lengths(offset=1, n_main=0, n_tail=0, capacity=0, row=0)
    with pytest.raises(KernelError, match="wrong dtype"):
        attention_sliding(p.q, p.k, p.v, ring.astype(mx.float32), ring, p.sinks, lengths, backend=BenchBackend())
    with pytest.raises(KernelError, match="one part"):
        attention_sliding(p.q, p.k, p.v, ring, ring, p.sinks, lengths, parts=2, backend=BenchBackend())
    with pytest.raises(KernelError, match="whole groups"):
        attention_sliding(p.q[:, :7], p.k, p.v, ring, ring, p.sinks[:7], lengths, backend=BenchBackend())
    with pytest.raises(KernelError, match="room"):
        attention_full(p.q, p.k, p.v, ring[:, :0], ring[:, :0], ring, ring, p.sinks, lengths, backend=BenchBackend())
