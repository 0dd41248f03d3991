"""Models without weights for testing the engine: one whose logits hash its whole history, one that follows a script."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import mlx.core as mx
import numpy as np

from mlx_gptoss.config import ModelConfig
from mlx_gptoss.kernels.backend import StockBackend

WINDOW = 8


def tiny_config(**changes: object) -> ModelConfig:
    """A valid config of the smallest useful shape."""
    config = ModelConfig(
        num_layers=2,
        hidden_size=64,
        intermediate_size=32,
        num_experts=4,
        experts_per_token=2,
        num_heads=4,
        num_kv_heads=2,
        head_dim=16,
        sliding_window=WINDOW,
        layer_types=("sliding_attention", "full_attention"),
        vocab_size=320,
        rope_theta=150000.0,
        yarn=None,
        max_position_embeddings=4096,
    )
    return replace(config, **changes)  # type: ignore[arg-type]  # field names and types are the caller's


@dataclass(frozen=True)
class FakeSnapshot:
    offset: int
    ring: mx.array
    nbytes: int = 4 * WINDOW


class FakeCache:
    """One full layer (a running hash for every position) and one sliding layer (the last WINDOW tokens)."""

    def __init__(self) -> None:
        self.states = [mx.array(1, dtype=mx.uint32)]
        self.ring = mx.zeros((WINDOW,), dtype=mx.uint32)

    @property
    def offset(self) -> int:
        return len(self.states) - 1

    @property
    def nbytes(self) -> int:
        return 4 * (len(self.states) + WINDOW)

    def write(self, token: mx.array) -> None:
        value = token.astype(mx.uint32)
        slot = mx.arange(WINDOW) == self.offset % WINDOW
        self.ring = mx.where(slot, value + 1, self.ring)
        self.states.append(self.states[-1] * 1664525 + value * 7 + 1013904223)

    def summary(self) -> mx.array:
        # Only the slots of the window count, like attention: stale slots of a wrongly trimmed ring change it.
        live = mx.where(mx.arange(WINDOW) < self.offset, self.ring, 0) if self.offset < WINDOW else self.ring
        weights = (mx.arange(WINDOW) + 1).astype(mx.uint32) * 2654435761
        return self.states[-1] ^ mx.sum(live * weights).astype(mx.uint32)

    def copy(self) -> FakeCache:
        twin = FakeCache()
        twin.states, twin.ring = list(self.states), self.ring
        return twin

    def can_trim(self, count: int) -> bool:
        return 0 <= count <= self.offset and (self.offset <= WINDOW or count <= 1)

    def trim(self, count: int) -> None:
        if not self.can_trim(count):
            raise RuntimeError("impossible trim")
        if count:
            del self.states[-count:]

    def snapshot(self) -> FakeSnapshot:
        return FakeSnapshot(self.offset, self.ring)

    def restore(self, snapshot: FakeSnapshot) -> None:
        if snapshot.offset > self.offset:
            raise RuntimeError("impossible restore")
        del self.states[snapshot.offset + 1 :]
        self.ring = snapshot.ring

    def arrays(self) -> list[mx.array]:
        return [self.states[-1], self.ring]


class FakeModel:
    """Logits [S, vocab] are a hash of each sequence's history. Lazy like a real model. Counts what it is asked."""

    draw_backend = StockBackend()

    def __init__(self, vocab_size: int = 320, spread: float = 6.0, context: int = 4096) -> None:
        self.config = tiny_config(vocab_size=vocab_size, max_position_embeddings=context)
        self._spread = spread
        self._ids = (mx.arange(vocab_size).astype(mx.uint32) + 1) * 2246822519
        mx.eval(self._ids)
        self.prefilled: list[int] = []
        self.decoded: list[int] = []
        self.threads: set[int] = set()
        self.gate: threading.Event | None = None
        self.break_decode: Callable[[Sequence[FakeCache]], bool] = lambda caches: False
        self.break_prefill: Callable[[list[int]], bool] = lambda tokens: False
        self.nan_when: Callable[[FakeCache], bool] = lambda cache: False
        self.errors: list[Exception] = []
        self.mends: Callable[[Exception], bool] = lambda error: False

    def make_cache(self, batch: int = 1) -> FakeCache:
        return FakeCache()

    def prefill(self, token_ids: mx.array, cache: FakeCache, need_logits: bool = True) -> mx.array | None:
        self.threads.add(threading.get_ident())
        if self.gate is not None:
            self.gate.wait(10)
        tokens: list[int] = token_ids[0].tolist()  # type: ignore[assignment]
        self.prefilled.append(len(tokens))
        if self.break_prefill(tokens):
            raise RuntimeError("prefill broke")
        for token in tokens:
            cache.write(mx.array(token))
        return self._logits(cache)[None] if need_logits else None

    def decode(self, token_ids: mx.array, caches: Sequence[FakeCache]) -> mx.array:
        self.threads.add(threading.get_ident())
        if self.gate is not None:
            self.gate.wait(10)
        self.decoded.append(len(caches))
        if self.break_decode(caches):
            raise RuntimeError("decode broke")
        for row, cache in enumerate(caches):
            cache.write(token_ids[row])
        return mx.stack([self._logits(cache) for cache in caches])

    def mend(self, error: Exception) -> bool:
        self.errors.append(error)
        return self.mends(error)

    def _logits(self, cache: FakeCache) -> mx.array:
        mixed = (cache.summary() ^ self._ids) * 3266489917
        mixed = (mixed ^ (mixed >> 15)) * 668265263
        logits = (mixed >> 8).astype(mx.float32) * (self._spread / 2**24)
        return logits * float("nan") if self.nan_when(cache) else logits

    def alone(self, prompt: Sequence[int], count: int, stop_ids: Sequence[int] = ()) -> list[int]:
        """The greedy continuation without an engine."""
        cache = FakeCache()
        for token in prompt:
            cache.write(mx.array(token))
        generated: list[int] = []
        while len(generated) < count and not (generated and generated[-1] in stop_ids):
            token = int(np.argmax(np.array(self._logits(cache))))
            generated.append(token)
            cache.write(mx.array(token))
        return generated


