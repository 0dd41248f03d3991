"""Number formats of the shipped weights, and rounding to them while training."""

from __future__ import annotations

import torch
from torch import Tensor

BLOCK = 32
VALUES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)  # FP4 E2M1; codes 8 to 15 are the same, negative


def scale_exponents(blocks: Tensor) -> Tensor:
    """Power of two per block such that the largest value needs no clipping: 6 * 2^e >= max."""
    largest = blocks.abs().amax(dim=-1, keepdim=True).clamp_min(2.0**-100)
    return torch.ceil(torch.log2(largest / 6.0))


def mxfp4(weight: Tensor) -> Tensor:
    """`weight` [..., K] rounded to MXFP4 in blocks of 32 along K; fp32 in and out."""
    blocks = weight.float().unflatten(-1, (-1, BLOCK))
    scale = torch.exp2(scale_exponents(blocks))
    x = blocks / scale
    # Spacing of E2M1: 0.5 below 2, 1 below 4, 2 above.
    size = x.abs()
    step = torch.where(size < 2.0, 0.5, torch.where(size < 4.0, 1.0, 2.0))
    return (torch.round(x / step) * step * scale).flatten(-2)


def mxfp4_codes(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Blocks u8 [..., K/32, 16] (low nibble first) and scales u8 [..., K/32] of weights already on the grid.

    Raises ValueError when a weight is off the grid.
    """
    blocks = weight.float().unflatten(-1, (-1, BLOCK))
    exponents = scale_exponents(blocks)
    x = blocks / torch.exp2(exponents)
    table = torch.tensor(VALUES)
    size = x.abs()
    codes = (size[..., None] - table).abs().argmin(-1)
    if not torch.equal(table[codes], size):
        raise ValueError("a weight is not an MXFP4 value")
    codes = codes + 8 * (x < 0)
    packed = codes[..., 0::2] | codes[..., 1::2] << 4
    return packed.to(torch.uint8), (exponents.squeeze(-1) + 127).to(torch.uint8)


def short_bf16(weight: Tensor, bits: int) -> Tensor:
    """fp32 values rounded to `bits` bits of mantissa (bf16 has 7): the rest are zeros, which compress away."""
    mantissa, exponent = torch.frexp(weight.float())
    scale = float(2 ** (bits + 1))
    return torch.ldexp(torch.round(mantissa * scale) / scale, exponent)
