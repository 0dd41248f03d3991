"""Attention of one new position with sinks (metal/attention_full, attention_sliding and attention_merge).

One launch a sequence, since each sequence has caches of its own. A launch either finishes the attention (`parts` None)
or leaves parts for `attention_merge`, which joins a long context's splits and the sequences of a batch.
"""

from __future__ import annotations

from collections.abc import Sequence

import mlx.core as mx
import numpy as np

from mlx_gptoss.errors import KernelError
from mlx_gptoss.kernels.backend import Backend
from mlx_gptoss.kernels.layout import HEAD_DIM, MAX_BATCH, PART, check_array, check_batch, padded
from mlx_gptoss.kernels.source import load_kernel
from mlx_gptoss.kernels.tuning import Tuning, tuning_for

FULL = "attention_full"
SLIDING = "attention_sliding"
MERGE = "attention_merge"
_CACHES = (mx.bfloat16, mx.float16, mx.float32)
_LOG2_E = 1.4426950408889634
_SCALE = HEAD_DIM**-0.5


def cache_lengths(*, offset: int, n_main: int, n_tail: int, capacity: int, row: int) -> mx.array:
    """int32 [8] of one sequence and step: positions written, valid keys of the main cache and of the tail, the main
    cache's capacity, the sequence's row in the batch."""
    return mx.array([offset, n_main, n_tail, capacity, row, 0, 0, 0], dtype=mx.int32)


