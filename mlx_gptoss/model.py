"""GptOssModel: gpt-oss in stock MLX operations.

This is the path that runs everywhere, and the truth that the fused kernels are checked against.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import mlx.core as mx
import numpy as np

from mlx_gptoss.cache import SequenceCache
from mlx_gptoss.config import ModelConfig
from mlx_gptoss.errors import ContextOverflowError, InvalidRequestError
from mlx_gptoss.kernels.backend import Backend, StockBackend
from mlx_gptoss.layer import TransformerLayer
from mlx_gptoss.linear import look_up, prepare, project
from mlx_gptoss.rope import RotaryTable
from mlx_gptoss.weights import ModelWeights, record_arrays

PREFILL_CHUNK = 2048
"""Positions that one pass takes; longer inputs go through the cache in pieces."""

TokenIds = mx.array | Sequence[Sequence[int]]


class GptOssModel:
    """A gpt-oss model.

    `weights` may be in any format; `dtype` (bfloat16, or float32 for checking) is that of activations and caches.
    Token ids must lie in [0, vocab_size). Ids given as lists are checked; an mx.array of ids is the caller's promise,
    since a look at it would evaluate it and end a trace. An id out of range then raises nothing: the embedding is read
    where no row is, for logits that mean nothing (-1 may be the last row), NaN, or the end of the process.
    Not safe to use from several threads at once.
    """

    def __init__(self, config: ModelConfig, weights: ModelWeights, dtype: mx.Dtype = mx.bfloat16) -> None:
        self.config = config
        self.weights = weights
        self.dtype = dtype
        self.rope = RotaryTable(config)
        # On CPUs MLX's packed products are about ten times faster (and finer) on float32 rows than on bfloat16 rows.
        on_cpu = mx.default_device() == mx.Device(mx.cpu)
        packed_dtype = mx.float32 if on_cpu else dtype
        self.layers = [TransformerLayer(config, layer, dtype, packed_dtype) for layer in weights.layers]
        self._norm = weights.norm.astype(mx.float32)
        self._head_dtype = packed_dtype if weights.head.quantized else dtype
        self._head = prepare(weights.head, self._head_dtype)
        arrays = [array for layer in self.layers for array in layer.arrays()]
        mx.eval(arrays, self._norm, list(record_arrays(self._head)))

    @property
    def draw_backend(self) -> Backend:
        """Where tokens are drawn from the logits: on MLX's own operations."""
        return StockBackend()

    def make_cache(self, batch: int = 1) -> SequenceCache:
        """An empty cache for `batch` sequences of one length."""
        return SequenceCache(self.config, batch, self.dtype)

    def __call__(self, token_ids: TokenIds, cache: SequenceCache | None = None) -> mx.array:
        """Logits float32 [B, L, vocab] of token_ids [B, L], which follow what `cache` holds and are added to it.

        Ids in lists are checked, those in an mx.array are not (see the class). Padding ids (from 200,014 on) have logit
        -inf. Lazy up to 2,048 positions, evaluated in pieces beyond.
        Raises InvalidRequestError (shape, ids, cache) and ContextOverflowError.
        """
        ids = self._check_ids(token_ids)
        cache = self._check_cache(ids, cache)
        pieces = []
        for start in range(0, ids.shape[1], PREFILL_CHUNK):
            hidden = self._forward(ids[:, start : start + PREFILL_CHUNK], cache, "all")
            pieces.append(self.logits(hidden))
            if ids.shape[1] > PREFILL_CHUNK:
                mx.eval(pieces[-1], cache.arrays())
        return pieces[0] if len(pieces) == 1 else mx.concatenate(pieces, axis=1)

    def prefill(self, token_ids: TokenIds, cache: SequenceCache, need_logits: bool = True) -> mx.array | None:
        """Adds token_ids [B, L] to `cache`; logits float32 [B, vocab] after the last one, or None.

        The last layer's attention and experts run for the last position only. Lazy up to 2,048 positions (evaluate
        the result, or `cache.arrays()`), evaluated in pieces beyond. Errors as for a call.
        """
        ids = self._check_ids(token_ids)
        cache = self._check_cache(ids, cache)
        length = ids.shape[1]
        for start in range(0, length - PREFILL_CHUNK, PREFILL_CHUNK):
            self._forward(ids[:, start : start + PREFILL_CHUNK], cache, "none")
            mx.eval(cache.arrays())
        rest = ids[:, (length - 1) // PREFILL_CHUNK * PREFILL_CHUNK :]
        hidden = self._forward(rest, cache, "last" if need_logits else "none")
        return self.logits(hidden)[:, -1] if need_logits else None

    def decode(self, token_ids: mx.array, caches: Sequence[SequenceCache]) -> mx.array:
        """One step of S independent sequences: token_ids [S] and their caches (batch 1) to logits float32 [S, vocab].

        Lazy: nothing is evaluated; the caches are advanced. Matrix products see all S rows at once, attention runs
        sequence by sequence, so sequences may come and go between steps at no cost.
        """
        if token_ids.shape != (len(caches),) or not caches:
            raise InvalidRequestError(
                "decode takes one token id per cache",
                param="token_ids",
                expected=f"shape ({max(1, len(caches))},)",
                got=str(token_ids.shape),
            )
        for cache in caches:
            self._check_room(cache, 1, 1)
        x = look_up(self.weights.embed, token_ids, mx.float32)[:, None]
        cos, sin = self.rope.rows([cache.offset for cache in caches])
        for index, layer in enumerate(self.layers):
            q, k, v = layer.qkv(x, cos, sin)
            parts = [
                layer.attend(q[s : s + 1], k[s : s + 1], v[s : s + 1], cache.layers[index], cache.offset)
                for s, cache in enumerate(caches)
            ]
            x = layer.finish(x, parts[0] if len(parts) == 1 else mx.concatenate(parts, axis=0))
        for cache in caches:
            cache.advance(1)
        return self.logits(x)[:, 0]

    def mend(self, error: Exception) -> bool:
        """There is no other path than this one: False."""
        del error
        return False

    def _forward(self, ids: mx.array, cache: SequenceCache, need: Literal["all", "last", "none"]) -> mx.array:
        """Hidden states float32 of ids [B, L] after the last layer, for all positions or the last. With "none" the
        last layer only stores keys and values, and what comes back is its input."""
        x = look_up(self.weights.embed, ids, mx.float32)
        offset = cache.offset
        cos, sin = self.rope.span(offset, ids.shape[1])
        final = len(self.layers) - 1
        for index, layer in enumerate(self.layers):
            q, k, v = layer.qkv(x, cos, sin)
            if index == final and need == "none":
                layer.store(k, v, cache.layers[index], offset)
                break
            if index == final and need == "last":
                q, x = q[:, :, -1:], x[:, -1:]
            x = layer.finish(x, layer.attend(q, k, v, cache.layers[index], offset))
        cache.advance(ids.shape[1])
        return x

    def logits(self, hidden: mx.array) -> mx.array:
        """hidden [B, L, H] to logits float32 [B, L, vocab], padding ids at -inf."""
        normed = mx.fast.rms_norm(hidden, self._norm, self.config.rms_norm_eps)
        logits = project(normed.astype(self._head_dtype), self._head).astype(mx.float32)
        used = self.config.used_vocab_size
        if used < self.config.vocab_size:
            logits[..., used:] = -mx.inf
        return logits

    def checked(self, token_ids: TokenIds, cache: SequenceCache) -> mx.array:
        """token_ids as an array [B, L] that `cache` has room for. Raises as a call does."""
        ids = self._check_ids(token_ids)
        self._check_cache(ids, cache)
        return ids

    def _check_ids(self, token_ids: TokenIds) -> mx.array:
        vocab = self.config.vocab_size
        if not isinstance(token_ids, mx.array):
            try:
                rows = [list(row) for row in token_ids]
            except TypeError:
                raise InvalidRequestError(
                    "token ids have the wrong shape",
                    param="token_ids",
                    expected="rows of ids, [B, L]",
                    got=repr(token_ids)[:60],
                ) from None
            strange = next((token for row in rows for token in row if not isinstance(token, int | np.integer)), None)
            if strange is not None:
                raise InvalidRequestError(
                    "a token id is no whole number", param="token_ids", expected="integers", got=repr(strange)[:60]
                )
            if len({len(row) for row in rows}) > 1:
                raise InvalidRequestError("token id rows differ in length", param="token_ids", expected="[B, L]")
            wrong = next((token for row in rows for token in row if not 0 <= token < vocab), None)
            if wrong is not None:
                raise InvalidRequestError(
                    "a token id is out of range", param="token_ids", expected=f"0 to {vocab - 1}", got=str(wrong)
                )
            token_ids = mx.array([[int(token) for token in row] for row in rows], dtype=mx.int32)
        if token_ids.ndim != 2 or token_ids.size == 0 or not mx.issubdtype(token_ids.dtype, mx.integer):
            raise InvalidRequestError(
                "token ids have the wrong shape",
                param="token_ids",
                expected="integers [B, L], not empty",
                got=f"{token_ids.dtype} {token_ids.shape}",
            )
        return token_ids

    def _check_cache(self, ids: mx.array, cache: SequenceCache | None) -> SequenceCache:
        batch, length = ids.shape
        cache = self.make_cache(batch) if cache is None else cache
        if not isinstance(cache, SequenceCache):
            raise InvalidRequestError(
                "that is no cache", param="cache", expected="what make_cache gives", got=type(cache).__name__
            )
        self._check_room(cache, batch, length)
        return cache

    def _check_room(self, cache: SequenceCache, batch: int, length: int) -> None:
        if cache.batch != batch:
            raise InvalidRequestError(
                "the cache is for another batch size", param="cache", expected=str(batch), got=str(cache.batch)
            )
        end, limit = cache.offset + length, self.config.max_position_embeddings
        if end > limit:
            raise ContextOverflowError(
                "the input is longer than the context", param="token_ids", expected=f"<= {limit} tokens", got=str(end)
            )
