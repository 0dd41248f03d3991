"""Which expert takes which token of a prompt, without the host (metal/prefill_topk.metal, metal/prefill_sort.metal)."""

from __future__ import annotations

from dataclasses import dataclass

import mlx.core as mx

from mlx_gptoss.errors import KernelError
from mlx_gptoss.kernels.backend import Backend
from mlx_gptoss.kernels.layout import SMALLEST_INPUT, check_array
from mlx_gptoss.kernels.prefill_tuning import PrefillTuning, prefill_tuning_for
from mlx_gptoss.kernels.source import load_kernel

TOPK = "prefill_topk"
SORT = "prefill_sort"


@dataclass(frozen=True, slots=True)
class Routing:
    """The pairs (token, expert) of a prompt, sorted by expert; R = L * top_k pairs, pair = token * top_k + rank.

    picks int32 [L, top_k]; weights float32 [L, top_k]; order int32 [R], the pair at each slot; inverse int32 [R], the
    slot of each pair; tiles int32 [T, 4]: expert, first slot, slots (0: unused), 0, at most `tile_rows` slots each.
    """

    picks: mx.array
    weights: mx.array
    order: mx.array
    inverse: mx.array
    tiles: mx.array
    tile_rows: int


def prefill_topk(
    logits: mx.array, *, top_k: int, backend: Backend, tuning: PrefillTuning | None = None
) -> tuple[mx.array, mx.array]:
    """The top_k experts of each token, best first, ties to the lower expert: int32 [L, top_k], and the softmax over
    their logits: float32 [L, top_k].

    logits: [L, E] float32. Raises KernelError.
    """
    check_array("logits", logits, (None, None), (mx.float32,), TOPK)
    length, experts = logits.shape
    if not 1 <= top_k <= min(experts, 32):
        raise KernelError("top_k is at most the number of experts and 32", got=str(top_k), where=TOPK)
    if backend.name == "stock" or logits.size < SMALLEST_INPUT:
        return prefill_topk_twin(logits, top_k=top_k)
    simdgroups = (tuning or prefill_tuning_for(backend.family)).topk_simdgroups
    groups = -(-length // simdgroups)
    picks, weights = backend.launch(
        load_kernel(TOPK),
        [logits, _params(length)],
        [("E", experts), ("TOPK", top_k), ("SIMDGROUPS", simdgroups)],
        (groups * simdgroups * 32, 1, 1),
        (simdgroups * 32, 1, 1),
        [(length, top_k), (length, top_k)],
        [mx.int32, mx.float32],
    )
    return picks, weights


def prefill_topk_twin(logits: mx.array, *, top_k: int) -> tuple[mx.array, mx.array]:
    """The same in plain mx."""
    picks = mx.argsort(-logits, axis=-1)[:, :top_k]
    weights = mx.softmax(mx.take_along_axis(logits, picks, axis=-1), axis=-1, precise=True)
    return picks.astype(mx.int32), weights


def prefill_sort(
    picks: mx.array, weights: mx.array, *, experts: int, backend: Backend, tuning: PrefillTuning | None = None
) -> Routing:
    """Sorts a prompt's pairs by expert, in token order within one, and cuts them into tiles. Nothing is evaluated.

    picks, weights: as `prefill_topk` gives them. Raises KernelError.
    """
    check_array("picks", picks, (None, None), (mx.int32,), SORT)
    check_array("weights", weights, picks.shape, (mx.float32,), SORT)
    tuning = tuning or prefill_tuning_for(backend.family)
    rows = tuning.gate_up.rows
    if tuning.down.rows != rows:
        raise KernelError("both products have tiles of the same rows", got=str(tuning.down.rows), where=SORT)
    count = picks.size
    tiles = tile_bound(count, experts, rows)
    threads = tuning.sort_threads
    if backend.name == "stock" or count < SMALLEST_INPUT or not experts <= threads:
        return prefill_sort_twin(picks, weights, experts=experts, tile_rows=rows)
    order, inverse, table = backend.launch(
        load_kernel(SORT),
        [picks.reshape(-1), _params(count, tiles)],
        [("E", experts), ("BM", rows), ("THREADS", threads)],
        (threads, 1, 1),
        (threads, 1, 1),
        [(count,), (count,), (tiles, 4)],
        [mx.int32, mx.int32, mx.int32],
    )
    return Routing(picks, weights, order, inverse, table, rows)


def prefill_sort_twin(picks: mx.array, weights: mx.array, *, experts: int, tile_rows: int) -> Routing:
    """The same in plain mx."""
    flat = picks.reshape(-1)
    count = flat.size
    order = mx.argsort(flat * count + mx.arange(count), axis=-1).astype(mx.int32)
    inverse = mx.argsort(order, axis=-1).astype(mx.int32)
    sizes = mx.sum(flat[:, None] == mx.arange(experts)[None], axis=0).astype(mx.int32)
    need = (sizes + (tile_rows - 1)) // tile_rows
    stops, tile_stops = mx.cumsum(sizes), mx.cumsum(need)
    tile = mx.arange(tile_bound(count, experts, tile_rows), dtype=mx.int32)
    owner = mx.sum(tile[:, None] >= tile_stops[None], axis=1).astype(mx.int32)
    used = owner < experts
    owner = mx.where(used, owner, 0)
    first = (stops - sizes)[owner] + (tile - (tile_stops - need)[owner]) * tile_rows
    slots = mx.minimum(tile_rows, stops[owner] - first)
    zero = mx.zeros_like(tile)
    table = mx.stack([owner, mx.where(used, first, 0), mx.where(used, slots, 0), zero], axis=1).astype(mx.int32)
    return Routing(picks, weights, order, inverse, table, tile_rows)


def tile_bound(count: int, experts: int, tile_rows: int) -> int:
    """The most tiles that `count` pairs can need, whatever the routing (at least 2, the smallest input)."""
    return max(2, count // tile_rows + min(experts, count))


def _params(first: int, second: int = 0) -> mx.array:
    return mx.array([first, second, 0, 0, 0, 0, 0, 0], dtype=mx.int32)
