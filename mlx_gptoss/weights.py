"""The weights of one model, as typed records of mx.arrays.

Dense arrays are `bfloat16` (or `float32` for checking). Expert blocks keep the released MXFP4 bits.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import mlx.core as mx

LinearFormat = Literal["bf16", "f32", "mxfp8", "q8", "q6", "q4"]
AFFINE_BITS: dict[str, int] = {"q8": 8, "q6": 6, "q4": 4}
MXFP8_BITS = 8
MXFP4_BITS = 4
MXFP4_GROUP = 32


@dataclass(frozen=True, slots=True)
class Linear:
    """A matrix [N, K] (also an embedding table), with an optional bias [N].

    `weight` is bfloat16/float32 [N, K] for the dense formats, else uint32 [N, K * bits / 32] in MLX's packing.
    `scales` is uint8 [N, K / 32] (E8M0) for mxfp8, bfloat16 [N, K / group_size] for the affine formats q8, q6 and
    q4, which also have `biases` of the same shape. `group_size` is 0 for the dense formats.
    """

    weight: mx.array
    bias: mx.array | None = None
    scales: mx.array | None = None
    biases: mx.array | None = None
    format: LinearFormat = "bf16"
    group_size: int = 0

    @property
    def quantized(self) -> bool:
        """Whether `weight` is packed."""
        return self.scales is not None

    @property
    def bits(self) -> int:
        """Bits of one packed weight (16 or 32 for the dense formats)."""
        if self.scales is None:
            return self.weight.itemsize * 8
        return MXFP8_BITS if self.format == "mxfp8" else AFFINE_BITS[self.format]

    @property
    def rows(self) -> int:
        """N: output features, or rows of an embedding table."""
        return self.weight.shape[0]

    @property
    def columns(self) -> int:
        """K: input features, or width of an embedding table."""
        return self.weight.shape[1] if self.scales is None else self.weight.shape[1] * 32 // self.bits


@dataclass(frozen=True, slots=True)
class Experts:
    """One matrix [N, K] for each of E experts, with bias [E, N].

    MXFP4: `blocks` uint32 [E, N, K / 8] (the released uint8 blocks [E, N, K / 32, 16] viewed as words: eight 4-bit
    codes each, low nibble first) and `scales` uint8 [E, N, K / 32] (E8M0, bias 127). Dense: `weight` [E, N, K].
    Rows of gate_up alternate gate, linear, gate, linear, as released.
    """

    bias: mx.array
    blocks: mx.array | None = None
    scales: mx.array | None = None
    weight: mx.array | None = None

    @property
    def num_experts(self) -> int:
        """E."""
        return self.bias.shape[0]

    @property
    def rows(self) -> int:
        """N."""
        return self.bias.shape[1]

    @property
    def columns(self) -> int:
        """K."""
        if self.blocks is not None:
            return self.blocks.shape[-1] * 8
        return 0 if self.weight is None else self.weight.shape[-1]


@dataclass(frozen=True, slots=True)
class LayerWeights:
    """One transformer block. `sinks` is [num_heads]; norms are [H]; `qkv` rows are queries, keys, values."""

    attn_norm: mx.array
    qkv: Linear
    sinks: mx.array
    out: Linear
    mlp_norm: mx.array
    router: Linear
    gate_up: Experts
    down: Experts


@dataclass(frozen=True, slots=True)
class ModelWeights:
    """A whole model: `embed` [V, H], `layers`, `norm` [H], `head` [V, H]."""

    embed: Linear
    layers: tuple[LayerWeights, ...]
    norm: mx.array
    head: Linear

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays."""
        return sum(array.nbytes for array in self.arrays())

    def arrays(self) -> Iterator[mx.array]:
        """Every array, in layer order."""
        yield from record_arrays(self.embed)
        for layer in self.layers:
            yield layer.attn_norm
            yield from record_arrays(layer.qkv)
            yield layer.sinks
            yield from record_arrays(layer.out)
            yield layer.mlp_norm
            yield from record_arrays(layer.router)
            yield from record_arrays(layer.gate_up)
            yield from record_arrays(layer.down)
        yield self.norm
        yield from record_arrays(self.head)


def record_arrays(record: Linear | Experts) -> Iterator[mx.array]:
    """The arrays of one matrix record."""
    fields: tuple[mx.array | None, ...]
    if isinstance(record, Linear):
        fields = (record.weight, record.scales, record.biases, record.bias)
    else:
        fields = (record.blocks, record.scales, record.weight, record.bias)
    yield from (array for array in fields if array is not None)
