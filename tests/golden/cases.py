"""The cases of the logits goldens: configs, inputs, and the positions whose logits are kept."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mlx_gptoss.config import ModelConfig
from tests.tiny import tiny_config


@dataclass(frozen=True, slots=True)
class Case:
    """`length` random tokens through a random model; logits are kept at `positions`."""

    name: str
    config: ModelConfig
    seed: int
    length: int
    positions: tuple[int, ...]

    @property
    def token_ids(self) -> npt.NDArray[np.int64]:
        """[length], below the config's vocabulary."""
        rng = np.random.default_rng(1000 + self.seed)
        return rng.integers(0, self.config.vocab_size, self.length, dtype=np.int64)


def cases() -> tuple[Case, ...]:
    """Edges that the released shapes do not have, and those they do."""
    return (
        Case(
            "odd_experts",  # 5 experts, top-3; K = 96 and 32, multiples of 32 but not of 64; window 8
            tiny_config(num_layers=4, hidden_size=96, intermediate_size=32, num_experts=5, experts_per_token=3,
                        num_heads=6, num_kv_heads=2, head_dim=32, sliding_window=8, vocab_size=211),
            seed=11, length=75, positions=(0, 1, 6, 7, 8, 9, 15, 16, 31, 32, 33, 50, 63, 64, 73, 74),
        ),
        Case(
            "released_ratios",  # head size 64, eight query heads a key head, window 128, top-4
            tiny_config(num_layers=4, hidden_size=160, intermediate_size=96, num_experts=7, experts_per_token=4,
                        num_heads=8, num_kv_heads=1, head_dim=64, sliding_window=128, vocab_size=256),
            seed=12, length=400,
            positions=(0, 64, 126, 127, 128, 129, 130, 200, 255, 256, 257, 258, 300, 384, 398, 399),
        ),
        Case(
            "single_expert",  # one expert a token, as many key heads as query heads, two layers
            tiny_config(num_layers=2, hidden_size=64, intermediate_size=64, num_experts=3, experts_per_token=1,
                        num_heads=4, num_kv_heads=4, head_dim=32, sliding_window=1, vocab_size=128),
            seed=13, length=40, positions=tuple(range(0, 40, 3)),
        ),
        Case(
            "all_experts",  # every expert used by every token; deeper
            tiny_config(num_layers=8, hidden_size=64, intermediate_size=96, num_experts=4, experts_per_token=4,
                        num_heads=4, num_kv_heads=2, head_dim=64, sliding_window=16, vocab_size=128),
            seed=14, length=90, positions=tuple(range(1, 90, 8)),
        ),
        Case(
            "past_4096",  # beyond YaRN's original context and two prefill chunks
            tiny_config(num_layers=2, hidden_size=64, intermediate_size=32, num_experts=3, experts_per_token=2,
                        num_heads=4, num_kv_heads=2, head_dim=64, sliding_window=128, vocab_size=128),
            seed=15, length=4500,
            positions=(0, 127, 128, 2047, 2048, 4094, 4095, 4096, 4097, 4200, 4223, 4224, 4350, 4498, 4499),
        ),
    )  # fmt: skip
