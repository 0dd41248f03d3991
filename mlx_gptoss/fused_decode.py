"""The graph of a decode step on our kernels: 6 launches a sliding layer, 6 or 7 a full one, and one for the logits.

A step depends on positions only through small arrays, so its graph is the same from token to token until a cache grows
or its attention is split further. `DecodeGraph` builds it; `Replays` keeps compiled graphs that occur again.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import mlx.core as mx

from mlx_gptoss.attention import attend
from mlx_gptoss.cache import FullLayerCache, LayerCache, SlidingLayerCache
from mlx_gptoss.config import ModelConfig
from mlx_gptoss.kernels import attention, attention_out, head, moe, qkv, router
from mlx_gptoss.kernels.attention import attention_full, attention_merge, attention_sliding, merge_counts
from mlx_gptoss.kernels.expert_rows import fits_halves
from mlx_gptoss.kernels.layout import HEAD_DIM
from mlx_gptoss.kernels.switchboard import Switchboard
from mlx_gptoss.kernels.tuning import Tuning, tuning_for
from mlx_gptoss.linear import look_up
from mlx_gptoss.stand_ins import (
    attention_out_stand_in,
    head_stand_in,
    moe_down_stand_in,
    moe_gate_up_stand_in,
    qkv_rope_stand_in,
)
from mlx_gptoss.step_state import StepState
from mlx_gptoss.weights import LayerWeights, ModelWeights

Layers = list[list[LayerCache]]
"""The caches of a step, layer by layer, one a sequence."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What decides a step's graph: the parts of each sequence's full layers, where they are merged (a single part of a
    single sequence nowhere, a few in the output projection), and each sequence's capacity."""

    parts: tuple[int, ...]
    merge: Literal["nowhere", "in_out", "apart"]
    capacities: tuple[int, ...]

    @property
    def rows(self) -> int:
        """Sequences in the step."""
        return len(self.parts)


@dataclass(frozen=True, slots=True)
class StepInputs:
    """What changes from step to step. token_ids: int [S]; offsets: the positions again, for a graph that is not
    replayed."""

    token_ids: mx.array
    state: StepState
    offsets: tuple[int, ...] = ()


LARGEST_LIMIT = 16.0
"""Of SwiGLU's clamp (7 in what is released): packed halves leave room for its square, and less for what is small."""


@dataclass(frozen=True, slots=True)
class StepResult:
    """logits: float32 [S, vocab]; numbers: `StepState.numbers` for the next step."""

    logits: mx.array
    numbers: mx.array


