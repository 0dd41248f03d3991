"""What the engine's tests share."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from mlx_gptoss.engine import Engine, EngineOptions, GenerationRequest
from mlx_gptoss.engine.constraint import Mask
from mlx_gptoss.request import SamplingParams

GREEDY = SamplingParams(temperature=0.0)


@contextmanager
def engine_of(model: Any, **options: Any) -> Iterator[Engine]:
    with Engine(lambda: model, EngineOptions(**options)) as engine:
        yield engine


def ask(prompt: Sequence[int], count: int | None = 8, **changes: Any) -> GenerationRequest:
    return GenerationRequest(tuple(prompt), **{"sampling": GREEDY, "max_tokens": count, "stop_ids": (), **changes})


def ids(generation: Any) -> list[int]:
    return [event.token_id for event in generation]


class AllowOnly:
    """A constraint that lets a few ids through, then one forced run."""

    def __init__(self, allowed: list[int], forced: tuple[int, ...] = (), after: int = 10**9) -> None:
        self.allowed = allowed
        self.forced = forced
        self.after = after
        self.seen: list[int] = []

    def mask(self) -> Mask | None:
        words = np.zeros(10, dtype=np.uint32)
        for token in self.allowed:
            words[token // 32] |= np.uint32(1 << (token % 32))
        return words

    def advance(self, token_id: int) -> None:
        self.seen.append(token_id)

    def force(self) -> tuple[int, ...]:
        done = len(self.seen) - self.after
        return self.forced[max(done, 0) :] if done >= 0 else ()
