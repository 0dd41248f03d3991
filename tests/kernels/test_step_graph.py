"""The decode step as a graph: how many launches, what it writes, and that a replayed step is the step."""

from __future__ import annotations

import dataclasses
import gc
import math
import shutil
import weakref
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from mlx_gptoss.bench.launches import VIEWS, count_launches
from mlx_gptoss.bench.random_weights import RandomWeights
from mlx_gptoss.cache import FullLayerCache, SequenceCache, SlidingLayerCache
from mlx_gptoss.config import ModelConfig
from mlx_gptoss.fused import TAIL, FusedModel
from mlx_gptoss.fused_decode import DecodeGraph
from mlx_gptoss.kernels.attention import parts_for
from mlx_gptoss.kernels.backend import MetalBackend, StockBackend
from mlx_gptoss.kernels.tuning import tuning_for
from mlx_gptoss.plan.footprint import Precisions
from tests.tiny import random_weights, tiny_config

LAYERS = {"20b": 24, "120b": 36}
EXPERTS = {"20b": 32, "120b": 128}
HANDFUL = 6


def narrow(name: str) -> ModelConfig:
    """A released model's layers, heads, experts, window and vocabulary layout; sizes that launches do not depend on
    are cut."""
    return tiny_config(
        num_layers=LAYERS[name],
        hidden_size=64,
        intermediate_size=32,
        num_experts=EXPERTS[name],
        experts_per_token=4,
        num_heads=64,
        num_kv_heads=8,
        head_dim=64,
        sliding_window=128,
        vocab_size=512,
    )


class Traced:
    """A model on the Metal back end, which a CPU can trace though not run."""

    def __init__(self, config: ModelConfig) -> None:
        self.config = config
        weights = RandomWeights(config, Precisions()).model()
        self.model = FusedModel(config, weights, MetalBackend("m4-max"))

    def caches(self, context: int, rows: int = 1) -> list[SequenceCache]:
        made = [self.model.make_cache() for _ in range(rows)]
        heads = self.config.num_kv_heads
        shared = [mx.zeros((1, heads, context + 256, 64), dtype=mx.bfloat16) for _ in range(2)]
        mx.eval(shared)
        for cache in made:
            for layer in cache.layers:
                if isinstance(layer, FullLayerCache):
                    layer.main_k, layer.main_v, layer.n_main = *shared, context
            cache.advance(context)
        return made

    def outputs(self, caches: list[SequenceCache]) -> dict[str, int]:
        """Elements that each kind of operation of a step makes anew."""
        made: dict[str, int] = {}

        def note(event: dict[str, Any]) -> None:
            if event["type"] == "primitive" and event["name"] not in VIEWS:
                size = sum(math.prod(shape) for _, shape, _ in event["outputs"])
                made[event["name"]] = made.get(event["name"], 0) + size

        copies = [cache.copy() for cache in caches]
        mx.export_function(note, lambda ids: self.model.decode(ids, copies), mx.zeros((len(caches),), dtype=mx.int32))
        return made


@pytest.fixture(scope="module")
def traced_20b() -> Traced:
    return Traced(narrow("20b"))


@pytest.fixture(scope="module")
def traced_120b() -> Traced:
    return Traced(narrow("120b"))


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("context", [100, 512, 1024, 32_768])
def test_at_most_seven_launches_a_layer(name: str, context: int, request: pytest.FixtureRequest) -> None:
    """Six a layer, a seventh in full layers whose attention is split into more parts than the output projection merges;
    the logits, and a handful around them."""
    traced: Traced = request.getfixturevalue(f"traced_{name}")
    (cache,) = traced.caches(context)
    counts = count_launches(lambda ids: traced.model.decode(ids, [cache]), mx.array([3]))
    kernels = counts.pop("CustomKernel")
    tuning = tuning_for("m4-max")
    apart = parts_for(context, tuning) > tuning.merge_in_out
    assert apart == (context > 512)
    assert kernels == LAYERS[name] * 6 + (LAYERS[name] // 2 if apart else 0) + 1
    assert counts.total() <= HANDFUL


def test_a_batch_shares_its_launches_except_for_attention(traced_20b: Traced) -> None:
    caches = traced_20b.caches(100, rows=4)
    counts = count_launches(lambda ids: traced_20b.model.decode(ids, caches), mx.zeros((4,), dtype=mx.int32))
    assert counts["CustomKernel"] == 24 * (5 + 4 + 1) + 1


def test_a_step_writes_the_same_whatever_the_context(traced_20b: Traced) -> None:
    """Beside the parts of the split attention (68 floats a head and part), a step makes exactly as much at 32k
    positions as at 1k."""
    tuning = tuning_for("m4-max")
    short, long = 1024, 32_768
    made = [sum(traced_20b.outputs(traced_20b.caches(context)).values()) for context in (short, long)]
    split = [12 * 64 * 68 * parts_for(context, tuning) for context in (short, long)]
    assert made[1] - split[1] == made[0] - split[0]
    assert made[0] < 12 * long * 8 * 64


def small_model(tail: int = 4) -> FusedModel:
    config = tiny_config(
        head_dim=64, num_layers=2, hidden_size=64, intermediate_size=32, sliding_window=8, max_position_embeddings=4096
    )
    return FusedModel(config, random_weights(config, seed=3, dtype=mx.float32), StockBackend(), mx.float32, tail=tail)


def test_main_caches_change_at_merges_only() -> None:
    """A merge every `tail` steps: between two of them the main cache is the very same array."""
    model = small_model(tail=4)
    cache = model.make_cache()
    model.prefill([[1, 2, 3]], cache)
    layer = next(layer for layer in cache.layers if isinstance(layer, FullLayerCache))
    changed = []
    for step in range(12):
        before = layer.main_k
        mx.eval(model.decode(mx.array([step]), [cache]))
        if layer.main_k is not before:
            changed.append(step)
    assert changed == [4, 8]


needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="MLX compiles CPU graphs with g++")


