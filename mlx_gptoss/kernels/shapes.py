"""The sizes of a model that its kernels are checked at."""

from __future__ import annotations

from dataclasses import dataclass

from mlx_gptoss.config import ModelConfig
from mlx_gptoss.kernels.layout import PICKS_PER_SIMDGROUP


@dataclass(frozen=True, slots=True)
class Shapes:
    """The sizes that decide which kernels a model runs. `tokens` is the prompt length of the prefill cases, `batch` the
    number of sequences in the step that decode kernels are compared on besides a single one's."""

    hidden: int = 2880
    inner: int = 2880
    experts: int = 32
    top_k: int = 4
    heads: int = 64
    kv_heads: int = 8
    window: int = 128
    vocabulary: int = 201_088
    eps: float = 1e-5
    limit: float = 7.0
    alpha: float = 1.702
    tokens: int = 256
    keys: int = 1024
    batch: int = 3

    @staticmethod
    def of(config: ModelConfig) -> Shapes:
        """The shapes of a model."""
        return Shapes(
            hidden=config.hidden_size,
            inner=config.intermediate_size,
            experts=config.num_experts,
            top_k=config.experts_per_token,
            heads=config.num_heads,
            kv_heads=config.num_kv_heads,
            window=config.sliding_window,
            vocabulary=config.vocab_size,
            eps=config.rms_norm_eps,
            limit=config.swiglu_limit,
            alpha=config.swiglu_alpha,
            batch=max(1, min(3, PICKS_PER_SIMDGROUP // config.experts_per_token)),
        )
