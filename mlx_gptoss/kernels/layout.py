"""What the decode kernels' functions share: argument checks, weight arguments, permuted activations, small arrays."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import mlx.core as mx

from mlx_gptoss.errors import KernelError
from mlx_gptoss.weights import AFFINE_BITS, MXFP4_BITS, MXFP4_GROUP, MXFP8_BITS, Experts, Linear

HEAD_DIM = 64
MAX_BATCH = 8
PICKS_PER_SIMDGROUP = 32
"""Of several sequences' experts: a lane has one."""
SMALLEST_INPUT = 8
PART = 68
"""Floats of one head's part of an attention: 64 sums, maximum score, denominator, 2 of padding (see attend.h)."""

_FORMATS = {"q4": 4, "q6": 6, "q8": 8, "bf16": 16, "f32": 32, "mxfp8": 108}
Q4, Q6, Q8, MXFP4, MXFP8 = 4, 6, 8, 104, 108
AFFINE_FORMATS = frozenset((Q4, Q6, Q8))
HALVES_FORMATS = AFFINE_FORMATS | {MXFP8}
"""Formats of dense matrices whose products with one activation may be added up in halves (metal/halves.h)."""


@dataclass(frozen=True, slots=True)
class WeightArguments:
    """A weight as the kernels take it. Formats without scales or biases pass another array in their place, unread."""

    weight: mx.array
    scales: mx.array
    biases: mx.array
    format: int
    group: int


def linear_arguments(linear: Linear, kernel: str) -> WeightArguments:
    """Checks a matrix [N, K] and gives its arguments. Raises KernelError."""
    if linear.columns % 32:
        raise KernelError("K is a multiple of 32", got=str(linear.columns), where=kernel)
    dense = {mx.bfloat16: "bf16", mx.float32: "f32"}.get(linear.weight.dtype)
    if linear.scales is None:
        if dense is None:
            raise KernelError("dense weights are bfloat16 or float32", got=str(linear.weight.dtype), where=kernel)
        return WeightArguments(linear.weight, linear.weight, linear.weight, _FORMATS[dense], 32)
    biases = linear.scales if linear.biases is None else linear.biases
    group = linear.group_size
    chunk = 16 if linear.format == "q6" else 128 // linear.bits
    if linear.weight.dtype != mx.uint32 or group % chunk or linear.columns % group:
        raise KernelError(
            "packed weights are uint32 in whole groups",
            got=f"{linear.weight.dtype}, K {linear.columns}, group {group}",
            where=kernel,
        )
    return WeightArguments(linear.weight, linear.scales, biases, _FORMATS[linear.format], group)


