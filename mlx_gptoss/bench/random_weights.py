"""Random weights of any gpt-oss shape, made on the device in seconds: speed does not depend on what a model says."""

from __future__ import annotations

import math
from collections.abc import Iterator

import mlx.core as mx

from mlx_gptoss.config import ModelConfig
from mlx_gptoss.errors import InvalidRequestError
from mlx_gptoss.plan.footprint import Precisions
from mlx_gptoss.weights import AFFINE_BITS, MXFP4_GROUP, Experts, LayerWeights, Linear, LinearFormat, ModelWeights

_FORMATS: dict[str, LinearFormat] = {"bf16": "bf16", "mxfp8": "mxfp8", "q8": "q8", "q6": "q6", "q4": "q4"}
_E8M0_BIAS = 127
_BF16_BIAS = 127
_FP4_RMS = 2.93
_GOLDEN = 0x9E3779B9
_E4M3_RMS = 0.6
"""Of the fp8 codes below 2, which is what random bits with a cleared exponent bit are."""


class RandomWeights:
    """Draws the weights of a model part by part; the same seed gives the same weights.

    Values are as large as in a freshly initialised model, so activations stay finite and routing is about even.
    Raises InvalidRequestError for a precision that no folder can have.
    """

    def __init__(self, config: ModelConfig, precisions: Precisions, seed: int = 0) -> None:
        for part in (precisions.attention, precisions.embedding, precisions.head):
            if part not in _FORMATS:
                raise InvalidRequestError("unknown precision", expected=", ".join(_FORMATS), got=part)
        self.config = config
        self.precisions = precisions
        self._drawn = (seed + 1) * 1000

    def layer(self, index: int) -> LayerWeights:
        """One block, evaluated."""
        config, attention = self.config, self.precisions.attention
        hidden, inner = config.hidden_size, config.intermediate_size
        layer = LayerWeights(
            attn_norm=_ones(hidden),
            qkv=self._linear(config.qkv_size, hidden, attention, bias=True),
            sinks=_ones(config.num_heads),
            out=self._linear(hidden, config.q_size, attention, bias=True),
            mlp_norm=_ones(hidden),
            router=self._linear(config.num_experts, hidden, "bf16", bias=True),
            gate_up=self._experts(2 * inner, hidden),
            down=self._experts(hidden, inner),
        )
        mx.eval([*_arrays(layer)])
        return layer

    def embed(self) -> Linear:
        """The embedding table, evaluated."""
        return self._table(self.precisions.embedding, 1.0)

    def head(self) -> Linear:
        """The output head, evaluated."""
        return self._table(self.precisions.head, 2.0 * self.config.hidden_size**-0.5)

    def norm(self) -> mx.array:
        """The last norm."""
        return _ones(self.config.hidden_size)

    def model(self) -> ModelWeights:
        """All of it."""
        layers = tuple(self.layer(index) for index in range(self.config.num_layers))
        return ModelWeights(embed=self.embed(), layers=layers, norm=self.norm(), head=self.head())

    def _table(self, name: str, rms: float) -> Linear:
        table = self._linear(self.config.vocab_size, self.config.hidden_size, name, bias=False, rms=rms)
        mx.eval(table.weight, table.scales, table.biases)
        return table

    def _words(self, *shape: int) -> mx.array:
        """uint32 [*shape] of random bits: MurmurHash3's finaliser over consecutive counters."""
        count = math.prod(shape)
        self._drawn += 1
        x = mx.arange(count, dtype=mx.uint32) + mx.array(self._drawn * _GOLDEN & 0xFFFFFFFF, dtype=mx.uint32)
        for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
            x = (x ^ (x >> shift)) * mx.array(factor, dtype=mx.uint32)
        return (x ^ (x >> 16)).reshape(shape)

    def _dense(self, shape: tuple[int, ...], rms: float) -> mx.array:
        """bfloat16 with random sign and mantissa: evenly spread over +-[1, 2) times a power of two near `rms`."""
        count = math.prod(shape)
        exponent = _BF16_BIAS + round(math.log2(rms / 1.53))
        pair = (exponent << 7) * 0x10001
        words = (self._words(-(-count // 2)) & 0x807F807F) | mx.array(pair, dtype=mx.uint32)
        return words.view(mx.bfloat16)[:count].reshape(shape)

    def _linear(self, rows: int, columns: int, name: str, *, bias: bool, rms: float | None = None) -> Linear:
        kind = _FORMATS[name]
        rms = columns**-0.5 if rms is None else rms
        offset = self._dense((rows,), 0.1) if bias else None
        if kind == "bf16":
            return Linear(self._dense((rows, columns), rms), offset)
        if kind == "mxfp8":
            weight = self._words(rows, columns // 4) & mx.array(0xBFBFBFBF, dtype=mx.uint32)
            exponent = _E8M0_BIAS + round(math.log2(rms / _E4M3_RMS))
            scales = mx.full((rows, columns // 32), exponent, dtype=mx.uint8)
            return Linear(weight, offset, scales, None, kind, 32)
        bits = AFFINE_BITS[kind]
        group = 64 if columns % 64 == 0 else 32
        step = rms * math.sqrt(12) / (1 << bits)
        scales = mx.full((rows, columns // group), step, dtype=mx.bfloat16)
        middle = mx.full((rows, columns // group), -step * ((1 << bits) - 1) / 2, dtype=mx.bfloat16)
        return Linear(self._words(rows, columns * bits // 32), offset, scales, middle, kind, group)

    def _experts(self, rows: int, columns: int) -> Experts:
        count = self.config.num_experts
        exponent = _E8M0_BIAS + round(math.log2(columns**-0.5 / _FP4_RMS))
        scales = mx.full((count, rows, columns // MXFP4_GROUP), exponent, dtype=mx.uint8)
        return Experts(self._dense((count, rows), 0.1), blocks=self._words(count, rows, columns // 8), scales=scales)


def _ones(size: int) -> mx.array:
    return mx.ones((size,), dtype=mx.bfloat16)


def _arrays(layer: LayerWeights) -> Iterator[mx.array]:
    for linear in (layer.qkv, layer.out, layer.router):
        yield from (a for a in (linear.weight, linear.bias, linear.scales, linear.biases) if a is not None)
    for experts in (layer.gate_up, layer.down):
        yield from (a for a in (experts.bias, experts.blocks, experts.scales) if a is not None)
    yield from (layer.attn_norm, layer.mlp_norm, layer.sinks)
