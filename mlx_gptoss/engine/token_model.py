"""What the engine needs of a model: the stock path and the fused path both have it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import mlx.core as mx

from mlx_gptoss.config import ModelConfig
from mlx_gptoss.kernels.backend import Backend


class TokenCache(Protocol):
    """Keys and values of one sequence. Arrays are shared on copy and never change under another holder."""

    @property
    def offset(self) -> int:
        """Positions written."""
        ...

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays, unused capacity included."""
        ...

    def copy(self) -> Any:
        """A cache that goes its own way from here; O(1)."""
        ...

    def can_trim(self, count: int) -> bool:
        """Whether the last `count` positions can be dropped without a snapshot."""
        ...

    def trim(self, count: int) -> None:
        """Drops the last `count` positions."""
        ...

    def snapshot(self) -> Any:
        """What the sliding layers need to come back to this offset; has `.offset` and `.nbytes`."""
        ...

    def restore(self, snapshot: Any) -> None:
        """Goes back to the snapshot's offset; valid when it was taken earlier in the same history."""
        ...

    def arrays(self) -> list[mx.array]:
        """Every array held, for evaluation."""
        ...


class TokenModel(Protocol):
    """A causal model over token ids. Caches are `Any` here because each model makes and reads its own kind."""

    @property
    def config(self) -> ModelConfig:
        """The model's shape; the engine reads `vocab_size` and `max_position_embeddings`."""
        ...

    @property
    def draw_backend(self) -> Backend:
        """Where tokens are drawn from the logits: the kernels' back end, or stock."""
        ...

    def make_cache(self, batch: int = 1) -> Any:
        """An empty TokenCache."""
        ...

    def prefill(self, token_ids: mx.array, cache: Any, need_logits: bool = True) -> mx.array | None:
        """Writes int32 `token_ids` [1, L] at the cache's offset; logits [1, vocab] of the last one, or None."""
        ...

    def decode(self, token_ids: mx.array, caches: Sequence[Any]) -> mx.array:
        """One step for int32 `token_ids` [S], row i into caches[i]; logits [S, vocab]. Nothing is evaluated."""
        ...

    def mend(self, error: Exception) -> bool:
        """After `error` ended a call or its evaluation: whether the model has changed so that the same work, begun anew
        with fresh caches, may succeed. True only a bounded number of times. Never raises."""
        ...
