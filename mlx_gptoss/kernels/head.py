"""Final norm and vocabulary projection (metal/head.metal)."""

from __future__ import annotations

import mlx.core as mx

from mlx_gptoss.errors import KernelError
from mlx_gptoss.kernels.backend import Backend
from mlx_gptoss.kernels.layout import (
    check_array,
    check_batch,
    dense_weight,
    linear_arguments,
    rms_norm,
    tile_chunks,
)
from mlx_gptoss.kernels.source import load_kernel
from mlx_gptoss.kernels.tuning import Tuning, tuning_for
from mlx_gptoss.weights import Linear

NAME = "head"


def head(
    x: mx.array,
    norm: mx.array,
    weight: Linear,
    params: mx.array,
    *,
    valid: int,
    backend: Backend,
    tuning: Tuning | None = None,
) -> mx.array:
    """Logits [S, N] float32 of the final norm of x; ids from `valid` on are -inf and their rows are not read.

    x: residual stream [S, K] float32, S = 1..8; norm: [K]; weight: [N, K]; params: `model_params`. Raises KernelError.
    """
    check_batch(x.shape[0], NAME)
    check_array("x", x, (None, weight.columns), (mx.float32,), NAME)
    check_array("norm", norm, (weight.columns,), (mx.float32, mx.bfloat16), NAME)
    if not 1 <= valid <= weight.rows:
        raise KernelError("`valid` counts rows of the weight", got=str(valid), where=NAME)
    if backend.name == "stock":
        return head_twin(x, norm, weight, params, valid=valid)
    weights = linear_arguments(weight, NAME)
    tuning = tuning or tuning_for(backend.family)
    steps = 2 if weight.quantized else tuning.batch_steps(x.shape[0])
    rows = tuning.head.for_weights(weight.quantized).for_batch(x.shape[0], steps=steps)
    batch, columns = x.shape
    threads = 32 * rows.simdgroups
    groups = -(-weight.rows // (rows.simdgroups * rows.rows * rows.passes))
    return backend.launch(
        load_kernel(NAME),
        [x, norm, weights.weight, weights.scales, weights.biases, params],
        [
            ("V", norm.dtype),
            ("W", weights.weight.dtype),
            ("Q", weights.scales.dtype),
            ("FORMAT", weights.format),
            ("GROUP", weights.group),
            ("K", columns),
            ("N", weight.rows),
            ("VALID", valid),
            ("S", batch),
            ("ROWS", rows.rows),
            ("SIMDGROUPS", rows.simdgroups),
            ("TILE", tile_chunks(weights.format, columns, batch, tuning.staged_bytes)),
            ("UNROLL", rows.unroll),
            ("PASSES", rows.passes),
        ],
        (groups * threads, 1, 1),
        (threads, 1, 1),
        [(batch, weight.rows)],
        [mx.float32],
    )[0]


def head_twin(x: mx.array, norm: mx.array, weight: Linear, params: mx.array, *, valid: int) -> mx.array:
    """The same in plain mx, float32 throughout."""
    logits = rms_norm(x, norm, params[0]) @ dense_weight(weight).T
    return mx.where(mx.arange(weight.rows) < valid, logits, -mx.inf)
