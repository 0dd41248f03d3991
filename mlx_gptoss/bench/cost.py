"""Bytes and arithmetic of one model's work, from the weights it really has."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mlx_gptoss.config import ModelConfig
from mlx_gptoss.plan.footprint import kv_bytes, prefill_flops
from mlx_gptoss.weights import Experts, LayerWeights, Linear, ModelWeights, record_arrays


@dataclass(frozen=True, slots=True)
class StoredBytes:
    """Bytes of a model's weights by how a step uses them: `dense` always, `experts` as far as chosen, `head` once."""

    dense: int
    experts: int
    head: int

    @classmethod
    def of_parts(cls, layers: Sequence[StoredBytes], head: Linear) -> StoredBytes:
        """Of a model from its layers' (`of_layer`) and its head."""
        return cls(sum(layer.dense for layer in layers), sum(layer.experts for layer in layers), _nbytes(head))

    @classmethod
    def of_layer(cls, layer: LayerWeights) -> StoredBytes:
        """Of one block."""
        dense = sum(_nbytes(linear) for linear in (layer.qkv, layer.out, layer.router))
        return cls(dense, _nbytes(layer.gate_up) + _nbytes(layer.down), 0)

    @classmethod
    def of_model(cls, weights: ModelWeights) -> StoredBytes:
        """Of a whole model."""
        return cls.of_parts([cls.of_layer(layer) for layer in weights.layers], weights.head)


def step_bytes(config: ModelConfig, stored: StoredBytes, context: int, batch: int) -> int:
    """Bytes that one decode step of `batch` sequences has to read, under even routing (see plan.footprint)."""
    used = config.used_vocab_size / config.vocab_size
    layers = stored.dense + stored.experts * _touched(config, batch)
    return int(layers + stored.head * used + batch * kv_bytes(config, context))


def prompt_bytes(config: ModelConfig, stored: StoredBytes, length: int) -> int:
    """Bytes of the layers' weights that a prompt of `length` tokens touches, each read once."""
    return int(stored.dense + stored.experts * _touched(config, length))


def prompt_flops(config: ModelConfig, length: int) -> float:
    """Floating-point operations of a whole prompt; the last layer counts like all others."""
    return prefill_flops(config, length) * length


def _touched(config: ModelConfig, rows: int) -> float:
    return float(1 - (1 - config.experts_per_token / config.num_experts) ** rows)


def _nbytes(record: Linear | Experts) -> int:
    return sum(array.nbytes for array in record_arrays(record))
