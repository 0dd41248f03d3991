"""Bytes: of weights, of the KV cache, and read for one decoded token."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from mlx_gptoss.config import ModelConfig, YarnConfig

# Bytes a weight takes, scales included: MXFP4 and mxfp8 have a scale byte for 32 weights, affine formats a bf16
# scale and a bf16 bias for 64.
BYTES_PER_WEIGHT: Mapping[str, float] = {
    "bf16": 2.0,
    "mxfp8": 1.0 + 1 / 32,
    "q8": 1.0 + 4 / 64,
    "q6": 0.75 + 4 / 64,
    "q4": 0.5 + 4 / 64,
    "mxfp4": 0.5 + 1 / 32,
}
CACHE_BYTES = 2
"""Bytes of one key or value element (bf16)."""


@dataclass(frozen=True, slots=True)
class Precisions:
    """Formats of the parts whose precision is the user's choice; experts are MXFP4 as released."""

    attention: str = "bf16"
    embedding: str = "bf16"
    head: str = "bf16"
    experts: str = "mxfp4"

    @property
    def label(self) -> str:
        same = self.attention == self.embedding == self.head
        return self.attention if same else f"{self.attention}/{self.embedding}/{self.head}"


@dataclass(frozen=True, slots=True)
class Footprint:
    """Bytes of a model's weights by part."""

    attention: int
    experts: int
    router: int
    embedding: int
    head: int

    @property
    def total(self) -> int:
        return self.attention + self.experts + self.router + self.embedding + self.head


def _attention_weights(config: ModelConfig) -> int:
    return config.hidden_size * config.qkv_size + config.q_size * config.hidden_size


def _expert_weights(config: ModelConfig) -> int:
    return 3 * config.hidden_size * config.intermediate_size


def _expert_bias_bytes(config: ModelConfig) -> int:
    return 2 * (2 * config.intermediate_size + config.hidden_size)


def footprint(config: ModelConfig, precisions: Precisions) -> Footprint:
    """Bytes of all weights, biases, norms and sinks at these precisions."""
    layers, vocabulary = config.num_layers, config.vocab_size * config.hidden_size
    small = 2 * (config.qkv_size + 3 * config.hidden_size + config.num_heads)
    attention = _attention_weights(config) * BYTES_PER_WEIGHT[precisions.attention] + small
    expert = _expert_weights(config) * BYTES_PER_WEIGHT[precisions.experts] + _expert_bias_bytes(config)
    return Footprint(
        attention=int(layers * attention),
        experts=int(layers * config.num_experts * expert),
        router=layers * 2 * (config.hidden_size + 1) * config.num_experts,
        embedding=int(vocabulary * BYTES_PER_WEIGHT[precisions.embedding]),
        head=int(vocabulary * BYTES_PER_WEIGHT[precisions.head]),
    )


def kv_bytes(config: ModelConfig, context: int) -> int:
    """Bytes of one conversation's cache at a length: full layers grow, sliding layers stop at the window."""
    element = 2 * config.num_kv_heads * config.head_dim * CACHE_BYTES
    full = sum(1 for layer in range(config.num_layers) if not config.is_sliding(layer))
    sliding = config.num_layers - full
    return element * (full * context + sliding * min(context, config.sliding_window))


def token_bytes(config: ModelConfig, precisions: Precisions, context: int, batch: int = 1) -> int:
    """Bytes read for one decode step of `batch` sequences at a context: weights once, experts as far as they differ.

    With several sequences the number of different experts a layer reads is the expectation under even routing.
    """
    experts, top = config.num_experts, config.experts_per_token
    touched = experts * (1 - (1 - top / experts) ** batch)
    expert = _expert_weights(config) * BYTES_PER_WEIGHT[precisions.experts] + _expert_bias_bytes(config)
    attention = _attention_weights(config) * BYTES_PER_WEIGHT[precisions.attention]
    router = 2 * config.hidden_size * experts
    head = config.used_vocab_size * config.hidden_size * BYTES_PER_WEIGHT[precisions.head]
    return int(config.num_layers * (attention + touched * expert + router) + head + batch * kv_bytes(config, context))


def prefill_flops(config: ModelConfig, context: int) -> float:
    """Floating-point operations of prefilling one token at a context (two a multiply-add)."""
    dense = _attention_weights(config) + config.hidden_size * config.num_experts
    routed = config.experts_per_token * _expert_weights(config)
    scores = 0.0
    for layer in range(config.num_layers):
        keys = min(context, config.sliding_window) if config.is_sliding(layer) else context / 2
        scores += 2 * config.num_heads * config.head_dim * keys
    return 2.0 * (config.num_layers * (dense + routed) + scores)


def released_config(name: str) -> ModelConfig:
    """The shape of openai/gpt-oss-20b or openai/gpt-oss-120b (their published config.json)."""
    base = ModelConfig(
        num_layers=24,
        hidden_size=2880,
        intermediate_size=2880,
        num_experts=32,
        experts_per_token=4,
        num_heads=64,
        num_kv_heads=8,
        head_dim=64,
        sliding_window=128,
        layer_types=("sliding_attention", "full_attention") * 12,
        vocab_size=201_088,
        rope_theta=150_000.0,
        yarn=YarnConfig(
            factor=32.0, original_max_position_embeddings=4096, beta_fast=32.0, beta_slow=1.0, truncate=False
        ),
        max_position_embeddings=131_072,
    )
    if name.endswith("120b"):
        return replace(base, num_layers=36, num_experts=128, layer_types=("sliding_attention", "full_attention") * 18)
    return base