class DecodeGraph:
    """One decode step of up to 8 sequences, kernel by kernel, as `board` has them."""

    def __init__(
        self, config: ModelConfig, weights: ModelWeights, board: Switchboard, dtype: mx.Dtype, params: mx.array
    ) -> None:
        self.config = config
        self.weights = weights
        self.board = board
        self.dtype = dtype
        self.params = params
        self._halves: tuple[Tuning, dict[int, bool]] | None = None
        self._qkv = board.choose(qkv.NAME, qkv.qkv_rope, qkv_rope_stand_in)
        self._out = board.choose(attention_out.NAME, attention_out.attention_out, attention_out_stand_in)
        self._gate_up = board.choose(moe.GATE_UP, moe.moe_gate_up, moe_gate_up_stand_in)
        self._down = board.choose(moe.DOWN, moe.moe_down, moe_down_stand_in)
        self._head = board.choose(head.NAME, head.head, head_stand_in)

    @property
    def replayable(self) -> bool:
        """Whether the graph depends on positions through arrays alone. MLX's own attention wants to know lengths."""
        lazy = self.board.backend.name in ("metal", "cuda")
        return lazy and self.board.on(attention.FULL) and self.board.on(attention.SLIDING)

    def logits(self, x: mx.array) -> mx.array:
        """float32 [S, vocab] of the residual stream x [S, H] after the last layer, S = 1..8."""
        return self._head(
            x,
            self.weights.norm,
            self.weights.head,
            self.params,
            valid=self.config.used_vocab_size,
            backend=self.board.backend,
        )

    def step(self, plan: Plan, inputs: StepInputs, layers: Layers) -> StepResult:
        """The caches get their new tails and rings (but no new counts)."""
        config = self.config
        rope, lengths = inputs.state.rope(), inputs.state.lengths()
        x = look_up(self.weights.embed, inputs.token_ids, mx.float32)
        full = merge_counts(plan.parts) if plan.merge == "apart" else None
        sliding = merge_counts([1] * plan.rows) if plan.rows > 1 else None
        for weights, caches in zip(self.weights.layers, layers, strict=True):
            q, k, v = self._qkv(
                x,
                weights.attn_norm,
                weights.qkv,
                rope,
                self.params,
                heads=config.num_heads,
                kv_heads=config.num_kv_heads,
                dtype=self.dtype,
                backend=self.board.backend,
            )
            merged = True
            if isinstance(caches[0], FullLayerCache):
                a = self._full(q, k, v, weights.sinks, caches, plan, lengths, full)
                merged = plan.merge != "in_out"
            else:
                a = self._sliding(q, k, v, weights.sinks, caches, inputs.offsets, lengths, sliding)
            x = self.finish(x, a, weights, merged=merged)
        return StepResult(self.logits(x), inputs.state.next_numbers())

    def finish(self, x: mx.array, a: mx.array, weights: LayerWeights, *, merged: bool = True) -> mx.array:
        """Output projection, experts and both residuals: x [S, H] and attention a [S, heads * 64] or, where it is not
        `merged`, its parts [heads, parts, 68]; float32."""
        backend = self.board.backend
        x = self._out(a, weights.out, x, sinks=None if merged else weights.sinks, backend=backend)
        packed = self._takes_halves(weights, len(x))
        t, logits = router.router(
            x, weights.mlp_norm, weights.router, self.params, packed=packed, backend=self.board.backend_for(router.NAME)
        )
        h, picks, shares = self._gate_up(
            t, logits, weights.gate_up, self.params, top_k=self.config.experts_per_token, backend=backend
        )
        return self._down(h, picks, shares, weights.down, x, backend=backend)

    def _takes_halves(self, weights: LayerWeights, batch: int) -> bool:
        """See `takes_halves`. What the tuning says is kept for as long as it is the same."""
        tuning, config = tuning_for(self.board.backend.family), self.config
        if weights.gate_up.blocks is None or weights.down.blocks is None or config.swiglu_limit > LARGEST_LIMIT:
            return False
        if self._halves is None or self._halves[0] is not tuning:
            self._halves = tuning, {}
        known = self._halves[1]
        if batch not in known:
            sizes = config.hidden_size, config.intermediate_size, config.experts_per_token
            known[batch] = fits_halves(*sizes, tuning, batch)
        return known[batch]

    def _full(
        self,
        q: mx.array,
        k: mx.array,
        v: mx.array,
        sinks: mx.array,
        caches: list[LayerCache],
        plan: Plan,
        lengths: list[mx.array],
        counts: mx.array | None,
    ) -> mx.array:
        """Attends and stores, sequence by sequence: float32 [S, heads, 64], or of one sequence [heads, 64] or its
        parts."""
        outs = []
        for row, cache in enumerate(caches):
            if not isinstance(cache, FullLayerCache):
                continue
            if not self.board.on(attention.FULL):
                cache.append(k[row][None, :, None], v[row][None, :, None])
                outs.append(self._stock(q[row], *cache.view(), sinks))
                continue
            out, tail_k, tail_v = attention_full(
                q,
                k,
                v,
                cache.main_k,
                cache.main_v,
                _there(cache.tail_k),
                _there(cache.tail_v),
                sinks,
                lengths[row],
                parts=None if plan.merge == "nowhere" else plan.parts[row],
                backend=self.board.backend,
            )
            cache.tail_k, cache.tail_v = tail_k, tail_v
            outs.append(out)
        if not self.board.on(attention.FULL):
            return mx.stack(outs)
        return self._merge(outs, sinks, counts) if plan.merge == "apart" else outs[0]

    def _sliding(
        self,
        q: mx.array,
        k: mx.array,
        v: mx.array,
        sinks: mx.array,
        caches: list[LayerCache],
        offsets: tuple[int, ...],
        lengths: list[mx.array],
        counts: mx.array | None,
    ) -> mx.array:
        """As `_full`."""
        outs = []
        for row, cache in enumerate(caches):
            if not isinstance(cache, SlidingLayerCache):
                continue
            if not self.board.on(attention.SLIDING):
                offset = offsets[row]
                cache.append(k[row][None, :, None], v[row][None, :, None], offset)
                outs.append(self._stock(q[row], *cache.current(offset + 1), sinks))
                continue
            out, ring_k, ring_v = attention_sliding(
                q,
                k,
                v,
                cache.ring_k,
                cache.ring_v,
                sinks,
                lengths[row],
                parts=1 if len(caches) > 1 else None,
                backend=self.board.backend,
            )
            cache.ring_k, cache.ring_v = ring_k, ring_v
            outs.append(out)
        if not self.board.on(attention.SLIDING):
            return mx.stack(outs)
        return self._merge(outs, sinks, counts) if len(caches) > 1 else outs[0]

    def _merge(self, outs: list[mx.array], sinks: mx.array, counts: mx.array | None) -> mx.array:
        return attention_merge(outs, sinks, counts, backend=self.board.backend_for(attention.MERGE))

    def _stock(self, q: mx.array, keys: mx.array, values: mx.array, sinks: mx.array) -> mx.array:
        """MLX's attention of one new position: q [heads, 64] to float32 [heads, 64]."""
        y = attend(q.astype(keys.dtype)[None, :, None], keys, values, sinks.astype(keys.dtype))
        return y.reshape(-1, HEAD_DIM).astype(mx.float32)


