"""RMS norm, QKV projection, bias and rotation in one launch (metal/qkv_rope.metal)."""

from __future__ import annotations

import mlx.core as mx

from mlx_gptoss.errors import KernelError
from mlx_gptoss.kernels.backend import Backend, TemplateValue
from mlx_gptoss.kernels.halves import rows_in_halves
from mlx_gptoss.kernels.layout import (
    HEAD_DIM,
    check_array,
    check_batch,
    chunk_values,
    dense_weight,
    linear_arguments,
    rms_norm,
    tile_chunks,
)
from mlx_gptoss.kernels.source import load_kernel
from mlx_gptoss.kernels.tuning import Tuning, tuning_for
from mlx_gptoss.weights import Linear

NAME = "qkv_rope"
_FLOATS = (mx.float32, mx.bfloat16)


def qkv_rope(
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
    """Queries [S, heads, 64] float32 and keys, values [S, kv_heads, 64] in `dtype`, rotated.

    x: residual stream [S, K] float32, S = 1..8. norm: [K]. qkv: [(heads + 2 kv_heads) * 64, K] with bias.
    rope: float32 [S, 64], 32 cosines then 32 sines for each sequence's position, concentration included.
    params: see `model_params`. Raises KernelError.
    """
    _check(x, norm, qkv, rope, heads, kv_heads)
    if backend.name == "stock" or qkv.bias is None:
        return qkv_rope_twin(x, norm, qkv, rope, params, heads=heads, kv_heads=kv_heads, dtype=dtype)
    weights = linear_arguments(qkv, NAME)
    tuning = tuning or tuning_for(backend.family)
    batch, columns = x.shape
    tile = tile_chunks(weights.format, columns, batch, tuning.staged_bytes)
    whole = batch == 1 and tile == columns // chunk_values(weights.format)
    in_halves = rows_in_halves(tuning.qkv_halves, tuning, weights, columns) if whole else None
    alone = in_halves or (tuning.qkv_alone if whole and not qkv.quantized else None)
    rows = alone or tuning.qkv.for_weights(qkv.quantized).for_batch(batch, steps=tuning.batch_steps(batch))
    stagers = rows.stagers if whole else 0
    if rows.rows % 2:
        raise KernelError("a simdgroup takes pairs of rows", got=str(rows), where=NAME)
    pairs = (heads + 2 * kv_heads) * HEAD_DIM // 2
    groups = -(-pairs // (rows.simdgroups * rows.rows // 2))
    threads = 32 * (rows.simdgroups + stagers)
    template: list[tuple[str, TemplateValue]] = [
        ("N", norm.dtype),
        ("Q", weights.scales.dtype),
        ("B", qkv.bias.dtype),
        ("T", dtype),
        ("FORMAT", weights.format),
        ("GROUP", weights.group),
        ("K", columns),
        ("HEADS", heads),
        ("KV_HEADS", kv_heads),
        ("ROWS", rows.rows),
        ("SIMDGROUPS", rows.simdgroups),
        ("STAGERS", stagers),
        ("UNROLL", rows.unroll),
    ]
    if in_halves is None:
        template += [("W", weights.weight.dtype), ("S", batch), ("TILE", tile)]
    q, k, v = backend.launch(
        load_kernel(NAME if in_halves is None else f"{NAME}.halves"),
        [x, norm, weights.weight, weights.scales, weights.biases, qkv.bias, rope, params],
        template,
        (groups * threads, 1, 1),
        (threads, 1, 1),
        [(batch, heads, HEAD_DIM), (batch, kv_heads, HEAD_DIM), (batch, kv_heads, HEAD_DIM)],
        [mx.float32, dtype, dtype],
    )
    return q, k, v


def qkv_rope_twin(
    x: mx.array,
    norm: mx.array,
    qkv: Linear,
    rope: mx.array,
    params: mx.array,
    *,
    heads: int,
    kv_heads: int,
    dtype: mx.Dtype,
) -> tuple[mx.array, mx.array, mx.array]:
    """The same in plain mx, float32 throughout."""
    t = rms_norm(x, norm, params[0])
    y = t @ dense_weight(qkv).T
    if qkv.bias is not None:
        y = y + qkv.bias.astype(mx.float32)
    return split_heads(y, rope, heads=heads, kv_heads=kv_heads, dtype=dtype)


def split_heads(
    y: mx.array, rope: mx.array, *, heads: int, kv_heads: int, dtype: mx.Dtype
) -> tuple[mx.array, mx.array, mx.array]:
    """A projection [S, (heads + 2 kv_heads) * 64] with its bias as rotated queries and keys, and values."""
    y = y.reshape(y.shape[0], heads + 2 * kv_heads, HEAD_DIM)
    cosine, sine = rope[:, None, :32], rope[:, None, 32:]
    low, high = y[..., :32], y[..., 32:]
    rotated = mx.concatenate([low * cosine - high * sine, high * cosine + low * sine], axis=-1)
    k = rotated[:, heads : heads + kv_heads]
    return rotated[:, :heads], k.astype(dtype), y[:, heads + kv_heads :].astype(dtype)


def _check(x: mx.array, norm: mx.array, qkv: Linear, rope: mx.array, heads: int, kv_heads: int) -> None:
    check_batch(x.shape[0], NAME)
    check_array("x", x, (None, qkv.columns), (mx.float32,), NAME)
    check_array("norm", norm, (qkv.columns,), _FLOATS, NAME)
    check_array("rope", rope, (x.shape[0], HEAD_DIM), (mx.float32,), NAME)
    rows = (heads + 2 * kv_heads) * HEAD_DIM
    check_array("weight", qkv.weight, (rows, None), (mx.float32, mx.bfloat16, mx.uint32), NAME)
    if qkv.bias is not None:
        check_array("bias", qkv.bias, (rows,), _FLOATS, NAME)
