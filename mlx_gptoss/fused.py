"""FusedModel: gpt-oss decoding on our own kernels, 6 launches a sliding layer and 6 or 7 a full one.

It has GptOssModel's surface and reads the same weights and caches. Prefill is handed to another model over the same
weights (the stock path unless told otherwise).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import mlx.core as mx
import numpy as np

from mlx_gptoss.cache import FullLayerCache, LayerCache, SequenceCache
from mlx_gptoss.config import ModelConfig
from mlx_gptoss.errors import ConfigError, ContextOverflowError, InvalidRequestError
from mlx_gptoss.kernels.attention import (
    attention_full,
    attention_merge,
    attention_sliding,
    cache_lengths,
    merge_counts,
    parts_for,
)
from mlx_gptoss.kernels.attention_out import attention_out
from mlx_gptoss.kernels.backend import Backend
from mlx_gptoss.kernels.head import head
from mlx_gptoss.kernels.layout import HEAD_DIM, MAX_BATCH, model_params
from mlx_gptoss.kernels.moe import moe_down, moe_gate_up
from mlx_gptoss.kernels.qkv import qkv_rope
from mlx_gptoss.kernels.router import router
from mlx_gptoss.kernels.tuning import tuning_for
from mlx_gptoss.linear import look_up
from mlx_gptoss.model import GptOssModel, TokenIds
from mlx_gptoss.weights import LayerWeights, ModelWeights

TAIL = 64
"""Positions of a full layer's tail. A step rewrites the tail (at most 128 KiB a layer for gpt-oss), and every TAIL
steps it is merged into the main cache."""


@dataclass(frozen=True, slots=True)
class _Step:
    """What all layers of a step share. `full_parts` is None where one launch finishes a full layer's attention."""

    rope: mx.array
    lengths: list[mx.array]
    full_parts: list[int] | None
    full_counts: mx.array | None
    sliding_counts: mx.array | None


