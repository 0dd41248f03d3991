"""Draws the next token of every row of a batch, on the device, from one uniform number a row.

Each row has its own parameters and its own random stream, keyed by its seed and the token's index, so a row's
tokens do not depend on its neighbours, and a redone step draws the same number.

Top-k and the reported alternatives come from the blocks with the largest maxima (the k largest logits lie in at most
k blocks), without a sort of the vocabulary; top-p looks at the same candidates within top-k and sorts otherwise. The
draw uses cumulative sums in two levels (blocks, then inside one block), which keeps the mass of the tail that one long
float32 sum would lose.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import mlx.core as mx
import numpy as np

from mlx_gptoss.engine.constraint import Mask, stack_masks
from mlx_gptoss.engine.host_draw import draw_on_host
from mlx_gptoss.engine.row_sampler import LogitEdit, RowSampler

_CANDIDATE_BLOCK = 64
_CDF_BLOCKS = (512, 384, 256, 128)
_SHARPEST = 1e30
_LARGEST_UNIFORM = 1.0 - 2.0**-23
_TOP_K_BY_CANDIDATES = 128


@dataclass(frozen=True, slots=True)
class Sampled:
    """One step's draw for S rows, lazy. `peak` is each row's largest logit after masking: NaN when its logits are
    broken, -inf when nothing is allowed. Log-probabilities are of the raw logits; `top_*` are sorted, best first."""

    tokens: mx.array  # int32 [S]
    peak: mx.array  # [S]
    logprobs: mx.array | None = None  # float32 [S]
    top_ids: mx.array | None = None  # int32 [S, n]
    top_logprobs: mx.array | None = None  # float32 [S, n]

    def arrays(self) -> list[mx.array]:
        return [
            array
            for array in (self.tokens, self.peak, self.logprobs, self.top_ids, self.top_logprobs)
            if array is not None
        ]


class Sampler:
    """Samples batches. `blocking` says that waiting for the device costs nothing, because the device is the CPU:
    then the draw is numpy's."""

    def __init__(self, blocking: bool | None = None) -> None:
        on_cpu = mx.default_device() == mx.Device(mx.cpu)
        self.blocking = on_cpu if blocking is None else blocking
        # Every launch costs the host time. (On a CPU, compiling would need a C++ compiler at run time.)
        self._weigh: Callable[[mx.array, mx.array, mx.array], list[mx.array]] = _weigh if on_cpu else mx.compile(_weigh)
        self._pick: Callable[[mx.array, mx.array, mx.array], list[mx.array]] = _pick if on_cpu else mx.compile(_pick)

    def may_block(self, row: RowSampler) -> bool:
        """Whether sampling this row waits for its logits."""
        return self.blocking and not row.greedy

    def sample(
        self, logits: mx.array, rows: Sequence[RowSampler], masks: Sequence[Mask | None] | None = None
    ) -> Sampled:
        """Draws one token for each row of `logits` [S, vocab] (any float dtype). `masks` as TokenConstraint's."""
        edits = [row.edit() for row in rows]
        edited = any(edit is not None for edit in edits)
        masked = masks is not None and any(mask is not None for mask in masks)
        greedy = all(row.greedy for row in rows)
        reported = max((row.params.logprobs for row in rows if row.params.logprobs is not None), default=None)
        if greedy and not edited and not masked and reported is None:
            tokens = mx.argmax(logits, axis=-1).astype(mx.int32)
            return Sampled(tokens, mx.take_along_axis(logits, tokens[:, None], axis=-1)[:, 0])
        raw = logits.astype(mx.float32)
        scores = _apply_edits(raw, edits) if edited else raw
        if masks is not None and masked:
            scores = _apply_masks(scores, stack_masks(list(masks), logits.shape[-1]))
        if greedy:
            tokens = mx.argmax(scores, axis=-1).astype(mx.int32)
            peak = mx.take_along_axis(scores, tokens[:, None], axis=-1)[:, 0]
        elif self.blocking:
            peak = mx.max(scores, axis=-1)
            tokens = mx.array(draw_on_host(np.array(scores), rows))
        else:
            tokens, peak = self._draw(scores, rows)
        if reported is None:
            return Sampled(tokens, peak)
        total = mx.logsumexp(raw, axis=-1, keepdims=True)
        chosen = (mx.take_along_axis(raw, tokens[:, None], axis=-1) - total)[:, 0]
        if reported == 0:
            return Sampled(tokens, peak, chosen)
        values, ids = top_candidates(raw, min(reported, raw.shape[-1]))
        return Sampled(tokens, peak, chosen, ids, values - total)

    def _draw(self, scores: mx.array, rows: Sequence[RowSampler]) -> tuple[mx.array, mx.array]:
        """Tokens int32 [S] and peaks [S]. A greedy row is one so cold that only its best logits have weight, of which
        the number 0 picks the first."""
        inverse = mx.array([_SHARPEST if row.greedy else 1.0 / row.params.temperature for row in rows])[:, None]
        uniform = mx.array([0.0 if row.greedy else min(row.uniform(), _LARGEST_UNIFORM) for row in rows])[:, None]
        peak = mx.max(scores, axis=-1, keepdims=True)
        scaled, weights = self._weigh(scores, peak, inverse)
        floor = self._floor(scaled, weights, rows)
        if floor is not None:
            weights = mx.where(scaled >= floor, weights, 0.0)
        tokens, peak = self._pick(weights, uniform, peak)
        return tokens, peak

    def _floor(self, scaled: mx.array, weights: mx.array, rows: Sequence[RowSampler]) -> mx.array | None:
        """The lowest scaled logit each row may draw, [S, 1], or None when no row is truncated.

        As elsewhere, top-k comes first, then the nucleus of what it leaves; ties at an end are kept."""
        vocab = scaled.shape[-1]
        floors = []
        if any(row.params.min_p > 0 for row in rows):
            floors.append(mx.array([np.log(row.params.min_p) if row.params.min_p > 0 else -np.inf for row in rows]))
        limits = [row.params.top_k if 0 < row.params.top_k < vocab else vocab for row in rows]
        top_k = None
        if any(limit < vocab for limit in limits):
            top_k = self._top_k_floor(scaled, limits)
            floors.append(top_k)
        if any(row.params.top_p < 1 for row in rows):
            kept = weights if top_k is None else mx.where(scaled >= top_k[:, None], weights, 0.0)
            shares = mx.array([row.params.top_p for row in rows])[:, None]
            within_top_k = all(limit <= _TOP_K_BY_CANDIDATES for limit in limits)
            nucleus = self._nucleus_floor(scaled, kept, shares, max(limits) if within_top_k else None)
            floors.append(mx.where(shares[:, 0] < 1, nucleus, -mx.inf))
        if not floors:
            return None
        floor = floors[0]
        for other in floors[1:]:
            floor = mx.maximum(floor, other)
        return floor.astype(mx.float32)[:, None]

    def _nucleus_floor(self, scaled: mx.array, weights: mx.array, shares: mx.array, enough: int | None) -> mx.array:
        """The highest logit such that it and those above hold `shares` of the mass: [S]. `enough` candidates are
        known to hold all of it where it is given."""
        wanted = shares * mx.sum(weights, axis=-1, keepdims=True)
        if enough is not None:
            values, ids = top_candidates(scaled, enough)
        else:
            ids = mx.argsort(-scaled, axis=-1)
            values = mx.take_along_axis(scaled, ids, axis=-1)
        held = mx.where(values > -mx.inf, mx.take_along_axis(weights, ids, axis=-1), 0.0)
        mass = mx.cumsum(held, axis=-1)
        # Sums in another order may differ in the last bit: the last one always reaches.
        place = mx.argmax(mass >= mx.minimum(wanted, mass[:, -1:]), axis=-1)[:, None]
        return mx.take_along_axis(values, place, axis=-1)[:, 0]

    def _top_k_floor(self, scaled: mx.array, limits: list[int]) -> mx.array:
        vocab = scaled.shape[-1]
        largest = max(limit for limit in limits if limit < vocab)
        if largest <= _TOP_K_BY_CANDIDATES:
            values = top_candidates(scaled, largest)[0]
        else:
            values = mx.sort(scaled, axis=-1)[:, ::-1]
        places = mx.array([min(limit, values.shape[-1]) - 1 for limit in limits])
        floor = mx.take_along_axis(values, places[:, None], axis=-1)[:, 0]
        return mx.where(mx.array([limit < vocab for limit in limits]), floor, -mx.inf)