@pytest.fixture
def replaying(monkeypatch: pytest.MonkeyPatch) -> None:
    """The twins replay as the kernels do."""
    monkeypatch.setattr(DecodeGraph, "replayable", property(lambda _graph: True))


def run(model: FusedModel, rows: int, steps: int) -> np.ndarray:
    caches = [model.make_cache() for _ in range(rows)]
    for row, cache in enumerate(caches):
        model.prefill([[row + 1, 5, 9, 2, 6][: row + 3]], cache)
    return np.stack(
        [
            np.array(model.decode(mx.array([(7 * step + row) % 300 for row in range(rows)]), caches))
            for step in range(steps)
        ]
    )


@needs_compiler
@pytest.mark.parametrize("rows", [1, 3])
def test_a_replayed_step_is_the_step(rows: int, replaying: None) -> None:
    """Past the window and three tails; the plan stays, so nearly every step is a replay."""
    model = small_model()
    got = run(model, rows, 14)
    assert len(model.replays) == 1
    eager = small_model()
    eager.replays.step = lambda graph, plan, inputs, layers: graph.step(plan, inputs, layers)  # type: ignore[method-assign]
    np.testing.assert_allclose(got, run(eager, rows, 14), atol=1e-4)
    assert len(eager.replays) == 0


@needs_compiler
def test_a_grown_cache_and_a_copy_are_replayed_rightly(replaying: None) -> None:
    model = small_model(tail=64)
    cache = model.make_cache()
    model.prefill([[4] * 250], cache)
    for token in range(70):
        logits = model.decode(mx.array([token]), [cache])
        if token == 40:
            twin, snapshot = cache.copy(), cache.snapshot()
            kept = np.array(logits)
        mx.eval(logits)
    assert len(model.replays) >= 2
    again = np.array(model.decode(mx.array([41]), [twin]))
    cache.restore(snapshot)
    np.testing.assert_allclose(np.array(model.decode(mx.array([41]), [cache])), again, atol=1e-5)
    assert not np.array_equal(kept, again)


@needs_compiler
def test_compiled_steps_are_bounded_and_do_not_keep_the_model(replaying: None) -> None:
    model = small_model()
    model.replays = type(model.replays)(most=2)
    for length in (1, 300, 600, 900):
        cache = model.make_cache()
        model.prefill([[1] * length], cache)
        for token in range(3):
            mx.eval(model.decode(mx.array([token]), [cache]))
    assert len(model.replays) == 2
    gone: list[weakref.ref[object]] = [weakref.ref(held) for held in (model, model._decoder, model.stock)]
    del model
    gc.collect()
    assert all(held() is None for held in gone)


def test_plans_are_few_while_a_cache_grows() -> None:
    """Between growths of the main cache a plan repeats: 2,000 positions see a handful."""
    model = small_model(tail=TAIL)
    cache = model.make_cache()
    model.prefill([[1, 2, 3]], cache)
    plans = set()
    for _ in range(2000):
        plan, _ = model._prepare([cache])
        plans.add(plan)
        for layer in cache.layers:
            if isinstance(layer, FullLayerCache):
                layer.n_tail += 1
            else:
                assert isinstance(layer, SlidingLayerCache)
        cache.advance(1)
    assert len(plans) <= 12
    assert dataclasses.is_dataclass(plan)