class ScriptedCache(FakeCache):
    """Remembers the tokens themselves, and where the prompt ended."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens: list[int] = []
        self.prompt_end = 0

    @property
    def offset(self) -> int:
        return len(self.tokens)

    @property
    def nbytes(self) -> int:
        return 4 * len(self.tokens)

    def copy(self) -> ScriptedCache:
        twin = ScriptedCache()
        twin.tokens = list(self.tokens)
        return twin

    def trim(self, count: int) -> None:
        if count:
            del self.tokens[-count:]

    def restore(self, snapshot: FakeSnapshot) -> None:
        del self.tokens[snapshot.offset :]

    def arrays(self) -> list[mx.array]:
        return [self.ring]


class ScriptedModel:
    """Says what `script(prompt, answer so far)` says, with near certainty; every other token is equally unlikely."""

    draw_backend = StockBackend()

    def __init__(
        self, script: Callable[[list[int], list[int]], int], vocab_size: int = 201_088, context: int = 131_072
    ) -> None:
        self.config = tiny_config(vocab_size=vocab_size, max_position_embeddings=context)
        self._script = script
        self.prefilled: list[int] = []
        self.decoded = 0

    def make_cache(self, batch: int = 1) -> ScriptedCache:
        return ScriptedCache()

    def prefill(self, token_ids: mx.array, cache: ScriptedCache, need_logits: bool = True) -> mx.array | None:
        tokens: list[int] = np.array(token_ids)[0].tolist()
        self.prefilled.append(len(tokens))
        cache.tokens += tokens
        cache.prompt_end = len(cache.tokens)
        return self._logits([cache]) if need_logits else None

    def decode(self, token_ids: mx.array, caches: Sequence[ScriptedCache]) -> mx.array:
        self.decoded += 1
        for token, cache in zip(np.array(token_ids), caches, strict=True):
            cache.tokens.append(int(token))
        return self._logits(caches)

    def mend(self, error: Exception) -> bool:
        return False

    def _logits(self, caches: Sequence[ScriptedCache]) -> mx.array:
        logits = np.full((len(caches), self.config.vocab_size), -20.0, dtype=np.float32)
        for row, cache in enumerate(caches):
            logits[row, self._script(cache.tokens[: cache.prompt_end], cache.tokens[cache.prompt_end :])] = 20.0
        return mx.array(logits)
