"""Matrix products and row look-ups for every weight format."""

from __future__ import annotations

import mlx.core as mx

from mlx_gptoss.weights import Linear


def project(x: mx.array, linear: Linear) -> mx.array:
    """x [..., K] times the matrix [N, K] transposed, plus its bias: [..., N] in the promoted dtype of both."""
    if linear.scales is None:
        if linear.bias is None:
            return x @ linear.weight.T
        return mx.addmm(linear.bias, x, linear.weight.T)
    y = mx.quantized_matmul(
        x,
        linear.weight,
        linear.scales,
        linear.biases,
        transpose=True,
        group_size=linear.group_size,
        bits=linear.bits,
        mode=_mode(linear),
    )
    return y if linear.bias is None else y + linear.bias


def look_up(linear: Linear, ids: mx.array, dtype: mx.Dtype) -> mx.array:
    """Rows `ids` [...] of an embedding table [V, K], dequantised: [..., K] in `dtype`."""
    rows = linear.weight[ids]
    if linear.scales is None:
        return rows.astype(dtype)
    return mx.dequantize(
        rows,
        linear.scales[ids],
        None if linear.biases is None else linear.biases[ids],
        group_size=linear.group_size,
        bits=linear.bits,
        mode=_mode(linear),
    ).astype(dtype)


def prepare(linear: Linear, dtype: mx.Dtype) -> Linear:
    """The same matrix with everything that is not packed in `dtype`, lazily; no copy where nothing changes."""

    def cast(array: mx.array | None) -> mx.array | None:
        if array is None or array.dtype in (mx.uint8, mx.uint32):
            return array
        return array.astype(dtype)

    weight = linear.weight if linear.quantized else linear.weight.astype(dtype)
    return Linear(weight, cast(linear.bias), cast(linear.scales), cast(linear.biases), linear.format, linear.group_size)


def _mode(linear: Linear) -> str:
    return "mxfp8" if linear.format == "mxfp8" else "affine"