def expert_arguments(experts: Experts, columns: int, kernel: str) -> WeightArguments:
    """Checks E matrices [N, K] and gives their arguments. Raises KernelError."""
    if columns % 32:
        raise KernelError("K is a multiple of 32", got=str(columns), where=kernel)
    shape = (experts.num_experts, experts.rows)
    if experts.blocks is not None and experts.scales is not None:
        check_array("blocks", experts.blocks, (*shape, columns // 8), (mx.uint32,), kernel)
        check_array("scales", experts.scales, (*shape, columns // 32), (mx.uint8,), kernel)
        return WeightArguments(experts.blocks, experts.scales, experts.scales, MXFP4, 32)
    if experts.weight is None:
        raise KernelError("experts have blocks and scales, or a dense weight", where=kernel)
    check_array("weight", experts.weight, (*shape, columns), (mx.bfloat16, mx.float32), kernel)
    code = _FORMATS["bf16" if experts.weight.dtype == mx.bfloat16 else "f32"]
    return WeightArguments(experts.weight, experts.weight, experts.weight, code, 32)


def dense_weight(linear: Linear) -> mx.array:
    """The matrix as float32 [N, K], each weight exact. For twins."""
    if linear.scales is None:
        return linear.weight.astype(mx.float32)
    if linear.biases is None:
        return mx.dequantize(
            linear.weight, linear.scales, group_size=MXFP4_GROUP, bits=MXFP8_BITS, mode="mxfp8", dtype=mx.float32
        )
    return mx.dequantize(
        linear.weight,
        linear.scales.astype(mx.float32),
        linear.biases.astype(mx.float32),
        group_size=linear.group_size,
        bits=AFFINE_BITS[linear.format],
    )


def picked_weight(experts: Experts, picks: mx.array) -> mx.array:
    """The matrices of some experts as float32 [*picks.shape, N, K]. For twins."""
    if experts.blocks is None or experts.scales is None:
        if experts.weight is None:
            raise KernelError("experts have blocks and scales, or a dense weight")
        return experts.weight[picks].astype(mx.float32)
    return mx.dequantize(
        experts.blocks[picks],
        experts.scales[picks],
        group_size=MXFP4_GROUP,
        bits=MXFP4_BITS,
        mode="mxfp4",
        dtype=mx.float32,
    )


def check_array(
    name: str, array: mx.array, shape: Sequence[int | None], dtypes: Sequence[mx.Dtype], kernel: str
) -> None:
    """Raises KernelError unless `array` has this shape (None: any size) and one of these dtypes."""
    fits = array.ndim == len(shape) and all(want in (None, got) for want, got in zip(shape, array.shape, strict=True))
    if not fits:
        wanted = ", ".join("any" if size is None else str(size) for size in shape)
        raise KernelError(f"`{name}` has the wrong shape", expected=f"[{wanted}]", got=str(array.shape), where=kernel)
    if array.dtype not in dtypes:
        wanted = " or ".join(str(dtype) for dtype in dtypes)
        raise KernelError(f"`{name}` has the wrong dtype", expected=wanted, got=str(array.dtype), where=kernel)


def check_batch(count: int, kernel: str) -> None:
    """Raises KernelError unless a batch has 1 to 8 sequences."""
    if not 1 <= count <= MAX_BATCH:
        raise KernelError("a decode batch has 1 to 8 sequences", got=str(count), where=kernel)


def padded(array: mx.array) -> mx.array:
    """A 1-D array with zeros up to the 8 elements that kernels want of an input. Real models never need it."""
    return array if array.size >= SMALLEST_INPUT else mx.pad(array, (0, SMALLEST_INPUT - array.size))


def permute_activation(x: mx.array) -> mx.array:
    """[..., K] to [..., 8, K/32, 4]: float4 j of every block of 32 together, the order of the expert kernels' lanes."""
    blocks = x.reshape(*x.shape[:-1], -1, 8, 4)
    return mx.swapaxes(blocks, -3, -2)


def unpermute_activation(x: mx.array) -> mx.array:
    """[..., 8, K/32, 4] back to [..., K]."""
    return mx.swapaxes(x, -3, -2).reshape(*x.shape[:-3], -1)


def chunk_values(weight_format: int) -> int:
    """Values of a weight that a lane takes at a time (see chunks.h)."""
    return 16 if weight_format == 6 else 128 // (weight_format % 100)


def tile_chunks(weight_format: int, columns: int, batch: int, staged_bytes: int) -> int:
    """Chunks of K staged at a time, so that `batch` activations fit in `staged_bytes` (see project.h)."""
    chunk = chunk_values(weight_format)
    fit = staged_bytes // 16 // (batch * chunk // 4)
    tile = min(columns // chunk, fit if fit % 2 else fit - 1)
    return tile if tile < 32 or tile == columns // chunk else tile // 32 * 32


def model_params(eps: float, limit: float, alpha: float) -> mx.array:
    """float32 [8]: RMS epsilon, SwiGLU clamp and alpha, as the kernels read them."""
    return mx.array([eps, limit, alpha, 0.0, 0.0, 0.0, 0.0, 0.0], dtype=mx.float32)


def rms_norm(x: mx.array, weight: mx.array, eps: mx.array) -> mx.array:
    """The RMS norm in float32, rounded nowhere. For twins."""
    x = x.astype(mx.float32)
    return x * mx.rsqrt(mx.mean(x * x, axis=-1, keepdims=True) + eps) * weight.astype(mx.float32)
