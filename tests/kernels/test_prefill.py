"""The prefill kernels against their twins and against independent oracles, at the edges of their tiles."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlx_gptoss.errors import KernelError
from mlx_gptoss.kernels.backend import Backend, StockBackend
from mlx_gptoss.kernels.layout import picked_weight
from mlx_gptoss.kernels.prefill_attention import prefill_attention, prefill_attention_twin
from mlx_gptoss.kernels.prefill_moe import (
    prefill_moe_down,
    prefill_moe_down_twin,
    prefill_moe_gate_up,
    prefill_moe_gate_up_twin,
    prefill_moe_sum,
    prefill_moe_sum_twin,
)
from mlx_gptoss.kernels.prefill_qkv import prefill_rope
from mlx_gptoss.kernels.prefill_routing import Routing, prefill_sort, prefill_sort_twin, prefill_topk, tile_bound
from mlx_gptoss.kernels.prefill_tuning import PrefillTuning, Tile, prefill_tuning_for
from mlx_gptoss.weights import Experts
from tests.kernels.decode_data import PARAMS, close, experts, floats
from tests.kernels.prefill_backend import device_or_bench

BF16 = 6e-3
"""Rounding of a bfloat16 result, as a share of the largest value."""


@pytest.fixture(scope="module")
def backend() -> Backend:
    return device_or_bench()


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(7)


def routing_of(picks: np.ndarray, count: int, tile_rows: int) -> Routing:
    weights = mx.array(np.random.default_rng(1).random(picks.shape, dtype=np.float32))
    return prefill_sort_twin(mx.array(picks.astype(np.int32)), weights, experts=count, tile_rows=tile_rows)


def tile_rows(backend: Backend) -> int:
    return prefill_tuning_for(backend.family).gate_up.rows


@pytest.mark.parametrize(("length", "count", "top_k"), [(1, 32, 4), (5, 32, 4), (9, 128, 4), (6, 8, 2), (3, 40, 1)])
def test_topk_takes_the_best_and_their_softmax(
    backend: Backend, rng: np.random.Generator, length: int, count: int, top_k: int
) -> None:
    logits = floats(rng, length, count)
    picks, weights = prefill_topk(logits, top_k=top_k, backend=backend)
    wanted = np.argsort(-np.array(logits), axis=-1, kind="stable")[:, :top_k]
    assert np.array_equal(np.array(picks), wanted)
    chosen = np.take_along_axis(np.array(logits), wanted, axis=-1).astype(np.float64)
    power = np.exp(chosen - chosen.max(axis=-1, keepdims=True))
    close(weights, mx.array((power / power.sum(axis=-1, keepdims=True)).astype(np.float32)))


def test_topk_ties_go_to_the_lower_expert(backend: Backend) -> None:
    picks, weights = prefill_topk(mx.zeros((3, 32)), top_k=4, backend=backend)
    assert picks.tolist() == [[0, 1, 2, 3]] * 3
    close(weights, mx.full((3, 4), 0.25))


@settings(max_examples=12, deadline=None)
@given(
    length=st.integers(2, 90),
    count=st.sampled_from([8, 32, 40]),
    spread=st.sampled_from([0, 1, 7]),
    seed=st.integers(0, 99),
)
def test_sort_is_a_stable_counting_sort_with_whole_tiles(length: int, count: int, spread: int, seed: int) -> None:
    backend = device_or_bench()
    random = np.random.default_rng(seed)
    picks = random.integers(0, 1 + spread, (length, 4)) * (count - 1) // max(1, spread)
    weights = mx.zeros((length, 4))
    routing = prefill_sort(mx.array(picks.astype(np.int32)), weights, experts=count, backend=backend)
    flat = picks.reshape(-1)
    order = np.argsort(flat, kind="stable")
    assert np.array_equal(np.array(routing.order), order)
    assert np.array_equal(np.array(routing.inverse)[order], np.arange(flat.size))
    covered = np.zeros(flat.size, dtype=int)
    for expert, first, slots, zero in np.array(routing.tiles).tolist():
        assert 0 <= slots <= routing.tile_rows
        assert zero == 0
        covered[first : first + slots] += 1
        assert (flat[order[first : first + slots]] == expert).all()
    assert (covered == 1).all()


def test_sort_twin_agrees_with_the_kernel_on_every_array(backend: Backend, rng: np.random.Generator) -> None:
    picks = mx.array(rng.integers(0, 5, (150, 4)).astype(np.int32))
    weights = mx.zeros((150, 4))
    got = prefill_sort(picks, weights, experts=32, backend=backend)
    want = prefill_sort_twin(picks, weights, experts=32, tile_rows=got.tile_rows)
    for name in ("order", "inverse", "tiles"):
        assert mx.array_equal(getattr(got, name), getattr(want, name)), name


def swiglu_oracle(y: np.ndarray) -> np.ndarray:
    gate, linear = np.minimum(y[..., ::2], 7.0), np.clip(y[..., 1::2], -7.0, 7.0)
    return np.asarray(gate / (1.0 + np.exp(-1.702 * gate)) * (linear + 1.0))


def dense_oracle(x: np.ndarray, weights: Experts, owners: np.ndarray) -> np.ndarray:
    matrices = np.array(picked_weight(weights, mx.arange(weights.num_experts))).astype(np.float64)
    bias = np.array(weights.bias.astype(mx.float32)).astype(np.float64)
    return np.stack([matrices[e] @ row + bias[e] for row, e in zip(x.astype(np.float64), owners, strict=True)])


ROUTINGS: dict[str, Callable[[np.random.Generator, int], np.ndarray]] = {
    "one_expert_takes_all": lambda rng, length: np.zeros((length, 1), dtype=np.int64) + np.array([0]),
    "spread": lambda rng, length: np.stack([rng.permutation(8)[:4] for _ in range(length)]),
    "last_expert_only": lambda rng, length: np.full((length, 1), 7),
}


@pytest.mark.parametrize("kind", ROUTINGS)
@pytest.mark.parametrize(("length", "columns", "inner"), [(9, 64, 32), (33, 96, 48), (65, 32, 66)])
def test_grouped_products_match_a_double_precision_oracle(
    backend: Backend, rng: np.random.Generator, kind: str, length: int, columns: int, inner: int
) -> None:
    picks = ROUTINGS[kind](rng, length)
    routing = routing_of(picks, 8, tile_rows(backend))
    order, owners = np.array(routing.order), picks.reshape(-1)[np.array(routing.order)]
    x = floats(rng, length, columns, dtype=mx.bfloat16)
    gate_up = experts(rng, 8, 2 * inner, columns)
    h = prefill_moe_gate_up(x, gate_up, routing, PARAMS, backend=backend)
    rows = np.array(x.astype(mx.float32))[order // picks.shape[1]]
    want = swiglu_oracle(dense_oracle(rows, gate_up, owners))
    close(h, mx.array(want.astype(np.float32)), BF16)
    close(prefill_moe_gate_up_twin(x.astype(mx.float32), gate_up, routing, PARAMS), mx.array(want.astype(np.float32)))

    inputs = floats(rng, order.size, columns, dtype=mx.bfloat16)
    down = experts(rng, 8, inner, columns)
    y = prefill_moe_down(inputs, down, routing, backend=backend)
    want = dense_oracle(np.array(inputs.astype(mx.float32)), down, owners)
    close(y, mx.array(want.astype(np.float32)), BF16)
    close(prefill_moe_down_twin(inputs.astype(mx.float32), down, routing), mx.array(want.astype(np.float32)))


@pytest.mark.parametrize("dtype", [mx.bfloat16, mx.float16])
@pytest.mark.parametrize(
    "tile",
    [
        Tile(32, 32, 1, 2),
        Tile(32, 64, 2, 1, 1, True),
        Tile(64, 32, 1, 2, 4, True),
        Tile(64, 64, 2, 2, 2, True),
        Tile(64, 128, 2, 2, 1, True),
        Tile(128, 128, 2, 4, 2, True),
    ],
    ids=str,
)
def test_every_tile_shape_gives_the_same_product(
    backend: Backend, rng: np.random.Generator, tile: Tile, dtype: mx.Dtype
) -> None:
    tuning = PrefillTuning(gate_up=tile, down=tile)
    picks = rng.integers(0, 3, (70, 2))
    routing = routing_of(picks, 4, tile.rows)
    h = floats(rng, 140, 64, dtype=dtype)
    down = experts(rng, 4, 96, 64)
    got = prefill_moe_down(h, down, routing, backend=backend, tuning=tuning)
    close(got, prefill_moe_down_twin(h.astype(mx.float32), down, routing), BF16)


@pytest.mark.parametrize(
    "tile", [Tile(64, 32, 1, 2, 4, True), Tile(64, 32, 2, 1, 2, True), Tile(64, 32, 1, 2, 1)], ids=str
)
def test_tiles_of_every_part_give_their_rows_and_no_others(
    backend: Backend, rng: np.random.Generator, tile: Tile
) -> None:
    # Experts with no row, one row, and either side of every part of a tile; the last one needs a second tile.
    sizes = [1, 0, 15, 16, 17, 31, 32, 33, 0, 47, 48, 49, 63, 64, 65]
    picks = rng.permutation(np.repeat(np.arange(len(sizes)), sizes))[:, None]
    tuning = PrefillTuning(gate_up=tile, down=tile)
    routing = routing_of(picks, len(sizes), tile.rows)
    x = floats(rng, picks.size, 64, dtype=mx.bfloat16)
    gate_up, down = experts(rng, len(sizes), 64, 64), experts(rng, len(sizes), 64, 64)
    h = prefill_moe_gate_up(x, gate_up, routing, PARAMS, backend=backend, tuning=tuning)
    close(h, prefill_moe_gate_up_twin(x.astype(mx.float32), gate_up, routing, PARAMS), BF16)
    sorted_x = x[routing.order]
    y = prefill_moe_down(sorted_x, down, routing, backend=backend, tuning=tuning)
    close(y, prefill_moe_down_twin(sorted_x.astype(mx.float32), down, routing), BF16)


@pytest.fixture(scope="module")
def roomy() -> Backend:
    backend = device_or_bench(threadgroup_limit=232448)
    if backend.name == "metal":
        pytest.skip("Apple's GPUs have less threadgroup memory")
    return backend


@pytest.mark.parametrize("dtype", [mx.bfloat16, mx.float16])
@pytest.mark.parametrize(
    ("tile", "inner"),
    [
        (Tile(64, 128, 4, 1, 1, True, 3), 64),  # one step, two, three, and each buffer and slot more than once
        (Tile(64, 128, 4, 1, 1, True, 4), 128),
        (Tile(128, 128, 8, 1, 1, False, 3), 192),
        (Tile(128, 128, 4, 1, 2, True, 4), 576),
        (Tile(64, 256, 4, 2, 1, True, 3), 320),
        (Tile(128, 256, 4, 2, 2, True, 3), 320),  # the H100's
        (Tile(64, 128, 4, 1, 1, True, 3), 96),  # half a step over: each simdgroup for itself
    ],
    ids=str,
)
def test_simdgroups_that_multiply_together_give_the_same_product(
    roomy: Backend, rng: np.random.Generator, tile: Tile, inner: int, dtype: mx.Dtype
) -> None:
    tuning = PrefillTuning(gate_up=tile, down=tile)
    sizes = [1, 0, 63, 64, 65] if tile.rows == 64 else [1, 64, 65, 127, 129]
    picks = rng.permutation(np.repeat(np.arange(len(sizes)), sizes))[:, None]
    routing = routing_of(picks, len(sizes), tile.rows)
    x = floats(rng, picks.size, inner, dtype=dtype)
    # The last columns fill a part of their tile.
    gate_up, down = experts(rng, len(sizes), 176, inner), experts(rng, len(sizes), 144, inner)
    h = prefill_moe_gate_up(x, gate_up, routing, PARAMS, backend=roomy, tuning=tuning)
    close(h, prefill_moe_gate_up_twin(x.astype(mx.float32), gate_up, routing, PARAMS), BF16)
    sorted_x = x[routing.order]
    y = prefill_moe_down(sorted_x, down, routing, backend=roomy, tuning=tuning)
    close(y, prefill_moe_down_twin(sorted_x.astype(mx.float32), down, routing), BF16)


def test_simdgroups_that_multiply_together_wait_for_each_other(rng: np.random.Generator) -> None:
    from tests.bench.backend import BenchBackend

    tile = Tile(64, 128, 4, 1, 1, True, 3)
    routing = routing_of(np.zeros((5, 1), dtype=np.int64), 1, tile.rows)
    h, down = floats(rng, 5, 128, dtype=mx.bfloat16), experts(rng, 1, 136, 128)
    backend = BenchBackend(threadgroup_limit=232448, checked=True, schedule="random")
    got = prefill_moe_down(h, down, routing, backend=backend, tuning=PrefillTuning(gate_up=tile, down=tile))
    close(got, prefill_moe_down_twin(h.astype(mx.float32), down, routing), BF16)


@pytest.mark.parametrize(
    ("inner", "rows", "together"),
    [(2880, 5760, True), (2880, 2880, True), (96, 128, False), (64, 132, False), (64, 136, True), (16_384, 128, False)],
)
def test_the_h100s_tile_is_taken_where_the_weights_and_the_memory_allow(
    inner: int, rows: int, together: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, object] = {}

    def launch(*arguments: object) -> list[mx.array]:
        asked.update(dict(arguments[2]))  # type: ignore[call-overload]  # the template
        return [mx.zeros((1, 1))]

    backend = device_or_bench()
    monkeypatch.setattr(backend, "launch", launch)
    tuning = prefill_tuning_for("h100")
    down = Experts(
        mx.zeros((1, rows), dtype=mx.bfloat16),
        blocks=mx.zeros((1, rows, inner // 8), dtype=mx.uint32),
        scales=mx.zeros((1, rows, inner // 32), dtype=mx.uint8),
    )
    routing = routing_of(np.zeros((8, 1), dtype=np.int64), 1, tuning.down.rows)
    prefill_moe_down(mx.zeros((8, inner), dtype=mx.bfloat16), down, routing, backend=backend, tuning=tuning)
    assert ("BUFFERS" in asked) == together


@pytest.mark.parametrize("rows", [1, 40, 64, 81, 128, 200])
def test_one_expert_takes_every_row(backend: Backend, rng: np.random.Generator, rows: int) -> None:
    tile = Tile(64, 32, 1, 2, 4, True)
    tuning = PrefillTuning(gate_up=tile, down=tile)
    routing = routing_of(np.full((rows, 1), 2), 4, tile.rows)
    h = floats(rng, rows, 96, dtype=mx.bfloat16)
    down = experts(rng, 4, 32, 96)
    got = prefill_moe_down(h, down, routing, backend=backend, tuning=tuning)
    close(got, prefill_moe_down_twin(h.astype(mx.float32), down, routing), BF16)


@pytest.mark.parametrize("together", [False, True])
@pytest.mark.parametrize("subnormal", [False, True])
def test_every_nibble_and_scale_decodes_exactly(
    backend: Backend, request: pytest.FixtureRequest, subnormal: bool, together: bool
) -> None:
    # One unit vector a column: the product is the weight itself, and every weight fits in a bfloat16.
    exponents = [1, 64, 118, 126, 127, 128, 129, 130, 140]
    if not subnormal:
        exponents = exponents[1:]  # a half's 2^-14 and a float keep the smallest scale only above 2^-126
    blocks = np.tile(np.arange(16, dtype=np.uint32), 2)
    words = np.bitwise_or.reduce([blocks.reshape(4, 8)[:, i] << np.uint32(4 * i) for i in range(8)]).astype(np.uint32)
    table = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, 0, -0.5, -1, -1.5, -2, -3, -4, -6])
    weights = Experts(
        mx.zeros((1, 32), dtype=mx.bfloat16),
        blocks=mx.array(np.tile(words, (1, 32, 2))),
        scales=mx.array(np.array([exponents[i % len(exponents)] for i in range(64)], dtype=np.uint8).reshape(1, 32, 2)),
    )
    usual = prefill_tuning_for(backend.family).down
    tile = Tile(64, 128, 4, 1, 1, subnormal, 3) if together else replace(usual, subnormal=subnormal, buffers=0)
    routing = routing_of(np.zeros((64, 1), dtype=np.int64), 1, tile.rows)
    y = prefill_moe_down(
        mx.eye(64, dtype=mx.bfloat16),
        weights,
        routing,
        backend=request.getfixturevalue("roomy") if together else backend,
        tuning=PrefillTuning(gate_up=tile, down=tile),
    )
    scales = 2.0 ** (np.array([exponents[i % len(exponents)] for i in range(64)]).reshape(32, 2) - 127.0)
    want = np.tile(table, 4)[:, None] * np.repeat(scales.T, 32, axis=0)
    got = np.array(y.astype(mx.float32)).astype(np.float64)
    normal = np.abs(want) >= 2.0**-126
    assert np.array_equal(got[normal], want[normal])


def test_sum_weighs_and_adds_in_the_tokens_order(backend: Backend, rng: np.random.Generator) -> None:
    routing = routing_of(rng.integers(0, 8, (11, 4)), 8, 32)
    y, residual = floats(rng, 44, 68, dtype=mx.bfloat16), floats(rng, 11, 68)
    got = prefill_moe_sum(y, routing, residual, backend=backend)
    want = np.array(residual).astype(np.float64)
    slots, shares = np.array(routing.inverse).reshape(11, 4), np.array(routing.weights)
    for token in range(11):
        for rank in range(4):
            want[token] += shares[token, rank] * np.array(y.astype(mx.float32))[slots[token, rank]]
    close(got, mx.array(want.astype(np.float32)))
    close(prefill_moe_sum_twin(y, routing, residual), mx.array(want.astype(np.float32)))


@pytest.mark.parametrize("length", [1, 8, 33])
@pytest.mark.parametrize("dtype", [mx.bfloat16, mx.float32])
def test_rope_adds_the_bias_and_turns_queries_and_keys(
    backend: Backend, rng: np.random.Generator, length: int, dtype: mx.Dtype
) -> None:
    heads, kv_heads = 8, 2
    qkv, bias = floats(rng, length, 12 * 64, dtype=dtype), floats(rng, 12 * 64, dtype=mx.bfloat16)
    angles = rng.random((length, 32)) * 6
    rope = np.concatenate([np.cos(angles), np.sin(angles)], axis=1) * 1.34657
    got = prefill_rope(qkv, bias, mx.array(rope.astype(np.float32)), heads=heads, kv_heads=kv_heads, backend=backend)
    x = (np.array(qkv.astype(mx.float32)) + np.array(bias.astype(mx.float32))).reshape(length, 12, 2, 32)
    turned = (x[:, :, 0] + 1j * x[:, :, 1]) * (np.exp(1j * angles) * 1.34657)[:, None]
    whole = np.concatenate([turned.real, turned.imag], axis=-1)
    plain = x.reshape(length, 12, 64)
    tolerance = BF16 if dtype == mx.bfloat16 else 1e-5
    close(got[0], mx.array(whole[:, :heads].astype(np.float32)), tolerance)
    close(got[1], mx.array(whole[:, heads : heads + kv_heads].swapaxes(0, 1).astype(np.float32)), tolerance)
    close(got[2], mx.array(plain[:, heads + kv_heads :].swapaxes(0, 1).astype(np.float32)), tolerance)


def as_float32(
    q: mx.array, k: mx.array, v: mx.array, sinks: mx.array
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    first, second, third, fourth = (np.array(array.astype(mx.float32)) for array in (q, k, v, sinks))
    return first, second, third, fourth


def attention_oracle(
    q: np.ndarray, k: np.ndarray, v: np.ndarray, sinks: np.ndarray, offset: int, window: int | None
) -> np.ndarray:
    length, heads, _ = q.shape
    group = heads // k.shape[0]
    out = np.zeros((length, heads, 64))
    for i in range(length):
        last = offset + i
        first = 0 if window is None else max(0, last - window + 1)
        for h in range(heads):
            scores = k[h // group, first : last + 1].astype(np.float64) @ q[i, h] * 0.125
            top = max(scores.max(), sinks[h])
            power = np.exp(scores - top)
            out[i, h] = power @ v[h // group, first : last + 1] / (power.sum() + np.exp(sinks[h] - top))
    return out.reshape(length, heads * 64)


@pytest.mark.parametrize(
    ("length", "capacity", "offset", "window", "heads", "kv_heads"),
    [
        pytest.param(1, 8, 0, None, 8, 1, id="single_position"),
        pytest.param(16, 16, 0, None, 16, 2, id="whole_tile"),
        pytest.param(17, 40, 3, None, 16, 2, id="ragged_tile"),
        pytest.param(33, 130, 64, None, 8, 2, id="chunk_over_earlier_keys"),
        pytest.param(40, 256, 200, 128, 8, 1, id="window_boundary"),
        pytest.param(20, 64, 0, 5, 8, 1, id="window_smaller_than_a_block"),
        pytest.param(9, 40, 31, 1, 8, 1, id="window_of_one"),
        pytest.param(5, 64, 40, 1000, 8, 4, id="window_beyond_the_context"),
        pytest.param(65, 65, 0, None, 8, 8, id="no_grouping"),
    ],
)
def test_attention_matches_a_double_precision_oracle(
    backend: Backend,
    rng: np.random.Generator,
    length: int,
    capacity: int,
    offset: int,
    window: int | None,
    heads: int,
    kv_heads: int,
) -> None:
    q = floats(rng, 1, length, heads, 64, dtype=mx.bfloat16, std=2.0)
    k, v = (floats(rng, 1, kv_heads, capacity, 64, dtype=mx.bfloat16) for _ in range(2))
    sinks = floats(rng, heads, dtype=mx.bfloat16)
    beyond = mx.arange(capacity)[None, None, :, None] >= offset + length
    k, v = mx.where(beyond, mx.array(mx.nan, mx.bfloat16), k), mx.where(beyond, mx.array(mx.nan, mx.bfloat16), v)
    want = mx.array(attention_oracle(*as_float32(q[0], k[0], v[0], sinks), offset, window).astype(np.float32))[None]
    close(prefill_attention(q, k, v, sinks, offset=offset, window=window, backend=backend), want, BF16)
    full = [a.astype(mx.float32) for a in (q, k, v, sinks)]
    close(prefill_attention_twin(*full, offset=offset, window=window), want, 2e-5)


def test_attention_with_scores_that_grow_along_the_keys(backend: Backend) -> None:
    # Each block of keys outdoes the one before by far: the running maximum must be followed.
    q = mx.ones((1, 8, 8, 64), dtype=mx.bfloat16)
    steps = mx.arange(136)[None, None, :, None] * 0.125
    k = mx.broadcast_to(steps, (1, 1, 136, 64)).astype(mx.bfloat16)
    v = mx.broadcast_to(mx.arange(136)[None, None, :, None] / 128, (1, 1, 136, 64)).astype(mx.bfloat16)
    sinks = mx.array([-50.0, 0.0, 50.0, 200.0, 1.0, 2.0, 3.0, 4.0])
    got = prefill_attention(q, k, v, sinks, offset=128, window=None, backend=backend)
    want = attention_oracle(*as_float32(q[0], k[0], v[0], sinks), 128, None)
    close(got, mx.array(want.astype(np.float32))[None], BF16)


def test_attention_of_a_batch(backend: Backend, rng: np.random.Generator) -> None:
    q = floats(rng, 2, 9, 8, 64, dtype=mx.float16)
    k, v = (floats(rng, 2, 2, 20, 64, dtype=mx.float16) for _ in range(2))
    sinks = floats(rng, 8)
    got = prefill_attention(q, k, v, sinks, offset=11, window=16, backend=backend)
    for b in range(2):
        alone = prefill_attention(
            q[b : b + 1], k[b : b + 1], v[b : b + 1], sinks, offset=11, window=16, backend=backend
        )
        assert mx.array_equal(got[b], alone[0])


def test_what_cannot_run_is_refused(rng: np.random.Generator) -> None:
    stock = StockBackend()
    q, k = mx.zeros((1, 4, 8, 64)), mx.zeros((1, 2, 4, 64))
    with pytest.raises(KernelError, match="in the cache"):
        prefill_attention(q, k, k, mx.zeros((8,)), offset=1, window=None, backend=stock)
    with pytest.raises(KernelError, match="window"):
        prefill_attention(q, k, k, mx.zeros((8,)), offset=0, window=0, backend=stock)
    with pytest.raises(KernelError, match="wrong shape"):
        prefill_attention(q, k, mx.zeros((1, 2, 5, 64)), mx.zeros((8,)), offset=0, window=None, backend=stock)
    with pytest.raises(KernelError, match="top_k"):
        prefill_topk(mx.zeros((2, 8)), top_k=9, backend=stock)
    with pytest.raises(KernelError, match="wrong dtype"):
        prefill_topk(mx.zeros((2, 8), dtype=mx.bfloat16), top_k=2, backend=stock)


def test_dense_experts_run_on_the_twin(backend: Backend, rng: np.random.Generator) -> None:
    routing = routing_of(rng.integers(0, 4, (6, 2)), 4, tile_rows(backend))
    gate_up = experts(rng, 4, 64, 32, dense=True)
    x = floats(rng, 6, 32, dtype=mx.bfloat16)
    got = prefill_moe_gate_up(x, gate_up, routing, PARAMS, backend=backend)
    close(got, prefill_moe_gate_up_twin(x, gate_up, routing, PARAMS))


@given(
    count=st.integers(1, 500), experts_=st.integers(1, 40), rows=st.sampled_from([32, 64, 128]), seed=st.integers(0, 9)
)
def test_the_tile_bound_holds_for_any_routing(count: int, experts_: int, rows: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    sizes = np.bincount(random.integers(0, experts_, count), minlength=experts_)
    assert int(np.ceil(sizes / rows).sum()) <= tile_bound(count, experts_, rows)
