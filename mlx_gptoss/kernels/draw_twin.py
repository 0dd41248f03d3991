"""The draw in plain mx: the kernels' oracle, and what stands in for them.

Top-k and the reported alternatives come from the blocks with the largest maxima (the k largest logits lie in at most
k blocks), without a sort of the vocabulary; top-p looks at the same candidates within top-k and sorts otherwise. The
draw uses cumulative sums in two levels (blocks, then inside one block), which keeps the mass of the tail that one long
float32 sum would lose.
"""

from __future__ import annotations

import mlx.core as mx

from mlx_gptoss.kernels.draws import LARGEST_NUMBER, Drawn, Draws, log_min_p

_CANDIDATE_BLOCK = 64
_CDF_BLOCKS = (512, 384, 256, 128)
_TOP_K_BY_CANDIDATES = 128


def draw_twin(scores: mx.array, raw: mx.array, draws: Draws, *, logprobs: bool) -> Drawn:
    """As `draw`."""
    inverse = mx.array(draws.inverse)[:, None]
    number = mx.array([min(number, LARGEST_NUMBER) for number in draws.number])[:, None]
    peak = mx.max(scores, axis=-1, keepdims=True)
    scaled = (scores - peak) * inverse
    weights = mx.exp(scaled)
    floor = _floor(scaled, weights, draws)
    if floor is not None:
        weights = mx.where(scaled >= floor, weights, 0.0)
    tokens, peaks = _pick(weights, number, peak)
    return with_logprobs(tokens, peaks, raw) if logprobs else Drawn(tokens, peaks)


def with_logprobs(tokens: mx.array, peaks: mx.array, raw: mx.array) -> Drawn:
    """What was drawn, with its log-probabilities in `raw`, float32 [S, vocab]."""
    totals = mx.logsumexp(raw, axis=-1)
    chosen = mx.take_along_axis(raw, tokens[:, None], axis=-1)[:, 0]
    return Drawn(tokens, peaks, chosen - totals, totals)


def chunks_of(vocab: int, chunk: int) -> int:
    """Chunks of a row: at least 2, so that one row's parts are no smaller than a kernel's input may be."""
    return max(2, -(-vocab // chunk))


def draw_parts_twin(logits: mx.array, settings: mx.array, chunk: int) -> mx.array:
    """As `draw_parts`."""
    blocks = _blocks(logits, chunk, -mx.inf)
    missing = chunks_of(logits.shape[-1], chunk) - blocks.shape[1]
    blocks = mx.pad(blocks, [(0, 0), (0, missing), (0, 0)], constant_values=-mx.inf)
    best = mx.max(blocks, axis=-1, keepdims=True)
    below = mx.where(blocks == -mx.inf, -mx.inf, blocks - best)
    weights = mx.sum(mx.exp(below * settings[:, 0, None, None]), axis=-1)
    return mx.stack([best[..., 0], weights, mx.sum(mx.exp(below), axis=-1), mx.zeros_like(weights)], axis=-1)


def _floor(scaled: mx.array, weights: mx.array, draws: Draws) -> mx.array | None:
    """The lowest scaled logit each row may draw, [S, 1], or None when no row is truncated."""
    vocab = scaled.shape[-1]
    floors = []
    if any(draws.min_p):
        floors.append(mx.array(log_min_p(draws)))
    limits = draws.limits(vocab)
    top_k = None
    if any(limit < vocab for limit in limits):
        top_k = _top_k_floor(scaled, limits)
        floors.append(top_k)
    if any(p < 1 for p in draws.top_p):
        kept = weights if top_k is None else mx.where(scaled >= top_k[:, None], weights, 0.0)
        shares = mx.array(draws.top_p)[:, None]
        within_top_k = all(limit <= _TOP_K_BY_CANDIDATES for limit in limits)
        nucleus = _nucleus_floor(scaled, kept, shares, max(limits) if within_top_k else None)
        floors.append(mx.where(shares[:, 0] < 1, nucleus, -mx.inf))
    if not floors:
        return None
    floor = floors[0]
    for other in floors[1:]:
        floor = mx.maximum(floor, other)
    return floor.astype(mx.float32)[:, None]


def _nucleus_floor(scaled: mx.array, weights: mx.array, shares: mx.array, enough: int | None) -> mx.array:
    """The highest logit such that it and those above hold `shares` of the mass: [S]. `enough` candidates are known to
    hold all of it where it is given."""
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


def _top_k_floor(scaled: mx.array, limits: list[int]) -> mx.array:
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


def _pick(weights: mx.array, number: mx.array, peak: mx.array) -> tuple[mx.array, mx.array]:
    """The id whose share of the summed weights [S, vocab] covers each row's number [S, 1]: int32 [S]; and the peaks,
    NaN where the weights are."""
    width = next((width for width in _CDF_BLOCKS if weights.shape[-1] % width == 0), _CDF_BLOCKS[0])
    blocks = _blocks(weights, width, 0.0)
    sums = mx.sum(blocks, axis=-1)
    edges = mx.cumsum(sums, axis=-1)
    target = number * edges[:, -1:]
    group = mx.argmax(edges > target, axis=-1)[:, None]
    before = mx.take_along_axis(edges - sums, group, axis=-1)
    inside = mx.cumsum(mx.take_along_axis(blocks, group[:, :, None], axis=1)[:, 0], axis=-1)
    # Rounding may put the target a hair outside its block; strictly below the block's end there is an id with mass.
    rest = mx.minimum(mx.maximum(target - before, 0.0), inside[:, -1:] * LARGEST_NUMBER)
    place = mx.argmax(inside > rest, axis=-1)[:, None]
    tokens = (group.astype(mx.int32) * width + place.astype(mx.int32))[:, 0]
    checked = mx.where(mx.abs(peak) < mx.inf, peak + 0.0 * edges[:, -1:], peak)
    return tokens, checked[:, 0]
