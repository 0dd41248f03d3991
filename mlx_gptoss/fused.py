"""FusedModel: gpt-oss on our own kernels. It has GptOssModel's surface and reads the same weights and caches."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Literal

import mlx.core as mx

from mlx_gptoss.cache import FullLayerCache, SequenceCache
from mlx_gptoss.config import ModelConfig
from mlx_gptoss.errors import ConfigError, ContextOverflowError, InvalidRequestError
from mlx_gptoss.fused_decode import DecodeGraph, Plan, Replays, StepInputs
from mlx_gptoss.fused_prefill import PrefillGraph
from mlx_gptoss.kernels.attention import FULL, parts_for
from mlx_gptoss.kernels.attention_out import NAME as OUT
from mlx_gptoss.kernels.backend import Backend, StockBackend
from mlx_gptoss.kernels.draw import DRAW_KERNELS
from mlx_gptoss.kernels.layout import HEAD_DIM, MAX_BATCH, PICKS_PER_SIMDGROUP, model_params
from mlx_gptoss.kernels.switchboard import Switchboard
from mlx_gptoss.kernels.tuning import tuning_for
from mlx_gptoss.mending import Mender
from mlx_gptoss.model import PREFILL_CHUNK, GptOssModel, TokenIds
from mlx_gptoss.step_state import CarriedState, Position
from mlx_gptoss.weights import ModelWeights

TAIL = 64
"""Positions of a full layer's tail. A step rewrites the tail (at most 128 KiB a layer for gpt-oss), and every TAIL
steps it is merged into the main cache."""


class FusedModel:
    """Runs on `backend`'s kernels, except those in `off`, which MLX's own operations stand in for.

    `stock` is the same model on the stock path (made when not given; it shares the weights): it answers calls for all
    positions' logits. `tail` and `chunk` are for tests. Raises ConfigError for shapes the kernels do not have (head_dim
    other than 64, sizes that 32 does not divide). Not safe to use from several threads at once.
    """

    def __init__(
        self,
        config: ModelConfig,
        weights: ModelWeights,
        backend: Backend,
        dtype: mx.Dtype = mx.bfloat16,
        *,
        off: Collection[str] = (),
        stock: GptOssModel | None = None,
        tail: int = TAIL,
        chunk: int = PREFILL_CHUNK,
    ) -> None:
        check_config(config)
        self.config = config
        self.weights = weights
        self.backend = backend
        self.dtype = dtype
        self.tail = tail
        self.stock = GptOssModel(config, weights, dtype) if stock is None else stock
        self._params = model_params(config.rms_norm_eps, config.swiglu_limit, config.swiglu_alpha)
        mx.eval(self._params)
        self._chunk = chunk
        self._mender = Mender(backend, off)
        self._build()

    def _build(self) -> None:
        """The graphs of the kernels that are on. Caches go on as they are: their layout is the same for all."""
        self.board = Switchboard(self._mender.backend, self._mender.off)
        self._decoder = DecodeGraph(self.config, self.weights, self.board, self.dtype, self._params)
        self._prefiller = PrefillGraph(self.stock, self._decoder, self._chunk)
        self.replays = Replays()
        self._carried: list[CarriedState] = []

    @property
    def draw_backend(self) -> Backend:
        """Where tokens are drawn from the logits: on the kernels while all that a draw needs are on."""
        return self.board.backend if all(map(self.board.on, DRAW_KERNELS)) else StockBackend()

    def mend(self, error: Exception) -> bool:
        """Whether work that `error` ended may succeed when it is begun anew, with fresh caches: a kernel that failed is
        off then, or being looked for (see mending.py). Never raises."""
        mended = self._mender.mend(error)
        self._build()
        return mended

    def make_cache(self, batch: int = 1) -> SequenceCache:
        """An empty cache for `batch` sequences of one length; `decode` wants a batch of 1."""
        return SequenceCache(self.config, batch, self.dtype)

    def __call__(self, token_ids: TokenIds, cache: SequenceCache | None = None) -> mx.array:
        """As GptOssModel, by its stock path."""
        return self.stock(token_ids, cache)

    def prefill(self, token_ids: TokenIds, cache: SequenceCache, need_logits: bool = True) -> mx.array | None:
        """Adds token_ids [B, L] to `cache`; logits float32 [B, vocab] after the last one, or None.

        The last layer's attention and experts run for the last position only. Lazy up to 2,048 positions (evaluate
        the result, or `cache.arrays()`), evaluated in pieces beyond. Raises InvalidRequestError (shape, ids, cache)
        and ContextOverflowError.
        """
        ids = self.stock.checked(token_ids, cache)
        logits = self._prefiller.run(ids, cache, need_logits)
        self._went_well()
        return logits

    def decode(self, token_ids: mx.array, caches: Sequence[SequenceCache]) -> mx.array:
        """One step of S independent sequences: token_ids [S] and their caches (batch 1) to logits float32 [S, vocab].

        Lazy: nothing is evaluated; the caches are advanced. Weights are read once for up to 8 sequences. Padding ids
        have logit -inf. Raises InvalidRequestError and ContextOverflowError.
        """
        self._check(token_ids, caches)
        most = max(1, min(MAX_BATCH, PICKS_PER_SIMDGROUP // self.config.experts_per_token))
        starts = range(0, len(caches), most)
        while len(self._carried) < len(starts):
            self._carried.append(CarriedState(self.stock.rope))
        parts = [
            self._decode(token_ids[at : at + most], caches[at : at + most], carried)
            for at, carried in zip(starts, self._carried, strict=False)
        ]
        self._went_well()
        return parts[0] if len(parts) == 1 else mx.concatenate(parts)

    def _went_well(self) -> None:
        if self._mender.survived():
            self._build()

    def _decode(self, token_ids: mx.array, caches: Sequence[SequenceCache], carried: CarriedState) -> mx.array:
        plan, positions = self._prepare(caches)
        inputs = StepInputs(token_ids, carried.state(positions), tuple(cache.offset for cache in caches))
        layers = [[cache.layers[index] for cache in caches] for index in range(self.config.num_layers)]
        if self._decoder.replayable:
            result = self.replays.step(self._decoder, plan, inputs, layers)
        else:
            result = self._decoder.step(plan, inputs, layers)
        carried.carry(positions, result.numbers)
        if self.board.on(FULL):
            for row in layers:
                for layer in row:
                    if isinstance(layer, FullLayerCache):
                        layer.n_tail += 1
        for cache in caches:
            cache.advance(1)
        return result.logits

    def _prepare(self, caches: Sequence[SequenceCache]) -> tuple[Plan, list[Position]]:
        """Makes room for one more position in every cache; the step's plan and where the sequences are."""
        tuning = tuning_for(self.backend.family)
        positions, parts, capacities = [], [], []
        for cache in caches:
            n_main = n_tail = capacity = 0
            for layer in cache.layers:
                if isinstance(layer, FullLayerCache):
                    if self.board.on(FULL):
                        self._make_room(layer)
                    n_main, n_tail, capacity = layer.n_main, layer.n_tail, layer.capacity
            positions.append(Position(cache.offset, n_main, n_tail, capacity))
            parts.append(parts_for(n_main, tuning))
            capacities.append(capacity)
        merge: Literal["nowhere", "in_out", "apart"] = "apart"
        if len(caches) == 1 and parts[0] == 1:
            merge = "nowhere"
        elif len(caches) == 1 and parts[0] <= tuning.merge_in_out and self.board.on(FULL) and self.board.on(OUT):
            merge = "in_out"
        return Plan(tuple(parts), merge, tuple(capacities)), positions

    def _make_room(self, layer: FullLayerCache) -> None:
        """A main cache of some size, and a tail with room for one more position."""
        tail_k = layer.tail_k
        if tail_k is not None and layer.n_tail >= tail_k.shape[2]:
            layer.merge()
        if layer.capacity == 0:
            layer.reserve(1)
        if tail_k is None:
            shape = (1, self.config.num_kv_heads, self.tail, HEAD_DIM)
            layer.tail_k, layer.tail_v = mx.zeros(shape, dtype=self.dtype), mx.zeros(shape, dtype=self.dtype)

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


def check_config(config: ModelConfig) -> None:
    """Raises ConfigError unless the kernels have the shapes of this model."""
    if config.head_dim != HEAD_DIM:
        raise ConfigError("the kernels have one head size", expected=f"head_dim {HEAD_DIM}", got=str(config.head_dim))
    for name, size in (("hidden_size", config.hidden_size), ("intermediate_size", config.intermediate_size)):
        if size % 32:
            raise ConfigError(f"the kernels want `{name}` in blocks", expected="a multiple of 32", got=str(size))
