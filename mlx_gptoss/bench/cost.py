"""Bytes and arithmetic of one model's work, from the weights it really has."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mlx_gptoss.config import ModelConfig
from mlx_gptoss.plan.footprint import kv_bytes
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
    """Bytes of the weights that a prompt of `length` tokens has to read, each once: the last layer's experts, and the
    head, for its last position only."""
    used = config.used_vocab_size / config.vocab_size
    layers = config.num_layers
    experts = ((layers - 1) * _touched(config, length) + _touched(config, 1)) / layers
    return int(stored.dense + stored.experts * experts + stored.head * used)


def prompt_flops(config: ModelConfig, length: int) -> float:
    """Floating-point operations that a prompt of `length` tokens takes at least, two a multiply-add.

    Of the last layer all positions need keys and values; queries, attention, experts and the head are for the last
    position alone. Both engines leave the rest out (ours projects the last layer's queries with the keys, uncounted).
    """
    hidden, final = config.hidden_size, config.num_layers - 1
    routed = config.experts_per_token * 3 * hidden * config.intermediate_size
    after = hidden * (config.q_size + config.num_experts) + routed
    keys_values = length * hidden * 2 * config.kv_size
    total = final * length * (hidden * config.qkv_size + after)
    total += sum(2 * config.q_size * _pairs(config, layer, length) for layer in range(final))
    total += keys_values + hidden * config.q_size + after + 2 * config.q_size * _seen(config, final, length)
    return 2.0 * (total + hidden * config.used_vocab_size)


def _seen(config: ModelConfig, layer: int, length: int) -> int:
    """Keys that the last of `length` positions attends to."""
    return min(length, config.sliding_window) if config.is_sliding(layer) else length


def _pairs(config: ModelConfig, layer: int, length: int) -> int:
    """Keys that all `length` positions attend to, added up."""
    seen = _seen(config, layer, length)
    return seen * (seen + 1) // 2 + (length - seen) * seen


def _touched(config: ModelConfig, rows: int) -> float:
    return float(1 - (1 - config.experts_per_token / config.num_experts) ** rows)


def _nbytes(record: Linear | Experts) -> int:
    return sum(array.nbytes for array in record_arrays(record))
