"""What can be measured: an engine with a model in it, behind three calls that every engine has."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import mlx.core as mx

from mlx_gptoss.bench.cost import StoredBytes
from mlx_gptoss.bench.random_weights import RandomWeights
from mlx_gptoss.bench.spec import BenchSpec, EngineName
from mlx_gptoss.cache import FullLayerCache, SequenceCache
from mlx_gptoss.config import ModelConfig, YarnConfig
from mlx_gptoss.engine.row_sampler import RowSampler
from mlx_gptoss.engine.sampling import Sampler
from mlx_gptoss.engine.token_model import TokenModel
from mlx_gptoss.errors import InvalidRequestError
from mlx_gptoss.plan.footprint import released_config
from mlx_gptoss.request import SamplingParams
from mlx_gptoss.weights import ModelWeights

Step = Callable[[mx.array], mx.array]


class Subject(Protocol):
    """An engine ready to be measured."""

    @property
    def engine(self) -> EngineName: ...

    @property
    def backend(self) -> str: ...

    @property
    def config(self) -> ModelConfig: ...

    @property
    def stored(self) -> StoredBytes: ...

    def prefill(self, token_ids: mx.array) -> None:
        """Takes token_ids [1, L] into a fresh cache and computes the last one's logits; returns when done."""
        ...

    def decoder(self, context: int, batch: int, steps: int) -> Step:
        """A decode step token_ids [batch] -> next token_ids [batch] (greedy, lazy) after `context` filled positions,
        with room for `steps` more."""
        ...


class OurSubject:
    """mlx-gptoss itself, on any back end."""

    engine: EngineName = "mlx-gptoss"

    def __init__(self, model: TokenModel, weights: ModelWeights, backend: str) -> None:
        self.model = model
        self.stored = StoredBytes.of_model(weights)
        self.backend = backend
        self.config = model.config

    def prefill(self, token_ids: mx.array) -> None:
        cache = self.model.make_cache()
        logits = self.model.prefill(token_ids, cache, need_logits=True)
        mx.eval(logits, cache.arrays())

    def decoder(self, context: int, batch: int, steps: int) -> Step:
        caches = [self.model.make_cache() for _ in range(batch)]
        for row, cache in enumerate(caches):
            fill_cache(cache, context, steps, seed=row)

        sampler = Sampler(backend=self.model.draw_backend)
        rows = [RowSampler(SamplingParams(temperature=0))] * batch

        def step(token_ids: mx.array) -> mx.array:
            return sampler.sample(self.model.decode(token_ids, caches), rows).tokens

        return step


def fill_cache(cache: SequenceCache, context: int, steps: int, seed: int) -> None:
    """Puts random keys and values of `context` positions into a fresh cache, as a prefill would have."""
    key = mx.random.key(seed)
    for layer in cache.layers:
        arrays = []
        for _ in range(2):
            key, drawn = mx.random.split(key)
            if isinstance(layer, FullLayerCache):
                batch, heads, _, dim = layer.main_k.shape
                shape: tuple[int, ...] = (batch, heads, context, dim)
            else:
                shape = layer.ring_k.shape
            arrays.append(mx.random.normal(shape, dtype=cache.dtype, key=drawn))
        if isinstance(layer, FullLayerCache):
            layer.reserve(context + steps)
            layer.append(*arrays)
        else:
            layer.ring_k, layer.ring_v = arrays
        mx.eval(list(layer.arrays()))
    cache.advance(context)


def config_of(spec: BenchSpec) -> ModelConfig:
    """The shape a spec measures."""
    if spec.folder is not None:
        return ModelConfig.from_file(Path(spec.folder))
    config = _tiny_config() if spec.random == "tiny" else released_config(str(spec.random))
    return config if spec.layers is None else with_layers(config, spec.layers)


def with_layers(config: ModelConfig, count: int) -> ModelConfig:
    """The same shape with another number of layers, sliding and full in turn."""
    data = config.to_dict()
    data["num_hidden_layers"] = count
    data["layer_types"] = [config.layer_types[index % 2] for index in range(count)]
    return ModelConfig.from_dict(data, "bench")


def load_ours(spec: BenchSpec) -> OurSubject:
    """Our engine with the spec's model."""
    from mlx_gptoss.loader import load_weights
    from mlx_gptoss.model import GptOssModel
    from mlx_gptoss.path import on_backend

    if spec.folder is not None:
        config, weights = load_weights(spec.folder)
        if spec.layers is not None:
            raise InvalidRequestError("--layers goes with --random", param="layers")
    else:
        config = config_of(spec)
        weights = RandomWeights(config, spec.precisions, spec.seed).model()
    model = on_backend(GptOssModel(config, weights, _dtype(spec)), spec.backend)
    return OurSubject(model, weights, backend_name(model))


def backend_name(model: TokenModel) -> str:
    """metal, cuda or stock: what a model really runs on."""
    backend: Any = getattr(model, "backend", None)
    return "stock" if backend is None else str(backend.name)


def load_subject(engine: EngineName, spec: BenchSpec) -> Subject:
    """The engine with the spec's model. Raises InvalidRequestError when it is not installed."""
    if engine == "mlx-gptoss":
        return load_ours(spec)
    from mlx_gptoss.bench.peer import load_peer

    return load_peer(spec)


def random_ids(config: ModelConfig, shape: Sequence[int], seed: int) -> mx.array:
    """int32 token ids that mean something to the vocabulary, evaluated."""
    ids = mx.random.randint(0, config.used_vocab_size, tuple(shape), dtype=mx.int32, key=mx.random.key(seed))
    mx.eval(ids)
    return ids


def _dtype(spec: BenchSpec) -> mx.Dtype:
    return mx.float32 if spec.dtype == "float32" else mx.bfloat16


def _tiny_config() -> ModelConfig:
    config = ModelConfig(
        num_layers=2,
        hidden_size=128,
        intermediate_size=128,
        num_experts=8,
        experts_per_token=2,
        num_heads=4,
        num_kv_heads=2,
        head_dim=64,
        sliding_window=128,
        layer_types=("sliding_attention", "full_attention"),
        vocab_size=512,
        rope_theta=150_000.0,
        yarn=YarnConfig(32.0, 4096, 32.0, 1.0, truncate=False),
        max_position_embeddings=131_072,
    )
    return ModelConfig.from_dict(config.to_dict(), "bench")
