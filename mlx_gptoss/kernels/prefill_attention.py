"""Attention of a prompt's positions over the cache (metal/prefill_attention.metal)."""

from __future__ import annotations

import mlx.core as mx

from mlx_gptoss.errors import KernelError
from mlx_gptoss.kernels.backend import Backend
from mlx_gptoss.kernels.layout import HEAD_DIM, check_array
from mlx_gptoss.kernels.source import load_kernel

ATTENTION = "prefill_attention"
ROWS = 128
"""Rows (positions times heads of a group) of one threadgroup."""
THREADS = 128
_TILED = (mx.bfloat16, mx.float16)
_FLOATS = (mx.bfloat16, mx.float16, mx.float32)


def prefill_attention(
    q: mx.array, k: mx.array, v: mx.array, sinks: mx.array, *, offset: int, window: int | None, backend: Backend
) -> mx.array:
    """Causal attention with sinks: [B, L, heads * 64] in q's dtype.

    q: [B, L, heads, 64]; k, v: [B, kv_heads, C, 64] with keys 0 .. offset + L - 1 written (what lies beyond is not
    read); query i sees keys up to offset + i, with `window` only the last `window` of them. sinks: [heads]. float32 and
    groups that do not divide 128 run on the twin. Raises KernelError.
    """
    check_array("q", q, (None, None, None, HEAD_DIM), _FLOATS, ATTENTION)
    batch, length, heads, _ = q.shape
    check_array("k", k, (batch, None, None, HEAD_DIM), (q.dtype,), ATTENTION)
    check_array("v", v, tuple(k.shape), (q.dtype,), ATTENTION)
    check_array("sinks", sinks, (heads,), _FLOATS, ATTENTION)
    kv_heads, capacity = k.shape[1], k.shape[2]
    if heads % kv_heads:
        raise KernelError("heads come in whole groups", got=f"{heads} over {kv_heads}", where=ATTENTION)
    if offset < 0 or offset + length > capacity:
        raise KernelError(
            "the keys of all queries are in the cache", expected=f"at least {offset + length}", got=str(capacity)
        )
    if window is not None and window < 1:
        raise KernelError("a window holds at least the query's own key", got=str(window), where=ATTENTION)
    group = heads // kv_heads
    if backend.name == "stock" or q.dtype not in _TILED or ROWS % group or heads < 8:
        return prefill_attention_twin(q, k, v, sinks, offset=offset, window=window)
    params = mx.array([length, capacity, offset, window or 0, kv_heads, 0, 0, 0], dtype=mx.int32)
    return backend.launch(
        load_kernel(ATTENTION),
        [q, k, v, sinks, params],
        [("T", q.dtype), ("B", sinks.dtype), ("GROUP", group)],
        (-(-length // (ROWS // group)) * THREADS, batch * kv_heads, 1),
        (THREADS, 1, 1),
        [(batch, length, heads * HEAD_DIM)],
        [q.dtype],
    )[0]


def prefill_attention_twin(
    q: mx.array, k: mx.array, v: mx.array, sinks: mx.array, *, offset: int, window: int | None
) -> mx.array:
    """The same in plain mx: a masked product over all keys from the first query's window on."""
    batch, length, heads, _ = q.shape
    first = 0 if window is None else max(0, offset - window + 1)
    keys = mx.arange(first, offset + length)[None]
    last = mx.arange(offset, offset + length)[:, None]
    seen = keys <= last
    if window is not None:
        seen = seen & (keys > last - window)
    y = mx.fast.scaled_dot_product_attention(
        mx.swapaxes(q, 1, 2),
        k[:, :, first : offset + length],
        v[:, :, first : offset + length],
        scale=HEAD_DIM**-0.5,
        mask=seen,
        sinks=sinks.astype(q.dtype),
    )
    return mx.swapaxes(y, 1, 2).reshape(batch, length, heads * HEAD_DIM)