def top_candidates(scores: mx.array, count: int) -> tuple[mx.array, mx.array]:
    """The `count` largest of each row of float32 [S, vocab], best first: values and int32 ids, both [S, count]."""
    blocks = _blocks(scores, _CANDIDATE_BLOCK, -mx.inf)
    rows, groups, width = blocks.shape
    kept = min(count, groups)
    if kept < groups:
        places = mx.argpartition(-mx.max(blocks, axis=-1), kth=kept - 1, axis=-1)[:, :kept]
        # In the vocabulary's order, so that equal logits rank by id whatever the partition did.
        places = mx.sort(places, axis=-1)
        values = mx.take_along_axis(blocks, places[:, :, None], axis=1).reshape(rows, kept * width)
        ids = (places[:, :, None] * width + mx.arange(width)).reshape(rows, kept * width)
    else:
        values = blocks.reshape(rows, groups * width)
        if count < values.shape[-1]:
            ids = mx.sort(mx.argpartition(-values, kth=count - 1, axis=-1)[:, :count], axis=-1)
            values = mx.take_along_axis(values, ids, axis=-1)
        else:
            ids = mx.broadcast_to(mx.arange(groups * width), values.shape)
    order = mx.argsort(-values, axis=-1)[:, :count]
    best = mx.take_along_axis(ids, order, axis=-1).astype(mx.int32)
    # Padding has logit -inf and may stand for other ids that have: any id of the vocabulary will do.
    return mx.take_along_axis(values, order, axis=-1), mx.minimum(best, scores.shape[-1] - 1)