class FusedModel:
    """Decodes on `backend`'s kernels. `tail` is for tests; `prefiller` shares the weights.

    Raises ConfigError for shapes the kernels do not have (head_dim other than 64, sizes that 32 does not divide).
    Not safe to use from several threads at once.
    """

    def __init__(
        self,
        config: ModelConfig,
        weights: ModelWeights,
        backend: Backend,
        dtype: mx.Dtype = mx.bfloat16,
        *,
        prefiller: GptOssModel | None = None,
        tail: int = TAIL,
    ) -> None:
        check_config(config)
        self.config = config
        self.weights = weights
        self.backend = backend
        self.dtype = dtype
        self.tail = tail
        self.prefiller = GptOssModel(config, weights, dtype) if prefiller is None else prefiller
        self._params = model_params(config.rms_norm_eps, config.swiglu_limit, config.swiglu_alpha)
        self._frequencies = self.prefiller.rope.inverse_frequencies
        self._concentration = self.prefiller.rope.concentration
        mx.eval(self._params)

    def make_cache(self, batch: int = 1) -> SequenceCache:
        """An empty cache for `batch` sequences of one length; `decode` wants a batch of 1."""
        return SequenceCache(self.config, batch, self.dtype)

    def __call__(self, token_ids: TokenIds, cache: SequenceCache | None = None) -> mx.array:
        """As GptOssModel."""
        return self.prefiller(token_ids, cache)

    def prefill(self, token_ids: TokenIds, cache: SequenceCache, need_logits: bool = True) -> mx.array | None:
        """As GptOssModel."""
        return self.prefiller.prefill(token_ids, cache, need_logits)

    def decode(self, token_ids: mx.array, caches: Sequence[SequenceCache]) -> mx.array:
        """One step of S independent sequences: token_ids [S] and their caches (batch 1) to logits float32 [S, vocab].

        Lazy: nothing is evaluated; the caches are advanced. Weights are read once for up to 8 sequences. Padding ids
        have logit -inf. Raises InvalidRequestError and ContextOverflowError.
        """
        self._check(token_ids, caches)
        groups = [
            self._decode(token_ids[start : start + MAX_BATCH], caches[start : start + MAX_BATCH])
            for start in range(0, len(caches), MAX_BATCH)
        ]
        return groups[0] if len(groups) == 1 else mx.concatenate(groups)

    def _decode(self, token_ids: mx.array, caches: Sequence[SequenceCache]) -> mx.array:
        step = self._prepare(caches)
        x = look_up(self.weights.embed, token_ids, mx.float32)
        for index, layer in enumerate(self.weights.layers):
            x = self._layer(x, layer, [cache.layers[index] for cache in caches], step)
        for cache in caches:
            cache.advance(1)
        return head(
            x,
            self.weights.norm,
            self.weights.head,
            self._params,
            valid=self.config.used_vocab_size,
            backend=self.backend,
        )

    def _layer(self, x: mx.array, layer: LayerWeights, caches: list[LayerCache], step: _Step) -> mx.array:
        config, backend = self.config, self.backend
        q, k, v = qkv_rope(
            x,
            layer.attn_norm,
            layer.qkv,
            step.rope,
            self._params,
            heads=config.num_heads,
            kv_heads=config.num_kv_heads,
            dtype=self.dtype,
            backend=backend,
        )
        x = attention_out(self._attention(q, k, v, layer.sinks, caches, step), layer.out, x, backend=backend)
        t, logits = router(x, layer.mlp_norm, layer.router, self._params, backend=backend)
        h, picks, shares = moe_gate_up(
            t, logits, layer.gate_up, self._params, top_k=config.experts_per_token, backend=backend
        )
        return moe_down(h, picks, shares, layer.down, x, backend=backend)

    def _attention(
        self, q: mx.array, k: mx.array, v: mx.array, sinks: mx.array, caches: list[LayerCache], step: _Step
    ) -> mx.array:
        """Attends and stores, sequence by sequence: float32 [S, heads, 64] (or [heads, 64] alone)."""
        outs = []
        counts = step.sliding_counts
        merged = len(caches) > 1
        for row, cache in enumerate(caches):
            if isinstance(cache, FullLayerCache):
                counts = step.full_counts
                merged = step.full_parts is not None
                parts = None if step.full_parts is None else step.full_parts[row]
                outs.append(self._full(q, k, v, sinks, cache, step.lengths[row], parts))
            else:
                out, ring_k, ring_v = attention_sliding(
                    q,
                    k,
                    v,
                    _only(cache.ring_k),
                    _only(cache.ring_v),
                    sinks,
                    step.lengths[row],
                    parts=1 if len(caches) > 1 else None,
                    backend=self.backend,
                )
                cache.ring_k, cache.ring_v = ring_k[None], ring_v[None]
                outs.append(out)
        return attention_merge(outs, sinks, counts, backend=self.backend) if merged else outs[0]

    def _full(
        self,
        q: mx.array,
        k: mx.array,
        v: mx.array,
        sinks: mx.array,
        cache: FullLayerCache,
        lengths: mx.array,
        parts: int | None,
    ) -> mx.array:
        tail_k, tail_v = cache.tail_k, cache.tail_v
        if tail_k is None or tail_v is None:
            shape = (1, self.config.num_kv_heads, self.tail, HEAD_DIM)
            tail_k, tail_v = mx.zeros(shape, dtype=self.dtype), mx.zeros(shape, dtype=self.dtype)
        out, new_k, new_v = attention_full(
            q,
            k,
            v,
            _only(cache.main_k),
            _only(cache.main_v),
            _only(tail_k),
            _only(tail_v),
            sinks,
            lengths,
            parts=parts,
            backend=self.backend,
        )
        cache.tail_k, cache.tail_v = new_k[None], new_v[None]
        cache.n_tail += 1
        return out

    def _prepare(self, caches: Sequence[SequenceCache]) -> _Step:
        """Makes room for one more position in every cache and gathers the step's small arrays."""
        tuning = tuning_for(self.backend.family)
        lengths, parts = [], []
        for row, cache in enumerate(caches):
            full = [layer for layer in cache.layers if isinstance(layer, FullLayerCache)]
            for layer in full:
                if layer.tail_k is not None and layer.n_tail >= layer.tail_k.shape[2]:
                    layer.merge()
                if layer.capacity == 0:
                    layer.reserve(1)
            n_main, n_tail, capacity = (full[0].n_main, full[0].n_tail, full[0].capacity) if full else (0, 0, 0)
            lengths.append(cache_lengths(offset=cache.offset, n_main=n_main, n_tail=n_tail, capacity=capacity, row=row))
            parts.append(parts_for(n_main, tuning))
        batched = len(caches) > 1
        merge_full = batched or parts[0] > 1
        return _Step(
            rope=self._rope([cache.offset for cache in caches]),
            lengths=lengths,
            full_parts=parts if merge_full else None,
            full_counts=merge_counts(parts) if merge_full else None,
            sliding_counts=merge_counts([1] * len(caches)) if batched else None,
        )

    def _rope(self, positions: list[int]) -> mx.array:
        """float32 [S, 64]: cosines and sines of the positions, times the concentration (see RotaryTable)."""
        angles = (np.array(positions, dtype=np.float32)[:, None] * self._frequencies).astype(np.float64)
        table = np.concatenate([np.cos(angles), np.sin(angles)], axis=-1) * self._concentration
        return mx.array(table.astype(np.float32))

    def _check(self, token_ids: mx.array, caches: Sequence[SequenceCache]) -> None:
        if token_ids.shape != (len(caches),) or not caches:
            raise InvalidRequestError(
                "decode takes one token id per cache",
                param="token_ids",
                expected=f"shape ({max(1, len(caches))},)",
                got=str(token_ids.shape),
            )
        limit = self.config.max_position_embeddings
        for cache in caches:
            if cache.batch != 1:
                raise InvalidRequestError(
                    "the cache is for another batch size", param="cache", expected="1", got=str(cache.batch)
                )
            if cache.offset >= limit:
                raise ContextOverflowError(
                    "the input is longer than the context",
                    param="token_ids",
                    expected=f"<= {limit} tokens",
                    got=str(cache.offset + 1),
                )


def _only(array: mx.array) -> mx.array:
    """The one sequence of a batch of 1, as a view: indexing with [0] would copy it."""
    return mx.squeeze(array, 0)


def check_config(config: ModelConfig) -> None:
    """Raises ConfigError unless the kernels have the shapes of this model."""
    if config.head_dim != HEAD_DIM:
        raise ConfigError("the kernels have one head size", expected=f"head_dim {HEAD_DIM}", got=str(config.head_dim))
    for name, size in (("hidden_size", config.hidden_size), ("intermediate_size", config.intermediate_size)):
        if size % 32:
            raise ConfigError(f"the kernels want `{name}` in blocks", expected="a multiple of 32", got=str(size))
