"""The demo checkpoint's architecture: gpt-oss at toy size."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from training.lexicon import RETURN, VOCABULARY_ROWS

SHARPNESS = 2.0
"""How many times the trained head the shipped one is (a power of two: exact). Where a toy is unsure it is mostly wrong:
at the default temperature of 1 it had better draw as the trained one does at a half."""


@dataclass(frozen=True, slots=True)
class Shape:
    layers: int = 8
    hidden: int = 256
    heads: int = 16
    kv_heads: int = 2
    head_dim: int = 64
    experts: int = 8
    active: int = 4
    intermediate: int = 128
    window: int = 128
    theta: float = 150000.0
    factor: float = 32.0
    original: int = 4096
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    eps: float = 1e-5
    limit: float = 7.0
    alpha: float = 1.702
    codes: int = 128  # leading columns of embedding and head rows that hold a word's random code

    @property
    def qkv(self) -> int:
        return (self.heads + 2 * self.kv_heads) * self.head_dim

    def sliding(self, layer: int) -> bool:
        return layer % 2 == 0

    @property
    def concentration(self) -> float:
        """What YaRN multiplies cosines and sines by."""
        return 0.1 * math.log(self.factor) + 1.0

    def frequencies(self) -> list[float]:
        """Radians per position for each pair of dimensions: YaRN without truncation of its ramp's ends."""
        half = self.head_dim // 2

        def turning(rotations: float) -> float:
            return half * math.log(self.original / (rotations * 2 * math.pi)) / math.log(self.theta)

        low, high = max(turning(self.beta_fast), 0.0), min(turning(self.beta_slow), self.head_dim - 1.0)
        result = []
        for index in range(half):
            plain = self.theta ** (-index / half)
            ramp = min(max((index - low) / (high - low), 0.0), 1.0)
            result.append(plain / self.factor * ramp + plain * (1 - ramp))
        return result

    def config(self) -> dict[str, Any]:
        """config.json as the released checkpoints write it."""
        return {
            "architectures": ["GptOssForCausalLM"],
            "attention_bias": True,
            "attention_dropout": 0.0,
            "eos_token_id": RETURN,
            "experts_per_token": self.active,
            "head_dim": self.head_dim,
            "hidden_act": "silu",
            "hidden_size": self.hidden,
            "initial_context_length": self.original,
            "initializer_range": 0.02,
            "intermediate_size": self.intermediate,
            "layer_types": ["sliding_attention" if self.sliding(i) else "full_attention" for i in range(self.layers)],
            "max_position_embeddings": int(self.original * self.factor),
            "model_type": "gpt_oss",
            "num_attention_heads": self.heads,
            "num_experts_per_tok": self.active,
            "num_hidden_layers": self.layers,
            "num_key_value_heads": self.kv_heads,
            "num_local_experts": self.experts,
            "output_router_logits": False,
            "pad_token_id": 199999,
            "quantization_config": {
                "modules_to_not_convert": [
                    "model.layers.*.self_attn",
                    "model.layers.*.mlp.router",
                    "model.embed_tokens",
                    "lm_head",
                ],
                "quant_method": "mxfp4",
            },
            "rms_norm_eps": self.eps,
            "rope_scaling": {
                "beta_fast": self.beta_fast,
                "beta_slow": self.beta_slow,
                "factor": self.factor,
                "original_max_position_embeddings": self.original,
                "rope_type": "yarn",
                "truncate": False,
            },
            "rope_theta": int(self.theta),
            "router_aux_loss_coef": 0.9,
            "sliding_window": self.window,
            "swiglu_limit": self.limit,
            "tie_word_embeddings": False,
            "torch_dtype": "bfloat16",
            "use_cache": True,
            "vocab_size": VOCABULARY_ROWS,
        }
