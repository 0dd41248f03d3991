"""The whole model on the kernels, executed by the shader bench, beside the stock path."""

from __future__ import annotations

from collections.abc import Sequence

import mlx.core as mx
import numpy as np
import pytest

from mlx_gptoss.cache import FullLayerCache, SequenceCache
from mlx_gptoss.config import ModelConfig
from mlx_gptoss.errors import ConfigError, ContextOverflowError, InvalidRequestError
from mlx_gptoss.fused import FusedModel
from mlx_gptoss.kernels.backend import Backend, StockBackend
from mlx_gptoss.model import GptOssModel
from mlx_gptoss.step_state import CarriedState, Position, StepState
from mlx_gptoss.weights import ModelWeights
from tests.bench.backend import BenchBackend
from tests.tiny import quantize_linear, random_weights, tiny_config

PROMPT = [3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5]


def small(**overrides: object) -> ModelConfig:
    fields: dict[str, object] = {"head_dim": 64, "num_heads": 4, "num_kv_heads": 2, "num_layers": 4}
    return tiny_config(**(fields | overrides))


def fused(
    config: ModelConfig, weights: ModelWeights, dtype: mx.Dtype, backend: Backend | None = None, tail: int = 8
) -> FusedModel:
    return FusedModel(config, weights, BenchBackend() if backend is None else backend, dtype, tail=tail)


def logits_of(model: GptOssModel | FusedModel, steps: list[int], prompt: list[int]) -> list[np.ndarray]:
    """Logits after the prompt and after each of `steps`, decoded one by one."""
    cache = model.make_cache()
    first = model.prefill([prompt], cache)
    assert first is not None
    out = [np.array(first)[0], *(np.array(model.decode(mx.array([token]), [cache]))[0] for token in steps)]
    assert cache.offset == len(prompt) + len(steps)
    return out


def greedy(model: GptOssModel | FusedModel, prompt: list[int], count: int) -> list[int]:
    cache = model.make_cache()
    logits = model.prefill([prompt], cache)
    tokens: list[int] = []
    for _ in range(count):
        assert logits is not None
        tokens.append(int(np.array(logits)[0].argmax()))
        logits = model.decode(mx.array(tokens[-1:]), [cache])
    return tokens


def test_greedy_is_the_stock_path_token_for_token() -> None:
    """40 tokens: past the window of 16 and past five tails of 8."""
    config = small()
    weights = random_weights(config, seed=3, dtype=mx.float32)
    stock = GptOssModel(config, weights, mx.float32)
    assert greedy(fused(config, weights, mx.float32), PROMPT, 40) == greedy(stock, PROMPT, 40)


@pytest.mark.parametrize("fmt", ["bf16", "mxfp8", "q8", "q4"])
def test_logits_are_at_least_as_close_to_float32_as_the_stock_path(fmt: str) -> None:
    config = small()
    plain = random_weights(config, seed=1)
    if fmt != "bf16":
        layers = tuple(
            type(layer)(
                layer.attn_norm,
                quantize_linear(layer.qkv, fmt, 32),  # type: ignore[arg-type]  # one of the formats
                layer.sinks,
                quantize_linear(layer.out, fmt, 32),  # type: ignore[arg-type]  # one of the formats
                layer.mlp_norm,
                layer.router,
                layer.gate_up,
                layer.down,
            )
            for layer in plain.layers
        )
        plain = ModelWeights(plain.embed, layers, plain.norm, plain.head)
    steps = [7, 300, 12, 45, 199, 0]
    # Caches in float32 isolate the kernels' arithmetic; the twin path is the float32 truth over the same weights.
    oracle = logits_of(fused(config, plain, mx.float32, StockBackend()), steps, PROMPT)
    ours = logits_of(fused(config, plain, mx.float32), steps, PROMPT)
    for a, b in zip(ours, oracle, strict=True):
        finite = np.isfinite(b)
        assert np.abs(a[finite] - b[finite]).max() < 2e-3 * np.abs(b[finite]).max()
    if fmt == "bf16":
        rounded = logits_of(fused(config, plain, mx.bfloat16), steps, PROMPT)
        stock = logits_of(GptOssModel(config, plain, mx.bfloat16), steps, PROMPT)
        truth = logits_of(
            GptOssModel(config, random_weights(config, seed=1, dtype=mx.float32), mx.float32), steps, PROMPT
        )

        def error(found: list[np.ndarray]) -> float:
            return float(np.sqrt(np.mean([(a - b) ** 2 for a, b in zip(found[1:], truth[1:], strict=True)])))

        assert error(rounded) <= error(stock)


def test_a_batch_gives_what_each_sequence_gives_alone() -> None:
    config = small(num_layers=2)
    weights = random_weights(config, seed=5, dtype=mx.float32)
    model = fused(config, weights, mx.float32)
    prompts = [PROMPT, [8, 8], list(range(40, 75))]
    alone = [logits_of(model, [11, 22, 33], prompt)[1:] for prompt in prompts]
    caches = [model.make_cache() for _ in prompts]
    for prompt, cache in zip(prompts, caches, strict=True):
        model.prefill([prompt], cache)
    for step, token in enumerate([11, 22, 33]):
        together = np.array(model.decode(mx.array([token] * 3), caches))
        for row in range(3):
            np.testing.assert_allclose(together[row], alone[row][step], atol=2e-4)


def test_ten_sequences_go_in_two_groups() -> None:
    config = small(num_layers=1)
    weights = random_weights(config, seed=5, dtype=mx.float32)
    backend = BenchBackend()
    model = fused(config, weights, mx.float32, backend)
    caches = [model.make_cache() for _ in range(10)]
    for cache in caches:
        model.prefill([PROMPT[:3]], cache)
    backend.launches.clear()
    got = np.array(model.decode(mx.arange(10), caches))
    assert got.shape == (10, config.vocab_size)
    assert backend.launches.count("qkv_rope") == 2
    assert backend.launches.count("attention_sliding") == 10


