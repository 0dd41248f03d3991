"""Bias and rotation of a prompt's queries and keys (metal/prefill_rope.metal)."""

from __future__ import annotations

import mlx.core as mx

from mlx_gptoss.errors import KernelError
from mlx_gptoss.kernels.backend import Backend
from mlx_gptoss.kernels.layout import HEAD_DIM, check_array
from mlx_gptoss.kernels.prefill_tuning import PrefillTuning, prefill_tuning_for
from mlx_gptoss.kernels.source import load_kernel

ROPE = "prefill_rope"
_FLOATS = (mx.bfloat16, mx.float16, mx.float32)


def prefill_rope(
    qkv: mx.array,
    bias: mx.array,
    rope: mx.array,
    *,
    heads: int,
    kv_heads: int,
    backend: Backend,
    tuning: PrefillTuning | None = None,
) -> tuple[mx.array, mx.array, mx.array]:
    """q [L, heads, 64], k and v [kv_heads, L, 64], from the fused projection without its bias.

    qkv: [L, (heads + 2 kv_heads) * 64]; bias: one a column; rope: [L, 64] float32, 32 cosines then 32 sines a position,
    YaRN's concentration included. The outputs have qkv's dtype. Raises KernelError.
    """
    columns = (heads + 2 * kv_heads) * HEAD_DIM
    check_array("qkv", qkv, (None, columns), _FLOATS, ROPE)
    check_array("bias", bias, (columns,), _FLOATS, ROPE)
    length = qkv.shape[0]
    check_array("rope", rope, (length, HEAD_DIM), (mx.float32,), ROPE)
    if heads < 1 or kv_heads < 1:
        raise KernelError("there are heads of both kinds", got=f"{heads} and {kv_heads}", where=ROPE)
    if backend.name == "stock":
        return prefill_rope_twin(qkv, bias, rope, heads=heads, kv_heads=kv_heads)
    threads = (tuning or prefill_tuning_for(backend.family)).rope_threads
    q, k, v = backend.launch(
        load_kernel(ROPE),
        [qkv, bias, rope, mx.array([length, 0, 0, 0, 0, 0, 0, 0], dtype=mx.int32)],
        [("T", qkv.dtype), ("B", bias.dtype), ("HEADS", heads), ("KV_HEADS", kv_heads), ("THREADS", threads)],
        ((heads + 2 * kv_heads) * threads, -(-length // (threads // 8)), 1),
        (threads, 1, 1),
        [(length, heads, HEAD_DIM), (kv_heads, length, HEAD_DIM), (kv_heads, length, HEAD_DIM)],
        [qkv.dtype, qkv.dtype, qkv.dtype],
    )
    return q, k, v


def prefill_rope_twin(
    qkv: mx.array, bias: mx.array, rope: mx.array, *, heads: int, kv_heads: int
) -> tuple[mx.array, mx.array, mx.array]:
    """The same in plain mx, float32 until the end."""
    x = (qkv.astype(mx.float32) + bias.astype(mx.float32)).reshape(qkv.shape[0], -1, HEAD_DIM)
    cosine, sine = rope[:, None, : HEAD_DIM // 2], rope[:, None, HEAD_DIM // 2 :]
    low, high = x[..., : HEAD_DIM // 2], x[..., HEAD_DIM // 2 :]
    turned = mx.concatenate([low * cosine - high * sine, high * cosine + low * sine], axis=-1).astype(qkv.dtype)
    q, k = turned[:, :heads], turned[:, heads : heads + kv_heads]
    v = x[:, heads + kv_heads :].astype(qkv.dtype)
    return q, mx.swapaxes(k, 0, 1), mx.swapaxes(v, 0, 1)
