"""Grouped-query attention with sinks, over everything or over a sliding window.

A sink is one logit per head that joins the softmax's denominator and nothing else. Shapes: q [B, heads, L, D],
k and v [B, kv_heads, N, D], sinks [heads]; heads is a multiple of kv_heads and queries share keys in order.
Nothing here allocates L x N scores for a long prompt: rows are cut into blocks, and a window touches its band only.
"""

from __future__ import annotations

import mlx.core as mx

MAX_SCORES = 1 << 25
"""Scores held at a time where no fused kernel avoids them (64 MB in bfloat16)."""

_FUSED_HEAD_DIMS = (64, 80, 128)
_SMALLEST_BAND = 32


def has_fused_attention(head_dim: int) -> bool:
    """Whether MLX attends to a whole prompt without storing the scores: its Metal kernel, for some head sizes."""
    return mx.metal.is_available() and mx.default_device() == mx.Device(mx.gpu) and head_dim in _FUSED_HEAD_DIMS


def attend(q: mx.array, k: mx.array, v: mx.array, sinks: mx.array, mask: str | mx.array | None = None) -> mx.array:
    """softmax(q k^T / sqrt(D)) v with sinks: [B, heads, L, D] in q's dtype. `mask` is boolean, "causal" or None."""
    scale = q.shape[-1] ** -0.5
    return mx.fast.scaled_dot_product_attention(q, k, v, scale=scale, mask=mask, sinks=sinks)


def attend_causal(q: mx.array, k: mx.array, v: mx.array, sinks: mx.array) -> mx.array:
    """Causal attention where the last query sees the last key."""
    length, total, heads = q.shape[2], k.shape[2], q.shape[0] * q.shape[1]
    if length == 1:
        return attend(q, k, v, sinks)
    rows = max(1, MAX_SCORES // (heads * total))
    if rows >= length or has_fused_attention(q.shape[-1]):
        return attend(q, k, v, sinks, "causal")
    before = total - length
    blocks = []
    for start in range(0, length, rows):
        end = min(start + rows, length)
        seen = before + end
        blocks.append(attend(q[:, :, start:end], k[:, :, :seen], v[:, :, :seen], sinks, "causal"))
    return mx.concatenate(blocks, axis=2)


def attend_window(q: mx.array, k: mx.array, v: mx.array, sinks: mx.array, window: int) -> mx.array:
    """Causal attention to the last `window` keys, self included; k and v start at most window - 1 keys before q."""
    length, total = q.shape[2], k.shape[2]
    before = total - length
    if length == 1:
        return attend(q, k, v, sinks)
    block = max(window, _SMALLEST_BAND)
    if length <= block:
        distance = (mx.arange(length) + before)[:, None] - mx.arange(total)[None, :]
        return attend(q, k, v, sinks, (distance >= 0) & (distance < window))
    return _attend_band(q, k, v, sinks, window, block)


def _attend_band(q: mx.array, k: mx.array, v: mx.array, sinks: mx.array, window: int, block: int) -> mx.array:
    """Each block of queries against its own keys and those of the block before it, all blocks as one batch."""
    batch, heads, length, dim = q.shape
    before = k.shape[2] - length
    count = -(-length // block)
    ragged = count * block - length
    queries = _fold(mx.pad(q, [(0, 0), (0, 0), (0, ragged), (0, 0)]), count, block)
    padding = [(0, 0), (0, 0), (block - before, ragged), (0, 0)]
    keys, values = (_pairs(mx.pad(x, padding), count, block) for x in (k, v))
    distance = mx.arange(block)[:, None] - (mx.arange(2 * block) - block)[None, :]
    band = (distance >= 0) & (distance < window)
    if before < window - 1:
        # The first block's predecessor is partly padding.
        real = (mx.arange(count) > 0)[:, None] | (mx.arange(2 * block) >= block - before)[None, :]
        mask = mx.broadcast_to((band[None] & real[:, None])[None], (batch, count, block, 2 * block))
        mask = mask.reshape(batch * count, 1, block, 2 * block)
    else:
        mask = band
    out = attend(queries, keys, values, sinks, mask)
    out = out.reshape(batch, count, heads, block, dim).swapaxes(1, 2)
    return out.reshape(batch, heads, count * block, dim)[:, :, :length]


def _fold(x: mx.array, count: int, block: int) -> mx.array:
    """[B, heads, count * block, D] to [B * count, heads, block, D]."""
    batch, heads, _, dim = x.shape
    return x.reshape(batch, heads, count, block, dim).swapaxes(1, 2).reshape(batch * count, heads, block, dim)


def _pairs(x: mx.array, count: int, block: int) -> mx.array:
    """[B, heads, (count + 1) * block, D] to [B * count, heads, 2 * block, D]: each block after the one before it."""
    batch, heads, _, dim = x.shape
    blocks = x.reshape(batch, heads, count + 1, block, dim)
    pairs = mx.concatenate([blocks[:, :, :-1], blocks[:, :, 1:]], axis=3)
    return pairs.swapaxes(1, 2).reshape(batch * count, heads, 2 * block, dim)
