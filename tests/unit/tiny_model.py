"""A gpt-oss of the smallest useful shape with random weights, in float32, for tests of the engine."""

from __future__ import annotations

from collections.abc import Sequence

import mlx.core as mx
import numpy as np

from mlx_gptoss.config import ModelConfig
from mlx_gptoss.fused import FusedModel
from mlx_gptoss.kernels.backend import StockBackend
from mlx_gptoss.model import GptOssModel
from tests.tiny import random_weights, tiny_config

WINDOW = 8


def tiny_model() -> GptOssModel:
    """Four layers, a window of 8. Make it on the thread that uses it."""
    config = _config()
    return GptOssModel(config, random_weights(config, seed=3), mx.float32)


def tiny_fused_model() -> FusedModel:
    """The same weights through the fused path's own caches and tails, on the kernels' twins."""
    config = _config()
    return FusedModel(config, random_weights(config, seed=3), StockBackend(), mx.float32, tail=4)


def _config() -> ModelConfig:
    return tiny_config(
        sliding_window=WINDOW, hidden_size=64, intermediate_size=32, head_dim=64, max_position_embeddings=4096
    )


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
