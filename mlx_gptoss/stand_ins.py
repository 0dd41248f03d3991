"""What runs in the place of a kernel that is off, where its twin would be too slow or too large: the same in MLX's own
fused operations. Twins multiply in float32 over unpacked weights, since they are the truth that kernels are held to;
these multiply packed weights as they are. Signatures are those of the kernels' functions."""

from __future__ import annotations

import mlx.core as mx

from mlx_gptoss.attention import attend_causal, attend_window
from mlx_gptoss.kernels.attention import attention_merge_twin
from mlx_gptoss.kernels.backend import Backend
from mlx_gptoss.kernels.halves import pack_activation, unpack_activation
from mlx_gptoss.kernels.layout import padded, permute_activation, rms_norm, unpermute_activation
from mlx_gptoss.kernels.qkv import split_heads
from mlx_gptoss.kernels.tuning import Tuning
from mlx_gptoss.linear import project
from mlx_gptoss.moe import experts_matmul
from mlx_gptoss.weights import Experts, Linear


def qkv_rope_stand_in(
    x: mx.array,
    norm: mx.array,
    qkv: Linear,
    rope: mx.array,
    params: mx.array,
    *,
    heads: int,
    kv_heads: int,
    dtype: mx.Dtype,
    backend: Backend,
    tuning: Tuning | None = None,
) -> tuple[mx.array, mx.array, mx.array]:
    """See `qkv_rope`."""
    del backend, tuning
    y = project(rms_norm(x, norm, params[0]).astype(_input_dtype(qkv)), qkv).astype(mx.float32)
    return split_heads(y, rope, heads=heads, kv_heads=kv_heads, dtype=dtype)


def attention_out_stand_in(
    a: mx.array,
    out: Linear,
    x: mx.array,
    *,
    sinks: mx.array | None = None,
    backend: Backend,
    tuning: Tuning | None = None,
) -> mx.array:
    """See `attention_out`."""
    del backend, tuning
    if sinks is not None:
        a = attention_merge_twin([a], sinks)
    return x + project(a.reshape(x.shape[0], -1).astype(_input_dtype(out)), out)


def head_stand_in(
    x: mx.array,
    norm: mx.array,
    weight: Linear,
    params: mx.array,
    *,
    valid: int,
    backend: Backend,
    tuning: Tuning | None = None,
) -> mx.array:
    """See `head`."""
    del backend, tuning
    logits = project(rms_norm(x, norm, params[0]).astype(_input_dtype(weight)), weight).astype(mx.float32)
    return mx.where(mx.arange(weight.rows) < valid, logits, -mx.inf)


def moe_gate_up_stand_in(
    t: mx.array,
    logits: mx.array,
    gate_up: Experts,
    params: mx.array,
    *,
    top_k: int,
    backend: Backend,
    tuning: Tuning | None = None,
) -> tuple[mx.array, mx.array, mx.array]:
    """See `moe_gate_up`."""
    del backend, tuning
    picks = mx.argsort(-logits, axis=-1)[:, :top_k]
    shares = mx.softmax(mx.take_along_axis(logits, picks, axis=-1), axis=-1, precise=True)
    packed = t.ndim == 2
    x = unpack_activation(t, gate_up.columns) if packed else unpermute_activation(t).astype(mx.float32)
    x = x[:, None, None]
    y = experts_matmul(x, gate_up, picks, ordered=False).squeeze(2).astype(mx.float32)
    gate, linear = mx.minimum(y[..., ::2], params[1]), mx.clip(y[..., 1::2], -params[1], params[1])
    h = gate * mx.sigmoid(params[2] * gate) * (linear + 1.0)
    flat = padded(picks.reshape(-1).astype(mx.int32)), padded(shares.reshape(-1))
    return pack_activation(h.reshape(-1, h.shape[-1])) if packed else permute_activation(h).astype(t.dtype), *flat


def moe_down_stand_in(
    h: mx.array,
    picks: mx.array,
    weights: mx.array,
    down: Experts,
    x: mx.array,
    *,
    backend: Backend,
    tuning: Tuning | None = None,
) -> mx.array:
    """See `moe_down`."""
    del backend, tuning
    if h.ndim == 2:
        plain = unpack_activation(h, down.columns).reshape(x.shape[0], -1, down.columns)
    else:
        plain = unpermute_activation(h).astype(mx.float32)
    batch, top_k = plain.shape[:2]
    chosen, shares = picks[: batch * top_k].reshape(batch, top_k), weights[: batch * top_k].reshape(batch, top_k, 1)
    y = experts_matmul(plain[:, :, None], down, chosen, ordered=False).squeeze(2)
    return x + (shares * y.astype(mx.float32)).sum(axis=1)


def prefill_attention_stand_in(
    q: mx.array, k: mx.array, v: mx.array, sinks: mx.array, *, offset: int, window: int | None, backend: Backend
) -> mx.array:
    """See `prefill_attention`. Never holds the scores of a long prompt at once."""
    del backend
    batch, length, heads, dim = q.shape
    first = 0 if window is None else max(0, offset - window + 1)
    keys, values = k[:, :, first : offset + length], v[:, :, first : offset + length]
    queries, sinks = mx.swapaxes(q, 1, 2), sinks.astype(q.dtype)
    if window is None:
        y = attend_causal(queries, keys, values, sinks)
    else:
        y = attend_window(queries, keys, values, sinks, window)
    return mx.swapaxes(y, 1, 2).reshape(batch, length, heads * dim)


def _input_dtype(linear: Linear) -> mx.Dtype:
    """What activations become to meet a matrix: its own dtype, bfloat16 where that is packed bits alone."""
    if linear.scales is None:
        return linear.weight.dtype
    return mx.bfloat16 if linear.biases is None else linear.scales.dtype
