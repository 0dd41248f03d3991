"""Attention's output projection with bias and residual (metal/attention_out.metal)."""

from __future__ import annotations

import mlx.core as mx

from mlx_gptoss.kernels.attention import attention_merge_twin
from mlx_gptoss.kernels.backend import Backend, TemplateValue
from mlx_gptoss.kernels.halves import rows_in_halves
from mlx_gptoss.kernels.layout import (
    HEAD_DIM,
    PART,
    check_array,
    check_batch,
    chunk_values,
    dense_weight,
    linear_arguments,
    padded,
    tile_chunks,
)
from mlx_gptoss.kernels.source import load_kernel
from mlx_gptoss.kernels.tuning import Tuning, tuning_for
from mlx_gptoss.weights import Linear

NAME = "attention_out"


def attention_out(
    a: mx.array,
    out: Linear,
    x: mx.array,
    *,
    sinks: mx.array | None = None,
    backend: Backend,
    tuning: Tuning | None = None,
) -> mx.array:
    """x + W a + b: float32 [S, N]. a: [S, K] float32 (or [S, heads, 64]); out: [N, K] with bias; x: [S, N] float32.

    With `sinks` [heads], a is one sequence's parts from `attention_full`, float32 [heads, parts, 68], and merged here.
    Raises KernelError.
    """
    check_batch(x.shape[0], NAME)
    parts = 1
    if sinks is None:
        a = a.reshape(x.shape[0], -1)
        check_array("a", a, (x.shape[0], out.columns), (mx.float32,), NAME)
    else:
        check_array("a", a, (-(-out.columns // HEAD_DIM), None, PART), (mx.float32,), NAME)
        check_array("sinks", sinks, (a.shape[0],), (mx.float32, mx.bfloat16), NAME)
        parts = a.shape[1]
    check_array("x", x, (None if sinks is None else 1, out.rows), (mx.float32,), NAME)
    if backend.name == "stock" or out.bias is None or (sinks is not None and parts == 1):
        return attention_out_twin(a, out, x, sinks=sinks)
    weights = linear_arguments(out, NAME)
    tuning = tuning or tuning_for(backend.family)
    batch = x.shape[0]
    tile = tile_chunks(weights.format, out.columns, batch, tuning.staged_bytes)
    whole = batch == 1 and tile == out.columns // chunk_values(weights.format)
    in_halves = rows_in_halves(tuning.out_halves, tuning, weights, out.columns) if whole else None
    steps = tuning.batch_steps(batch)
    rows = in_halves or tuning.out.for_weights(out.quantized).for_batch(batch, fewest=2, steps=steps)
    threads = 32 * rows.simdgroups
    groups = -(-out.rows // (rows.simdgroups * rows.rows))
    template: list[tuple[str, TemplateValue]] = [
        ("Q", weights.scales.dtype),
        ("B", out.bias.dtype),
        ("C", out.bias.dtype if sinks is None else sinks.dtype),
        ("FORMAT", weights.format),
        ("GROUP", weights.group),
        ("K", out.columns),
        ("N", out.rows),
        ("PARTS", parts),
        ("ROWS", rows.rows),
        ("SIMDGROUPS", rows.simdgroups),
        ("UNROLL", rows.unroll),
    ]
    if in_halves is None:
        template += [("W", weights.weight.dtype), ("S", batch), ("TILE", tile)]
    return backend.launch(
        load_kernel(NAME if in_halves is None else f"{NAME}.halves"),
        [a, weights.weight, weights.scales, weights.biases, out.bias, x, out.bias if sinks is None else padded(sinks)],
        template,
        (groups * threads, 1, 1),
        (threads, 1, 1),
        [(batch, out.rows)],
        [mx.float32],
    )[0]


def attention_out_twin(a: mx.array, out: Linear, x: mx.array, *, sinks: mx.array | None = None) -> mx.array:
    """The same in plain mx, float32 throughout."""
    if sinks is not None:
        a = attention_merge_twin([a], sinks)
    y = a.reshape(x.shape[0], -1) @ dense_weight(out).T
    return x + (y if out.bias is None else y + out.bias.astype(mx.float32))