def _blocks(array: mx.array, width: int, fill: float) -> mx.array:
    """[S, vocab] as [S, groups, width], padded with `fill`."""
    missing = -array.shape[-1] % width
    if missing:
        array = mx.pad(array, [(0, 0), (0, missing)], constant_values=fill)
    return array.reshape(array.shape[0], -1, width)


def _weigh(scores: mx.array, peak: mx.array, inverse: mx.array) -> list[mx.array]:
    scaled = (scores - peak) * inverse
    return [scaled, mx.exp(scaled)]


def _pick(weights: mx.array, uniform: mx.array, peak: mx.array) -> list[mx.array]:
    """The id whose share of the summed weights [S, vocab] covers each row's uniform number [S, 1]: int32 [S]; and the
    peaks, NaN where the weights are."""
    width = next((width for width in _CDF_BLOCKS if weights.shape[-1] % width == 0), _CDF_BLOCKS[0])
    blocks = _blocks(weights, width, 0.0)
    sums = mx.sum(blocks, axis=-1)
    edges = mx.cumsum(sums, axis=-1)
    target = uniform * edges[:, -1:]
    group = mx.argmax(edges > target, axis=-1)[:, None]
    before = mx.take_along_axis(edges - sums, group, axis=-1)
    inside = mx.cumsum(mx.take_along_axis(blocks, group[:, :, None], axis=1)[:, 0], axis=-1)
    # Rounding may put the target a hair outside its block; strictly below the block's end there is an id with mass.
    rest = mx.minimum(mx.maximum(target - before, 0.0), inside[:, -1:] * _LARGEST_UNIFORM)
    place = mx.argmax(inside > rest, axis=-1)[:, None]
    tokens = (group.astype(mx.int32) * width + place.astype(mx.int32))[:, 0]
    checked = mx.where(mx.abs(peak) < mx.inf, peak + 0.0 * edges[:, -1:], peak)
    return [tokens, checked[:, 0]]


def _apply_masks(scores: mx.array, masks: Mask) -> mx.array:
    bits = (mx.array(masks)[:, :, None] >> mx.arange(32, dtype=mx.uint32)) & 1
    allowed = bits.reshape(scores.shape[0], -1)[:, : scores.shape[1]].astype(mx.bool_)
    return mx.where(allowed, scores, -mx.inf)


def _apply_edits(scores: mx.array, edits: Sequence[LogitEdit | None]) -> mx.array:
    """Penalties and biases: at each row's ids, divide or multiply by `factors`, then add `shifts`."""
    width = max(len(edit.ids) for edit in edits if edit is not None)
    ids = np.zeros((len(edits), width), dtype=np.int32)
    factors = np.ones((len(edits), width), dtype=np.float32)
    shifts = np.zeros((len(edits), width), dtype=np.float32)
    for row, edit in enumerate(edits):
        if edit is None:
            continue
        count = len(edit.ids)
        # Padding repeats the last edit: writing the same value twice changes nothing.
        for target, source in ((ids, edit.ids), (factors, edit.factors), (shifts, edit.shifts)):
            target[row, :count] = source
            target[row, count:] = source[-1]
    places = mx.array(ids)
    values = mx.take_along_axis(scores, places, axis=-1)
    scale = mx.array(factors)
    values = mx.where(values > 0, values / scale, values * scale) + mx.array(shifts)
    return mx.put_along_axis(scores, places, values, axis=-1)
