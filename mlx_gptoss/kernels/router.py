"""RMS norm and router logits (metal/router.metal)."""

from __future__ import annotations

import mlx.core as mx

from mlx_gptoss.kernels.backend import Backend
from mlx_gptoss.kernels.halves import pack_activation, packed_size
from mlx_gptoss.kernels.layout import (
    check_array,
    check_batch,
    dense_weight,
    linear_arguments,
    padded,
    permute_activation,
    rms_norm,
    tile_chunks,
)
from mlx_gptoss.kernels.source import load_kernel
from mlx_gptoss.kernels.tuning import Tuning, tuning_for
from mlx_gptoss.weights import Linear

NAME = "router"


def router(
    x: mx.array,
    norm: mx.array,
    weight: Linear,
    params: mx.array,
    *,
    dtype: mx.Dtype = mx.float32,
    packed: bool = False,
    backend: Backend,
    tuning: Tuning | None = None,
) -> tuple[mx.array, mx.array]:
    """The normed activation and logits [S, E] float32. The activation is permuted, [S, 8, K/32, 4] in `dtype` (float32
    or float16), or `packed` float16 [S, packed_size(K)], see `pack_activation`.

    x: residual stream [S, K] float32, S = 1..8; norm: [K]; weight: dense [E, K] with bias; params: `model_params`.
    Raises KernelError.
    """
    check_batch(x.shape[0], NAME)
    check_array("x", x, (None, weight.columns), (mx.float32,), NAME)
    check_array("norm", norm, (weight.columns,), (mx.float32, mx.bfloat16), NAME)
    if backend.name == "stock" or weight.bias is None or weight.quantized:
        return router_twin(x, norm, weight, params, dtype=dtype, packed=packed)
    arguments = linear_arguments(weight, NAME)
    tuning = tuning or tuning_for(backend.family)
    rows, batch, columns = tuning.router.for_batch(x.shape[0]), x.shape[0], x.shape[1]
    threads = 32 * rows.simdgroups
    groups = -(-weight.rows // (rows.simdgroups * rows.rows))
    t, logits = backend.launch(
        load_kernel(NAME),
        [x, norm, arguments.weight, padded(weight.bias), params],
        [
            ("V", norm.dtype),
            ("W", arguments.weight.dtype),
            ("B", weight.bias.dtype),
            ("A", mx.float16 if packed else dtype),
            ("FORMAT", arguments.format),
            ("K", columns),
            ("E", weight.rows),
            ("S", batch),
            ("ROWS", rows.rows),
            ("SIMDGROUPS", rows.simdgroups),
            ("TILE", tile_chunks(arguments.format, columns, batch, tuning.staged_bytes)),
            ("UNROLL", rows.unroll),
            ("PACKED", packed),
        ],
        (groups * threads, 1, 1),
        (threads, 1, 1),
        [(batch, packed_size(columns)) if packed else (batch, 8, columns // 32, 4), (batch, weight.rows)],
        [mx.float16 if packed else dtype, mx.float32],
    )
    return t, logits


def router_twin(
    x: mx.array,
    norm: mx.array,
    weight: Linear,
    params: mx.array,
    *,
    dtype: mx.Dtype = mx.float32,
    packed: bool = False,
) -> tuple[mx.array, mx.array]:
    """The same in plain mx, float32 throughout."""
    t = rms_norm(x, norm, params[0])
    logits = t @ dense_weight(weight).T
    if weight.bias is not None:
        logits = logits + weight.bias.astype(mx.float32)
    return pack_activation(t) if packed else permute_activation(t).astype(dtype), logits
