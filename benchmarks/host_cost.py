"""What a decoded token costs the host: the time to build a step's graph, without running it.

    python -m benchmarks.host_cost

Launch counts do not depend on sizes, so the released models' layers, heads and experts are taken with small matrices.
Kernels are stood in for by one view each, which costs MLX about what a kernel's node does; what a GPU's driver and
MLX's evaluation add is not in these figures.
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Sequence

import mlx.core as mx

from mlx_gptoss.bench.random_weights import RandomWeights
from mlx_gptoss.cache import FullLayerCache, SequenceCache
from mlx_gptoss.config import ModelConfig
from mlx_gptoss.fused import FusedModel
from mlx_gptoss.fused_decode import DecodeGraph, Layers, Plan, Replays, StepInputs, StepResult
from mlx_gptoss.kernels.backend import Size3, Template
from mlx_gptoss.kernels.source import KernelSource
from mlx_gptoss.model import GptOssModel
from mlx_gptoss.plan.footprint import Precisions, released_config

WARM_UP, STEPS = 4, 40
CONTEXT = 1024


class ViewBackend:
    """Answers every launch with views of its first input, as lazily as a GPU's back end."""

    name = "metal"
    family = "m4-max"

    def launch(
        self,
        kernel: KernelSource,
        inputs: Sequence[mx.array],
        template: Template,
        grid: Size3,
        threadgroup: Size3,
        output_shapes: Sequence[tuple[int, ...]],
        output_dtypes: Sequence[mx.Dtype],
    ) -> list[mx.array]:
        del kernel, template, grid, threadgroup
        views = [mx.as_strided(inputs[0], shape, [0] * len(shape), 0) for shape in output_shapes]
        return [view.astype(dtype) for view, dtype in zip(views, output_dtypes, strict=True)]


class NoReplays(Replays):
    """Builds every step anew."""

    def step(self, graph: DecodeGraph, plan: Plan, inputs: StepInputs, layers: Layers) -> StepResult:
        return graph.step(plan, inputs, layers)


def narrow(name: str) -> ModelConfig:
    """A released model with small matrices."""
    return dataclasses.replace(released_config(name), hidden_size=64, intermediate_size=32, vocab_size=512)


def filled(model: GptOssModel | FusedModel, rows: int) -> list[SequenceCache]:
    """Caches at CONTEXT positions."""
    caches = [model.make_cache() for _ in range(rows)]
    for cache in caches:
        for layer in cache.layers:
            if isinstance(layer, FullLayerCache):
                layer.reserve(CONTEXT + 256)
                layer.n_main = CONTEXT
        cache.advance(CONTEXT)
        mx.eval(cache.arrays())
    return caches


def milliseconds(model: GptOssModel | FusedModel, rows: int) -> float:
    """Least CPU time of this thread to build one step, so that other load on the machine counts little."""
    caches = filled(model, rows)
    ids = mx.zeros((rows,), dtype=mx.int32)
    taken = []
    for _ in range(WARM_UP + STEPS):
        started = time.thread_time()
        logits = model.decode(ids, caches)
        taken.append(time.thread_time() - started)
        del logits
    return min(taken[WARM_UP:]) * 1e3


def fused(config: ModelConfig, stock: GptOssModel, *, replay: bool) -> FusedModel:
    """The fused path on ViewBackend."""
    model = FusedModel(config, stock.weights, ViewBackend(), stock.dtype, stock=stock)
    if not replay:
        model.replays = NoReplays()
    return model


def main() -> None:
    """Prints a table, then one JSON line."""
    results = []
    print(f"{'model':>6} {'rows':>4} {'stock ops':>10} {'kernels':>10} {'replayed':>10}   (ms a step, host only)")
    for name in ("20b", "120b"):
        config = narrow(name)
        stock = GptOssModel(config, RandomWeights(config, Precisions()).model())
        models: dict[str, GptOssModel | FusedModel] = {
            "stock": stock,
            "kernels": fused(config, stock, replay=False),
            "replayed": fused(config, stock, replay=True),
        }
        for rows in (1, 4):
            taken = {kind: milliseconds(model, rows) for kind, model in models.items()}
            print(f"{name:>6} {rows:>4} " + " ".join(f"{value:10.2f}" for value in taken.values()), flush=True)
            results.append({"model": name, "rows": rows, **{kind: round(value, 3) for kind, value in taken.items()}})
    print(json.dumps({"host_ms_per_step": results}))


if __name__ == "__main__":
    main()
