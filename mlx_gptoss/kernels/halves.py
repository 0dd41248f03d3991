"""Activations as packed halves, for kernels that multiply two halves at a time (metal/halves.h)."""

from __future__ import annotations

import dataclasses

import mlx.core as mx

from mlx_gptoss.kernels.layout import AFFINE_FORMATS, HALVES_FORMATS, Q6, WeightArguments, chunk_values
from mlx_gptoss.kernels.tuning import Rows, Tuning


def packed_size(columns: int) -> int:
    """Halves that `columns` values take, packed: themselves, and a float for each 32, in whole 16 bytes."""
    blocks = columns // 32
    return 8 * (4 * blocks + -(-blocks // 4))


def pack_activation(x: mx.array) -> mx.array:
    """[..., K] to float16 [..., packed_size(K)]: each block of 32 times the power of two that brings its largest
    magnitude to 2^14 .. 2^15, and those powers' inverses."""
    count, rows = x.shape[-1] // 32, x.shape[:-1]
    blocks = x.astype(mx.float32).reshape(*rows, count, 32)
    exponent = mx.maximum(mx.abs(blocks).max(axis=-1).view(mx.uint32) >> 23, 30)
    up, down = (268 - exponent) << 23, (exponent - 14) << 23
    halves = (blocks * up.view(mx.float32)[..., None]).astype(mx.float16)
    # [word, block, pair, half] of [block, word, half, pair].
    halves = halves.reshape(-1, count, 4, 2, 4).transpose(0, 2, 1, 4, 3).reshape(*rows, 32 * count)
    down = mx.pad(down, [(0, 0)] * len(rows) + [(0, -count % 4)])
    return mx.concatenate([halves.view(mx.uint16), down.view(mx.uint16)], axis=-1).view(mx.float16)


def unpack_activation(packed: mx.array, columns: int) -> mx.array:
    """float16 [..., packed_size(columns)] back to float32 [..., columns]."""
    count, rows = columns // 32, packed.shape[:-1]
    bits = packed.view(mx.uint16)
    halves = bits[..., :columns].view(mx.float16).astype(mx.float32)
    halves = halves.reshape(-1, 4, count, 4, 2).transpose(0, 2, 1, 4, 3).reshape(*rows, count, 32)
    down = mx.contiguous(bits[..., columns : columns + 2 * count]).view(mx.float32)
    return (halves * down[..., None]).reshape(*rows, columns)


def halves_chunk(weight_format: int, columns: int) -> int:
    """Values of a dense matrix's row that a lane takes at a time in halves (packed.h)."""
    return 32 if weight_format == Q6 and columns % 1024 == 0 else chunk_values(weight_format)


def rows_in_halves(rows: Rows | None, tuning: Tuning, weights: WeightArguments, columns: int) -> Rows | None:
    """`rows`, which are for steps of 16 values a lane, for one activation's products with a dense matrix where they are
    added up in halves, else None."""
    if rows is None or not tuning.halves or weights.format not in HALVES_FORMATS:
        return None
    # Lanes hold the scales of affine formats in pairs (held_scales.h).
    affine = weights.format in AFFINE_FORMATS
    if affine and (weights.scales.itemsize != 2 or weights.group not in (32, 64, 128)):
        return None
    return dataclasses.replace(rows, unroll=max(1, rows.unroll * 16 // halves_chunk(weights.format, columns)))