Replay = Callable[[mx.array, mx.array, mx.array, list[mx.array]], tuple[mx.array, mx.array, list[mx.array]]]
"""(token_ids, the state's numbers and rotations, the caches' arrays) to (logits, next numbers, the caches' new
arrays)."""


class Replays:
    """Compiled steps by plan. A plan is compiled the second time it occurs; the least recently used goes first.

    A compiled step costs the host a fraction of a step built anew: no argument is checked and no text looked up.
    """

    def __init__(self, most: int = 16) -> None:
        self._most = most
        self._seen: Counter[Plan] = Counter()
        self._compiled: OrderedDict[Plan, Replay] = OrderedDict()

    def __len__(self) -> int:
        return len(self._compiled)

    def step(self, graph: DecodeGraph, plan: Plan, inputs: StepInputs, layers: Layers) -> StepResult:
        """As `DecodeGraph.step`."""
        replay = self._compiled.get(plan)
        if replay is None:
            self._seen[plan] += 1
            if self._seen[plan] < 2:
                if len(self._seen) > 64 * self._most:
                    self._seen.clear()
                return graph.step(plan, inputs, layers)
            replay = self._compiled[plan] = compile_step(graph, plan)
            if len(self._compiled) > self._most:
                self._compiled.popitem(last=False)
        self._compiled.move_to_end(plan)
        state = inputs.state
        logits, numbers, fresh = replay(inputs.token_ids, state.numbers, state.rotations, list(_arrays(layers)))
        _put_back(layers, fresh)
        return StepResult(logits, numbers)


def compile_step(graph: DecodeGraph, plan: Plan) -> Replay:
    """The graph of one plan, built once and replayed. It shares nothing with the caches it was built on."""

    def step(
        token_ids: mx.array, numbers: mx.array, rotations: mx.array, arrays: list[mx.array]
    ) -> tuple[mx.array, mx.array, list[mx.array]]:
        layers = _layers(graph.config, plan, iter(arrays))
        result = graph.step(plan, StepInputs(token_ids, StepState(numbers, rotations)), layers)
        return result.logits, result.numbers, list(_written(layers))

    compiled: Replay = mx.compile(step)
    return compiled


def _arrays(layers: Layers) -> Iterator[mx.array]:
    """Every array a step reads."""
    for caches in layers:
        for cache in caches:
            yield from cache.arrays()


def _written(layers: Layers) -> Iterator[mx.array]:
    """Every array a step makes anew: never a main cache."""
    for caches in layers:
        for cache in caches:
            if isinstance(cache, FullLayerCache):
                yield from (_there(cache.tail_k), _there(cache.tail_v))
            else:
                yield from cache.arrays()


def _put_back(layers: Layers, written: Sequence[mx.array]) -> None:
    fresh = iter(written)
    for caches in layers:
        for cache in caches:
            if isinstance(cache, FullLayerCache):
                cache.tail_k, cache.tail_v = next(fresh), next(fresh)
            else:
                cache.ring_k, cache.ring_v = next(fresh), next(fresh)


def _layers(config: ModelConfig, plan: Plan, arrays: Iterator[mx.array]) -> Layers:
    def one(kind: str) -> LayerCache:
        if kind == "full_attention":
            return FullLayerCache(next(arrays), next(arrays), 0, next(arrays), next(arrays))
        return SlidingLayerCache(next(arrays), next(arrays))

    return [[one(kind) for _ in range(plan.rows)] for kind in config.layer_types]


def _there(array: mx.array | None) -> mx.array:
    """A tail, which every step is given."""
    return mx.zeros((1, 1, 1, HEAD_DIM)) if array is None else array
