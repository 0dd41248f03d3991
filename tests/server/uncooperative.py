"""A model with no mind to follow a schema: short random text, random channels, and an end now and then."""

from __future__ import annotations

from collections.abc import Sequence

import mlx.core as mx
import numpy as np

from mlx_gptoss.engine import Engine, EngineOptions
from mlx_gptoss.harmony.special import CALL, CHANNEL, CONSTRAIN, END, MESSAGE, RETURN, START
from mlx_gptoss.harmony.vocabulary import load_vocabulary
from mlx_gptoss.llm import GptOss
from tests.unit.fake_model import ScriptedCache, ScriptedModel

OPENING = "<|channel|>analysis<|message|>"
PIECES = (
    "analysis", "commentary", "final", "assistant", " to", "=", "functions", ".", "get", "_", "weather", "{", "}", "[",
    "]", '"', '":', '",', ",", ":", " ", "\n", "1", "2", "34", "true", "null", "false", "-", "e", "the", " a", "json",
    "é", "\\", "red", "green", "name", "age", "city", '{"', '"}', "}}", "Paris",
)  # fmt: skip


class Uncooperative(ScriptedModel):
    """Logits are random for each step: a few hundred tokens are likely, special ones among them, others possible."""

    def __init__(self, seed: int) -> None:
        super().__init__(lambda prompt, generated: 0)
        vocabulary = load_vocabulary()
        self._seed = seed
        self._likely = sorted({token for piece in PIECES for token in vocabulary.encode(piece)})
        self._opening = [CHANNEL, *vocabulary.encode("analysis"), MESSAGE]

    def _logits(self, caches: Sequence[ScriptedCache]) -> mx.array:
        logits = np.full((len(caches), self.config.vocab_size), -8.0, dtype=np.float32)
        for row, cache in enumerate(caches):
            said = cache.tokens[cache.prompt_end :]
            if len(said) < len(self._opening):
                # It does reason first, as gpt-oss always does.
                logits[row, self._opening[len(said)]] = 40.0
                continue
            draw = np.random.default_rng([self._seed, cache.prompt_end, *said[-40:]])
            logits[row, :200_000] += draw.normal(0, 1, 200_000).astype(np.float32)
            logits[row, self._likely] = draw.normal(3, 2, len(self._likely))
            logits[row, [END, RETURN, CALL, START, CHANNEL, MESSAGE, CONSTRAIN]] = draw.normal(3, 2, 7)
        return mx.array(logits)


def uncooperative_llm(seed: int) -> GptOss:
    return GptOss(Engine(lambda: Uncooperative(seed), EngineOptions()), name="uncooperative")