def test_a_group_has_at_most_as_many_picks_as_a_simdgroup_has_lanes() -> None:
    config = small(num_layers=1, num_experts=16, experts_per_token=12)
    weights = random_weights(config, seed=6, dtype=mx.float32)
    model, stock = fused(config, weights, mx.float32), GptOssModel(config, weights, mx.float32)
    steps = []
    for each in (model, stock):
        caches = [each.make_cache() for _ in range(5)]
        for row, cache in enumerate(caches):
            each.prefill([[row, *PROMPT[:3]]], cache)
        steps.append(np.array(each.decode(mx.arange(5), caches)))
    finite = np.isfinite(steps[1])
    assert np.array_equal(np.isfinite(steps[0]), finite)
    assert np.abs(steps[0][finite] - steps[1][finite]).max() < 1e-3 * np.abs(steps[1][finite]).max()


def test_each_group_carries_its_own_positions(monkeypatch: pytest.MonkeyPatch) -> None:
    """What can be foreseen of a step's positions comes from the host once, also where two groups take turns."""
    config = small(num_layers=2)
    model = fused(config, random_weights(config, seed=5, dtype=mx.float32), mx.float32, tail=16)
    caches = [model.make_cache() for _ in range(10)]
    for length, cache in enumerate(caches, 1):
        model.prefill([PROMPT[:length]], cache)
    uploads = []
    upload = CarriedState._upload

    def counted(state: CarriedState, positions: Sequence[Position]) -> StepState:
        uploads.append(len(positions))
        return upload(state, positions)

    monkeypatch.setattr(CarriedState, "_upload", counted)
    for _ in range(3):
        mx.eval(model.decode(mx.arange(10), caches))
    assert uploads == [8, 2]


@pytest.mark.parametrize("context", [5, 70, 150])
def test_launches_of_a_step(context: int) -> None:
    """At most 7 launches a layer, and one more for the logits: 70 positions are two parts, which the output projection
    merges."""
    config = small(num_layers=4)
    weights = random_weights(config, seed=0, dtype=mx.float32)
    backend = BenchBackend()
    model = fused(config, weights, mx.float32, backend, tail=64)
    cache = model.make_cache()
    model.prefill([[i % 300 for i in range(context)]], cache)
    backend.launches.clear()
    model.decode(mx.array([1]), [cache])
    assert backend.launches.count("head") == 1
    merges = backend.launches.count("attention_merge")
    assert merges == (2 if context == 150 else 0)
    assert len(backend.launches) == 4 * 6 + merges + 1


def test_caches_may_be_copied_trimmed_and_restored_between_steps() -> None:
    config = small()
    weights = random_weights(config, seed=2, dtype=mx.float32)
    model = fused(config, weights, mx.float32)
    cache = model.make_cache()
    model.prefill([PROMPT], cache)
    model.decode(mx.array([5]), [cache])
    snapshot, twin = cache.snapshot(), cache.copy()
    first = np.array(model.decode(mx.array([6]), [cache]))
    model.decode(mx.array([7]), [cache])
    np.testing.assert_array_equal(np.array(model.decode(mx.array([6]), [twin])), first)
    cache.restore(snapshot)
    np.testing.assert_array_equal(np.array(model.decode(mx.array([6]), [cache])), first)
    # The stock path goes on from a fused cache, and the fused path from a stock one.
    stock = GptOssModel(config, weights, mx.float32)
    other = SequenceCache(config, 1, mx.float32)
    stock.prefill([[*PROMPT, 5, 6]], other)
    a, b = stock.decode(mx.array([9]), [cache]), stock.decode(mx.array([9]), [other])
    np.testing.assert_allclose(np.array(a), np.array(b), atol=2e-3)
    np.testing.assert_allclose(
        np.array(model.decode(mx.array([1]), [cache])), np.array(stock.decode(mx.array([1]), [other])), atol=2e-3
    )


def test_tail_is_merged_when_full() -> None:
    config = small(num_layers=2)
    model = fused(config, random_weights(config, seed=2, dtype=mx.float32), mx.float32, tail=4)
    cache = model.make_cache()
    for token in range(9):
        model.decode(mx.array([token]), [cache])
    layer = cache.layers[1]
    assert isinstance(layer, FullLayerCache)
    assert (layer.n_main, layer.n_tail) == (8, 1)


def test_dense_experts_and_padded_vocabulary() -> None:
    config = small(num_layers=1, num_experts=8)
    weights = random_weights(config, seed=4, dense_experts=True)
    steps = [3, 4, 5]
    ours = logits_of(fused(config, weights, mx.float32), steps, PROMPT)
    twin = logits_of(fused(config, weights, mx.float32, StockBackend()), steps, PROMPT)
    for a, b in zip(ours, twin, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-3)


def test_mistakes_are_named() -> None:
    config = small(num_layers=1)
    weights = random_weights(config, seed=0, dtype=mx.float32)
    model = fused(config, weights, mx.float32)
    with pytest.raises(InvalidRequestError, match="one token id per cache"):
        model.decode(mx.array([1, 2]), [model.make_cache()])
    with pytest.raises(InvalidRequestError, match="batch size"):
        model.decode(mx.array([1]), [model.make_cache(2)])
    full = model.make_cache()
    full.advance(config.max_position_embeddings)
    with pytest.raises(ContextOverflowError):
        model.decode(mx.array([1]), [full])
    with pytest.raises(ConfigError, match="head size"):
        fused(tiny_config(), weights, mx.float32)
