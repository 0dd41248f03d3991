"""The engine over a real, tiny gpt-oss: what batching, chunking and prefix reuse must not change."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlx_gptoss.engine import Engine, EngineOptions, Generation, GenerationRequest, TokenModel
from mlx_gptoss.model import GptOssModel
from mlx_gptoss.request import SamplingParams
from tests.unit.tiny_model import WINDOW, greedy_alone, tiny_fused_model, tiny_model

SURE = 1e-3
"""Where the two best logits are closer than this, float noise may choose."""


@pytest.fixture(scope="module")
def model() -> GptOssModel:
    return tiny_model()


@pytest.fixture(scope="module", params=[tiny_model, tiny_fused_model], ids=["stock", "fused"])
def engine(request: pytest.FixtureRequest) -> Iterator[Engine]:
    with Engine(request.param, EngineOptions(max_batch=4, prefill_chunk=5, snapshot_gap=3)) as engine:
        yield engine


def ask(prompt: list[int], count: int, **changes: Any) -> GenerationRequest:
    return GenerationRequest(
        tuple(prompt),
        **{"sampling": SamplingParams(temperature=0.0), "max_tokens": count, "stop_ids": (), **changes},
    )


def ids(generation: Generation) -> list[int]:
    return [event.token_id for event in generation]


@settings(max_examples=8, deadline=None)
@given(
    lengths=st.lists(
        st.tuples(st.sampled_from([1, 2, WINDOW - 1, WINDOW, WINDOW + 1, 2 * WINDOW + 3, 40]), st.integers(1, 12)),
        min_size=1,
        max_size=6,
    ),
    cancelled=st.sets(st.integers(0, 5), max_size=2),
    shared=st.integers(0, 20),
    seed=st.integers(0, 1000),
)
def test_tokens_do_not_depend_on_neighbours(
    model: GptOssModel, engine: Engine, lengths: list[tuple[int, int]], cancelled: set[int], shared: int, seed: int
) -> None:
    prompts = [
        [(seed + (0 if i < shared else 31 * n) + 7 * i) % 320 for i in range(length)]
        for n, (length, _) in enumerate(lengths)
    ]
    generations = [
        engine.submit(ask(prompt, count, boundaries=tuple(range(2, len(prompt), 4))))
        for prompt, (_, count) in zip(prompts, lengths, strict=True)
    ]
    for n in cancelled & set(range(len(generations))):
        generations[n].cancel()
    for n, generation in enumerate(generations):
        answer = ids(generation)
        expected, gap = greedy_alone(model, prompts[n], lengths[n][1])
        assert generation.finished is not None
        if generation.finished.finish_reason == "cancelled":
            expected = expected[: len(answer)]
        if gap > SURE:
            assert answer == expected


@pytest.mark.parametrize("load", [tiny_model, tiny_fused_model])
def test_a_conversation_prefills_only_what_is_new(model: GptOssModel, load: Callable[[], TokenModel]) -> None:
    """Six turns past the window; each history drops the end of the answer, as Harmony drops analysis."""
    history = list(range(100, 130))
    previous = 0
    with Engine(load, EngineOptions(prefill_chunk=5, snapshot_gap=3)) as engine:
        for _ in range(6):
            generation = engine.submit(ask(history, 9, boundaries=(30, len(history) - 2)))
            answer = ids(generation)
            expected, gap = greedy_alone(model, history, 9)
            if gap > SURE:
                assert answer == expected
            assert generation.finished is not None
            usage = generation.finished.usage
            assert usage.cached_tokens == previous
            previous = len(history)
            history = [*history, 250, *answer[4:], 7, 8, 9]


def test_sampling_with_a_seed_is_the_same_in_any_company(engine: Engine) -> None:
    sampling = SamplingParams(seed=7)
    alone = ids(engine.submit(ask([5, 6], 16, sampling=sampling)))
    others = [engine.submit(ask([9, 9, n], 20, sampling=SamplingParams(seed=n))) for n in range(3)]
    again = ids(engine.submit(ask([5, 6], 16, sampling=sampling)))
    for other in others:
        ids(other)
    assert again == alone


@pytest.mark.parametrize("load", [tiny_model, tiny_fused_model])
def test_spilled_conversations_come_back(tmp_path: Path, model: GptOssModel, load: Callable[[], TokenModel]) -> None:
    options = EngineOptions(prefix_cache_bytes=1, spill_dir=tmp_path, prefill_chunk=16)
    prompt = list(range(1, 40))
    with Engine(load, options) as engine:
        first = engine.submit(ask(prompt, 12, boundaries=(20, 37)))
        answer = ids(first)
        _wait_for(lambda: engine.stats().spilled_entries == 1)
        assert engine.stats().prefix_entries == 0
        assert engine.stats().spilled_bytes > 0
        longer = [*prompt, 300, 301, 302]
        second = engine.submit(ask(longer, 12, boundaries=(20, 40)))
        continued = ids(second)
        assert second.finished is not None
        assert second.finished.usage.cached_tokens == 39
        branch = engine.submit(ask([*prompt[:30], 310], 6))
        branched = ids(branch)
        assert branch.finished is not None
        assert branch.finished.usage.cached_tokens == 20
    for tokens, given_prompt in ((answer, prompt), (continued, longer), (branched, [*prompt[:30], 310])):
        expected, gap = greedy_alone(model, given_prompt, len(tokens))
        if gap > SURE:
            assert tokens == expected
    assert list(tmp_path.iterdir()) == []


def _wait_for(condition: Any, seconds: float = 5.0) -> None:
    import time

    deadline = time.time() + seconds
    while not condition():
        assert time.time() < deadline
        time.sleep(0.01)
