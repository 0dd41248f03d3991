"""A gpt-oss of the smallest useful shape with random weights: deterministic, float32, sliding and full layers."""

from __future__ import annotations

from collections.abc import Sequence

import mlx.core as mx
import numpy as np

from mlx_gptoss.config import ModelConfig
from mlx_gptoss.model import GptOssModel
from mlx_gptoss.weights import Experts, LayerWeights, Linear, ModelWeights
from tests.unit.fake_model import tiny_config


def tiny_model(seed: int = 0, dtype: mx.Dtype = mx.float32, **changes: object) -> GptOssModel:
    """Make it on the thread that uses it."""
    config = tiny_config(**{"num_layers": 4, "layer_types": ("sliding_attention", "full_attention") * 2, **changes})
    generator = np.random.default_rng(seed)

    def normal(*shape: int, scale: float) -> mx.array:
        return mx.array((generator.normal(size=shape) * scale).astype(np.float32))

    def linear(rows: int, columns: int, *, bias: bool = True) -> Linear:
        return Linear(
            normal(rows, columns, scale=columns**-0.5), normal(rows, scale=0.1) if bias else None, format="f32"
        )

    def experts(rows: int, columns: int) -> Experts:
        count = config.num_experts
        return Experts(normal(count, rows, scale=0.1), weight=normal(count, rows, columns, scale=2 * columns**-0.5))

    def layer(config: ModelConfig) -> LayerWeights:
        hidden, inner = config.hidden_size, config.intermediate_size
        return LayerWeights(
            attn_norm=mx.ones((hidden,)),
            qkv=linear(config.qkv_size, hidden),
            sinks=normal(config.num_heads, scale=1.0),
            out=linear(hidden, config.q_size),
            mlp_norm=mx.ones((hidden,)),
            router=linear(config.num_experts, hidden),
            gate_up=experts(2 * inner, hidden),
            down=experts(hidden, inner),
        )

    layers = tuple(layer(config) for _ in range(config.num_layers))
    embed = Linear(normal(config.vocab_size, config.hidden_size, scale=1.0), format="f32")
    head = Linear(normal(config.vocab_size, config.hidden_size, scale=0.5), format="f32")
    weights = ModelWeights(embed, layers, mx.ones((config.hidden_size,)), head)
    mx.eval(list(weights.arrays()))
    return GptOssModel(config, weights, dtype)


def greedy_alone(model: GptOssModel, prompt: Sequence[int], count: int) -> tuple[list[int], float]:
    """The greedy continuation by whole forward passes, without a cache, and the smallest gap between the two best
    logits on the way: below about 1e-4 the answer is a matter of rounding."""
    tokens = list(prompt)
    gap = float("inf")
    for _ in range(count):
        logits = np.array(model(mx.array([tokens], dtype=mx.int32))[0, -1])
        best = np.sort(logits)[-2:]
        gap = min(gap, float(best[1] - best[0]))
        tokens.append(int(np.argmax(logits)))
    return tokens[len(prompt) :], gap