def parts_for(n_main: int, tuning: Tuning) -> int:
    """Into how many parts a full layer's main cache is split: a power of two, so that few shapes ever occur."""
    shape = tuning.full
    wanted = max(1, n_main // shape.split_keys)
    return min(shape.max_parts, 1 << (wanted.bit_length() - 1 if wanted & (wanted - 1) == 0 else wanted.bit_length()))


def attention_full(
    q: mx.array,
    k: mx.array,
    v: mx.array,
    main_k: mx.array,
    main_v: mx.array,
    tail_k: mx.array,
    tail_v: mx.array,
    sinks: mx.array,
    lengths: mx.array,
    *,
    parts: int | None = None,
    backend: Backend,
    tuning: Tuning | None = None,
) -> tuple[mx.array, mx.array, mx.array]:
    """Attention over main cache, tail and the new position; (out, new tail_k, new tail_v).

    q: [S, heads, 64] float32; k, v: [S, kv_heads, 64]; main_k, main_v: [kv_heads, C, 64]; tail_k, tail_v:
    [kv_heads, T, 64] with room for one more; sinks: [heads]; lengths: `cache_lengths`. The new tails hold the new
    position behind the old ones; later rows are undefined. Caches may have a leading axis of 1.
    out: [heads, 64] float32, or with `parts` float32 [heads, parts, 68] for `attention_merge`. Raises KernelError.
    """
    heads, kv_heads, dtype = q.shape[1], k.shape[1], k.dtype
    _check(q, k, v, sinks, lengths, FULL)
    for name, cache in (("main_k", main_k), ("main_v", main_v), ("tail_k", tail_k), ("tail_v", tail_v)):
        _check_cache(name, cache, kv_heads, dtype, FULL)
    if main_k.shape != main_v.shape or tail_k.shape != tail_v.shape or not all(main_k.shape) or not all(tail_k.shape):
        raise KernelError("K and V have the same shape, and room", got=f"{main_k.shape}, {tail_k.shape}", where=FULL)
    if backend.name == "stock":
        mains, tails = (_flat(main_k), _flat(main_v)), (_flat(tail_k), _flat(tail_v))
        out, new_k, new_v = attention_full_twin(
            q, k, v, mains[0], mains[1], tails[0], tails[1], sinks, lengths, parts=parts
        )
        return out, new_k.reshape(tail_k.shape), new_v.reshape(tail_v.shape)
    shape = (tuning or tuning_for(backend.family)).full
    threads = 32 * shape.simdgroups
    groups = kv_heads * -(-(heads // kv_heads) // 8)
    out, new_k, new_v = backend.launch(
        load_kernel(FULL),
        [q, k, v, main_k, main_v, tail_k, tail_v, padded(sinks), lengths],
        [
            ("T", dtype),
            ("B", sinks.dtype),
            ("HEADS", heads // kv_heads),
            ("KV_HEADS", kv_heads),
            ("TAIL", tail_k.shape[-2]),
            ("SIMDGROUPS", shape.simdgroups),
            ("UNROLL", shape.unroll),
            ("FINAL", parts is None),
        ],
        ((parts or 1) * threads, groups, 1),
        (threads, 1, 1),
        [(heads, HEAD_DIM) if parts is None else (heads, parts, PART), tail_k.shape, tail_v.shape],
        [mx.float32, dtype, dtype],
    )
    return out, new_k, new_v


def attention_full_twin(
    q: mx.array,
    k: mx.array,
    v: mx.array,
    main_k: mx.array,
    main_v: mx.array,
    tail_k: mx.array,
    tail_v: mx.array,
    sinks: mx.array,
    lengths: mx.array,
    *,
    parts: int | None = None,
) -> tuple[mx.array, mx.array, mx.array]:
    """The same in plain mx, float32 throughout; all of the attention is in the first part."""
    row = lengths[4]
    slots = mx.arange(tail_k.shape[1])
    new = (slots == lengths[2])[None, :, None]
    new_k = mx.where(new, k[row][:, None, :], tail_k)
    new_v = mx.where(new, v[row][:, None, :], tail_v)
    valid = mx.concatenate([mx.arange(main_k.shape[1]) < lengths[1], slots <= lengths[2]])
    keys, values = mx.concatenate([main_k, new_k], axis=1), mx.concatenate([main_v, new_v], axis=1)
    return _attend_twin(q[row], keys, values, valid, sinks, parts), new_k, new_v


def attention_sliding(
    q: mx.array,
    k: mx.array,
    v: mx.array,
    ring_k: mx.array,
    ring_v: mx.array,
    sinks: mx.array,
    lengths: mx.array,
    *,
    parts: int | None = None,
    backend: Backend,
    tuning: Tuning | None = None,
) -> tuple[mx.array, mx.array, mx.array]:
    """Attention over the last W positions, the new one included; (out, new ring_k, new ring_v).

    q, k, v, sinks, lengths as in `attention_full`; ring_k, ring_v: [kv_heads, W, 64], position p in slot p % W. Slots
    of the new rings that no position has reached are undefined. Rings may have a leading axis of 1.
    out: [heads, 64] float32, or with `parts` (1) float32 [heads, 1, 68] for `attention_merge`. Raises KernelError.
    """
    heads, kv_heads, dtype = q.shape[1], k.shape[1], k.dtype
    _check(q, k, v, sinks, lengths, SLIDING)
    _check_cache("ring_k", ring_k, kv_heads, dtype, SLIDING)
    check_array("ring_v", ring_v, ring_k.shape, (dtype,), SLIDING)
    if parts not in (None, 1):
        raise KernelError("a ring is one part", got=str(parts), where=SLIDING)
    if backend.name == "stock":
        out, new_k, new_v = attention_sliding_twin(q, k, v, _flat(ring_k), _flat(ring_v), sinks, lengths, parts=parts)
        return out, new_k.reshape(ring_k.shape), new_v.reshape(ring_v.shape)
    shape = (tuning or tuning_for(backend.family)).sliding
    threads = 32 * shape.simdgroups
    groups = kv_heads * -(-(heads // kv_heads) // 8)
    out, new_k, new_v = backend.launch(
        load_kernel(SLIDING),
        [q, k, v, ring_k, ring_v, padded(sinks), lengths],
        [
            ("T", dtype),
            ("B", sinks.dtype),
            ("HEADS", heads // kv_heads),
            ("KV_HEADS", kv_heads),
            ("WINDOW", ring_k.shape[-2]),
            ("SIMDGROUPS", shape.simdgroups),
            ("UNROLL", shape.unroll),
            ("FINAL", parts is None),
        ],
        (groups * threads, 1, 1),
        (threads, 1, 1),
        [(heads, HEAD_DIM) if parts is None else (heads, 1, PART), ring_k.shape, ring_v.shape],
        [mx.float32, dtype, dtype],
    )
    return out, new_k, new_v


def attention_sliding_twin(
    q: mx.array,
    k: mx.array,
    v: mx.array,
    ring_k: mx.array,
    ring_v: mx.array,
    sinks: mx.array,
    lengths: mx.array,
    *,
    parts: int | None = None,
) -> tuple[mx.array, mx.array, mx.array]:
    """The same in plain mx, float32 throughout."""
    row, window = lengths[4], ring_k.shape[1]
    slots = mx.arange(window)
    new = (slots == lengths[0] % window)[None, :, None]
    new_k = mx.where(new, k[row][:, None, :], ring_k)
    new_v = mx.where(new, v[row][:, None, :], ring_v)
    return _attend_twin(q[row], new_k, new_v, slots <= lengths[0], sinks, parts), new_k, new_v


def attention_merge(
    parts: Sequence[mx.array], sinks: mx.array, counts: mx.array | None = None, *, backend: Backend
) -> mx.array:
    """Attention [S, heads, 64] float32 from the parts of S = 1..8 sequences, each [heads, its parts, 68] float32.

    counts: int32 [8], how many parts each sequence has (built when absent; give it to save that in every layer).
    Raises KernelError.
    """
    check_batch(len(parts), MERGE)
    heads = parts[0].shape[0]
    for part in parts:
        check_array("parts", part, (heads, None, PART), (mx.float32,), MERGE)
    check_array("sinks", sinks, (heads,), (mx.float32, mx.bfloat16), MERGE)
    if backend.name == "stock":
        return attention_merge_twin(parts, sinks)
    if counts is None:
        counts = merge_counts([part.shape[1] for part in parts])
    return backend.launch(
        load_kernel(MERGE),
        [*parts, *[parts[0]] * (MAX_BATCH - len(parts)), padded(sinks), counts],
        [("B", sinks.dtype), ("HEADS", heads), ("S", len(parts))],
        (heads * 128, len(parts), 1),
        (128, 1, 1),
        [(len(parts), heads, HEAD_DIM)],
        [mx.float32],
    )[0]


def merge_counts(counts: Sequence[int]) -> mx.array:
    """int32 [8] for `attention_merge`."""
    return mx.array([*counts, *[0] * (MAX_BATCH - len(counts))], dtype=mx.int32)


def attention_merge_twin(parts: Sequence[mx.array], sinks: mx.array, counts: mx.array | None = None) -> mx.array:
    """The same in plain mx, float32 throughout."""
    rows = []
    for part in parts:
        sums, tops, totals = part[..., :HEAD_DIM], part[..., HEAD_DIM], part[..., HEAD_DIM + 1]
        sink = sinks.astype(mx.float32) * _LOG2_E
        top = mx.maximum(tops.max(axis=1), sink)
        factors = mx.power(2.0, tops - top[:, None])
        denominator = (totals * factors).sum(axis=1) + mx.power(2.0, sink - top)
        rows.append((sums * factors[..., None]).sum(axis=1) / denominator[:, None])
    return mx.stack(rows)


def _attend_twin(
    q: mx.array, keys: mx.array, values: mx.array, valid: mx.array, sinks: mx.array, parts: int | None
) -> mx.array:
    heads, kv_heads = q.shape[0], keys.shape[0]
    keys = mx.where(valid[None, :, None], keys, 0).astype(mx.float32)
    values = mx.where(valid[None, :, None], values, 0).astype(mx.float32)
    queries = q.reshape(kv_heads, heads // kv_heads, HEAD_DIM) * (_SCALE * _LOG2_E)
    scores = mx.where(valid, queries @ mx.swapaxes(keys, 1, 2), -np.inf).reshape(heads, -1)
    top = scores.max(axis=-1)
    powers = mx.power(2.0, scores - top[:, None])
    sums = (powers.reshape(kv_heads, heads // kv_heads, -1) @ values).reshape(heads, HEAD_DIM)
    pad = mx.zeros((heads, PART - HEAD_DIM - 2))
    part = mx.concatenate([sums, top[:, None], powers.sum(axis=-1, keepdims=True), pad], axis=-1)[:, None]
    if parts is None:
        return attention_merge_twin([part], sinks)[0]
    empty = mx.concatenate(
        [
            mx.zeros((heads, parts - 1, HEAD_DIM)),
            mx.full((heads, parts - 1, 1), -1e30),
            mx.zeros((heads, parts - 1, 3)),
        ],
        axis=-1,
    )
    return mx.concatenate([part, empty], axis=1)


def _check_cache(name: str, cache: mx.array, kv_heads: int, dtype: mx.Dtype, where: str) -> None:
    """[kv_heads, C, 64], or the same with a leading 1. Raises KernelError."""
    leading = (1,) if cache.ndim == 4 else ()
    check_array(name, cache, (*leading, kv_heads, None, HEAD_DIM), (dtype,), where)


def _flat(cache: mx.array) -> mx.array:
    return cache.reshape(cache.shape[-3:])


def _check(q: mx.array, k: mx.array, v: mx.array, sinks: mx.array, lengths: mx.array, kernel: str) -> None:
    check_batch(q.shape[0], kernel)
    check_array("k", k, (q.shape[0], None, HEAD_DIM), _CACHES, kernel)
    check_array("v", v, k.shape, (k.dtype,), kernel)
    check_array("q", q, (None, None, HEAD_DIM), (mx.float32,), kernel)
    if q.shape[1] % k.shape[1]:
        raise KernelError("query heads come in whole groups", got=f"{q.shape[1]} of {k.shape[1]}", where=kernel)
    check_array("sinks", sinks, (q.shape[1],), (mx.float32, mx.bfloat16), kernel)
    check_array("lengths", lengths, (8,), (mx.int32,), kernel)
