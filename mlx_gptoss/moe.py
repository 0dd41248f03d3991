"""The mixture of experts: top-k routing, MXFP4 (or dense) expert matrices, clamped SwiGLU."""

from __future__ import annotations

import mlx.core as mx

from mlx_gptoss.errors import InternalError
from mlx_gptoss.linear import project
from mlx_gptoss.weights import MXFP4_BITS, MXFP4_GROUP, Experts, Linear

SORT_FROM = 64
"""Token-expert pairs from which sorting by expert pays: MLX then reads each expert once."""


def route(x: mx.array, router: Linear, k: int) -> tuple[mx.array, mx.array]:
    """The k best experts of each token x [T, H]: indices uint32 [T, k] and weights float32 [T, k] that sum to 1.

    The softmax runs over the k chosen logits only.
    """
    logits = project(x, router)
    experts = mx.argpartition(-logits, kth=k - 1, axis=-1)[:, :k]
    chosen = mx.take_along_axis(logits, experts, axis=-1)
    return experts, mx.softmax(chosen.astype(mx.float32), axis=-1)


def swiglu(gate: mx.array, linear: mx.array, limit: float, alpha: float) -> mx.array:
    """gate * sigmoid(alpha * gate) * (linear + 1), gate clamped above at `limit`, linear to +-`limit`."""
    gate = mx.minimum(gate, limit)
    linear = mx.clip(linear, -limit, limit)
    return gate * mx.sigmoid(alpha * gate) * (linear + 1)


def experts_matmul(x: mx.array, matrix: Experts, experts: mx.array, *, ordered: bool) -> mx.array:
    """x [..., 1, K] times the matrices chosen by `experts` [...], plus their biases: [..., 1, N]."""
    if matrix.blocks is not None and matrix.scales is not None:
        y = mx.gather_qmm(
            x,
            matrix.blocks,
            matrix.scales,
            rhs_indices=experts,
            transpose=True,
            group_size=MXFP4_GROUP,
            bits=MXFP4_BITS,
            mode="mxfp4",
            sorted_indices=ordered,
        )
    elif matrix.weight is not None:
        y = _dense_matmul(x, matrix.weight, experts, ordered=ordered)
    else:
        raise InternalError("an expert matrix has neither MXFP4 blocks nor dense weights")
    return y + matrix.bias[experts][..., None, :]


def _dense_matmul(x: mx.array, weight: mx.array, experts: mx.array, *, ordered: bool) -> mx.array:
    """The same with dense matrices [E, N, K]; where their dtype is not x's (on CPUs), those needed are cast."""
    if weight.dtype != x.dtype and experts.size < weight.shape[0]:
        return x @ weight[experts].astype(x.dtype).swapaxes(-1, -2)
    transposed = weight.astype(x.dtype).swapaxes(1, 2)
    # MLX's CUDA build (0.32.4) mixes experts up when gather_mm is told that they ascend.
    return mx.gather_mm(x, transposed, rhs_indices=experts, sorted_indices=ordered and not mx.cuda.is_available())


def mix(
    x: mx.array,
    experts: mx.array,
    weights: mx.array,
    gate_up: Experts,
    down: Experts,
    limit: float,
    alpha: float,
) -> mx.array:
    """The weighted sum over each token's experts: x [T, H], experts and weights [T, k] to float32 [T, H]."""
    tokens, k = experts.shape
    ordered = experts.size >= SORT_FROM
    if ordered:
        flat = experts.flatten()
        order = mx.argsort(flat)
        chosen, rows = flat[order], x[order // k][:, None, :]
    else:
        chosen, rows = experts, x[:, None, None, :]
    hidden = experts_matmul(rows, gate_up, chosen, ordered=ordered)
    hidden = swiglu(hidden[..., ::2], hidden[..., 1::2], limit, alpha)
    out = experts_matmul(hidden, down, chosen, ordered=ordered)
    out = out[mx.argsort(order)] if ordered else out
    out = out.reshape(tokens, k, -1).astype(mx.float32)
    return (out * weights[..., None]).sum(axis=1)
