"""The engine with models that have no weights: batching, stops, limits, queueing, idleness."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlx_gptoss.engine import Engine
from mlx_gptoss.engine.sequence import Sequence as EngineSequence
from mlx_gptoss.errors import (
    QueueFullError,
)
from mlx_gptoss.request import SamplingParams
from tests.unit.engine_support import ask, engine_of, ids
from tests.unit.fake_model import FakeModel


def test_greedy_tokens_equal_the_model_alone() -> None:
    model = FakeModel()
    with engine_of(model, prefill_chunk=3) as engine:
        generation = engine.submit(ask(range(1, 20), 12))
        assert ids(generation) == model.alone(range(1, 20), 12)
        finished = generation.finished
    assert finished is not None
    assert finished.finish_reason == "length"
    assert (finished.usage.prompt_tokens, finished.usage.completion_tokens) == (19, 12)
    assert finished.timings.total_s >= finished.timings.first_token_s > 0
    assert finished.timings.decode_tps > 0
    assert finished.timings.prefill_tps > 0
    assert max(model.prefilled) == 3
    assert len(model.threads) == 1


def test_a_stop_id_ends_the_turn_and_is_reported() -> None:
    model = FakeModel()
    expected = model.alone([5, 6, 7], 30)
    stop = expected[4]
    with engine_of(model) as engine:
        generation = engine.submit(ask([5, 6, 7], 30, stop_ids=(stop,)))
        assert ids(generation) == expected[: expected.index(stop) + 1]
        assert generation.finished is not None
        assert generation.finished.finish_reason == "stop"


def test_a_single_token_needs_no_decode_step() -> None:
    model = FakeModel()
    with engine_of(model) as engine:
        assert ids(engine.submit(ask([1, 2], 1))) == model.alone([1, 2], 1)
    assert model.decoded == []


def test_max_tokens_none_runs_to_the_context() -> None:
    model = FakeModel(context=32)
    with engine_of(model) as engine:
        generation = engine.submit(ask(range(10), None, repetition_stop=False))
        assert len(ids(generation)) == 22
        assert generation.finished is not None
        assert generation.finished.finish_reason == "length"


@settings(max_examples=25, deadline=None)
@given(
    lengths=st.lists(st.tuples(st.integers(1, 30), st.integers(1, 20)), min_size=1, max_size=9),
    chunk=st.integers(1, 9),
    batch=st.integers(1, 5),
    cancelled=st.sets(st.integers(0, 8), max_size=3),
    shared=st.integers(0, 20),
)
def test_neighbours_do_not_matter(
    lengths: list[tuple[int, int]], chunk: int, batch: int, cancelled: set[int], shared: int
) -> None:
    """Ragged joins, leaves and cancels around the window, with prefixes in common: greedy tokens as if alone."""
    model = FakeModel()
    prompts = [
        [*range(1, min(shared, length) + 1), *((7 * n + i) % 300 for i in range(max(0, length - shared)))]
        for n, (length, _) in enumerate(lengths)
    ]
    with engine_of(model, prefill_chunk=chunk, max_batch=batch, max_queue=16, snapshot_gap=2) as engine:
        generations = [
            engine.submit(ask(prompt, count, boundaries=tuple(range(1, len(prompt), 3))))
            for prompt, (_, count) in zip(prompts, lengths, strict=True)
        ]
        for n in cancelled:
            if n < len(generations):
                generations[n].cancel()
        answers = [ids(generation) for generation in generations]
    for n, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
        expected = model.alone(prompt, lengths[n][1])
        finished = generations[n].finished
        assert finished is not None
        if n in cancelled and finished.finish_reason == "cancelled":
            assert answer == expected[: len(answer)]
        else:
            assert (finished.finish_reason, answer) == ("length", expected)


def test_a_seed_gives_the_same_tokens_in_any_company() -> None:
    model = FakeModel()
    sampling = SamplingParams(seed=42, temperature=1.3, top_p=0.9)
    with engine_of(model) as engine:
        alone = ids(engine.submit(ask([1, 2, 3], 20, sampling=sampling)))
        crowd = [
            engine.submit(ask([9, n], 15 + n, sampling=SamplingParams(seed=n, top_k=n, min_p=0.01 * n)))
            for n in range(5)
        ]
        again = ids(engine.submit(ask([1, 2, 3], 20, sampling=sampling)))
        other = ids(engine.submit(ask([1, 2, 3], 20, sampling=SamplingParams(seed=43, temperature=1.3, top_p=0.9))))
        for generation in crowd:
            assert len(ids(generation)) > 0
    assert alone == again
    assert alone != other


def test_without_a_seed_answers_differ() -> None:
    with engine_of(FakeModel()) as engine:
        answers = {tuple(ids(engine.submit(ask([1, 2], 12, sampling=SamplingParams())))) for _ in range(3)}
    assert len(answers) == 3


def test_cancellation_takes_effect_within_one_step() -> None:
    model = FakeModel(context=100_000)
    with engine_of(model) as engine:
        generation = engine.submit(ask([1], None, repetition_stop=False))
        stream = iter(generation)
        for _ in range(5):
            next(stream)
        steps = len(model.decoded)
        generation.cancel()
        finished = generation.wait(5)
        assert finished is not None
        assert finished.finish_reason == "cancelled"
        assert len(model.decoded) - steps <= 3
        assert finished.usage.completion_tokens >= 5


def test_cancelling_while_queued_never_starts() -> None:
    model = FakeModel(context=100_000)
    with engine_of(model, max_batch=1) as engine:
        first = engine.submit(ask([1], None, repetition_stop=False))
        second = engine.submit(ask([2, 3, 4], 5))
        second.cancel()
        finished = second.wait(5)
        assert finished is not None
        assert finished.finish_reason == "cancelled"
        assert finished.usage.completion_tokens == 0
        first.cancel()
    assert 3 not in model.prefilled


def test_time_limits_hold_while_running_and_while_queued() -> None:
    with engine_of(FakeModel(context=1_000_000), max_batch=1) as engine:
        first = engine.submit(ask([1], None, timeout_s=0.3, repetition_stop=False))
        second = engine.submit(ask([1], 5, timeout_s=0.05))
        for generation in (second, first):
            finished = generation.wait(10)
            assert finished is not None
            assert finished.finish_reason == "timeout"
        assert second.finished is not None
        assert second.finished.usage.completion_tokens == 0
        assert len(ids(first)) > 0


def test_the_queue_is_bounded_and_says_when_to_retry() -> None:
    model = FakeModel()
    model.gate = threading.Event()
    with engine_of(model, max_batch=2, max_queue=3) as engine:
        running = [engine.submit(ask([n + 1], 2)) for n in range(5)]
        with pytest.raises(QueueFullError) as caught:
            engine.submit(ask([9], 2))
        assert caught.value.retry_after >= 1
        model.gate.set()
        for generation in running:
            assert len(ids(generation)) == 2
        assert len(ids(engine.submit(ask([9], 2)))) == 2


def test_requests_start_in_order() -> None:
    model = FakeModel()
    model.gate = threading.Event()
    order: list[int] = []
    with engine_of(model, max_batch=1, max_queue=8) as engine:

        def note(n: int) -> Callable[[int, int], None]:
            return lambda done, total: order.append(n)

        generations = [engine.submit(ask([n + 1, 2, 3], 2, on_progress=note(n))) for n in range(4)]
        model.gate.set()
        for generation in generations:
            generation.wait(5)
    assert order == sorted(order)
    assert set(order) == {0, 1, 2, 3}


def test_logprobs_come_with_their_alternatives() -> None:
    model = FakeModel()
    with engine_of(model) as engine:
        plain = engine.submit(ask([1, 2], 4))
        asked = engine.submit(ask([1, 2], 4, sampling=SamplingParams(temperature=0.0, logprobs=3)))
        none = engine.submit(ask([1, 2], 4, sampling=SamplingParams(temperature=0.0, logprobs=0)))
        assert all(event.logprob is None for event in plain)
        for event in none:
            assert event.logprob is not None
            assert event.top == ()
        for event in asked:
            assert len(event.top) == 3
            assert event.top[0][0] == event.token_id
            assert event.logprob == pytest.approx(event.top[0][1], abs=1e-5)
            assert event.top[0][1] >= event.top[1][1] >= event.top[2][1]


def test_a_long_prompt_does_not_freeze_the_others() -> None:
    model = FakeModel(context=100_000)
    with engine_of(model, prefill_chunk=16) as engine:
        talker = engine.submit(ask([1], None, repetition_stop=False))
        next(iter(talker))
        before = len(model.decoded)
        long = engine.submit(ask([n % 300 for n in range(640)], 1))
        long.wait(20)
        # One chunk of sixteen a step: the talker moved on by a token for each.
        assert len(model.decoded) - before >= 39
        talker.cancel()


def test_short_prompts_start_together_while_others_decode() -> None:
    model = FakeModel(context=100_000)
    with engine_of(model, prefill_chunk=512, max_batch=9) as engine:
        talker = engine.submit(ask([1], None, repetition_stop=False))
        next(iter(talker))
        model.gate = threading.Event()
        prompts = [[n + 2] * 10 for n in range(8)]
        asked = [engine.submit(ask(prompt, 3)) for prompt in prompts]
        model.gate.set()
        for prompt, generation in zip(prompts, asked, strict=True):
            assert ids(generation) == model.alone(prompt, 3)
        # Eight passes count as 64 tokens each and fit into one step: all of them decode beside the talker.
        assert max(model.decoded) == 9
        talker.cancel()


def test_a_short_prompt_passes_a_long_one_in_progress() -> None:
    model = FakeModel(context=100_000)
    with engine_of(model, prefill_chunk=16) as engine:
        long = engine.submit(ask([n % 300 for n in range(1600)], 1))
        short = engine.submit(ask([5, 6, 7], 1))
        short.wait(20)
        assert long.finished is None
        assert ids(long) == model.alone([n % 300 for n in range(1600)], 1)


def test_progress_counts_the_prompt() -> None:
    seen: list[tuple[int, int]] = []
    with engine_of(FakeModel(), prefill_chunk=4) as engine:
        ids(engine.submit(ask(range(10), 2, on_progress=lambda done, total: seen.append((done, total)))))
    assert seen == [(0, 10), (4, 10), (8, 10), (10, 10)]


def test_idle_it_uses_no_processor_time() -> None:
    with engine_of(FakeModel()) as engine:
        ids(engine.submit(ask([1], 3)))
        time.sleep(0.05)
        before = time.process_time()
        time.sleep(0.5)
        assert time.process_time() - before < 0.05


def test_async_iteration_and_many_threads() -> None:
    model = FakeModel()
    expected = {n: model.alone([n, n + 1], 10) for n in range(1, 13)}

    async def one(engine: Engine, n: int) -> list[int]:
        return [event.token_id async for event in engine.submit(ask([n, n + 1], 10))]

    async def everyone(engine: Engine) -> list[list[int]]:
        return await asyncio.gather(*(one(engine, n) for n in range(1, 7)))

    results: dict[int, list[int]] = {}
    with engine_of(model, max_batch=4) as engine:
        threads = [
            threading.Thread(target=lambda n=n: results.__setitem__(n, ids(engine.submit(ask([n, n + 1], 10)))))
            for n in range(7, 13)
        ]
        for thread in threads:
            thread.start()
        results |= dict(enumerate(asyncio.run(everyone(engine)), start=1))
        for thread in threads:
            thread.join()
    assert results == expected


def test_many_short_requests_with_random_cancels_leave_nothing_behind() -> None:
    model = FakeModel()
    random = np.random.default_rng(5)
    ends: Counter[str] = Counter()

    def client(engine: Engine, seed: int) -> None:
        mine = np.random.default_rng(seed)
        for _ in range(100):
            prompt = mine.integers(0, 320, size=int(mine.integers(1, 12))).tolist()
            generation = engine.submit(ask(prompt, int(mine.integers(1, 5))))
            if mine.random() < 0.3:
                time.sleep(float(mine.random()) * 0.002)
                generation.cancel()
            finished = generation.wait(20)
            assert finished is not None
            ends[finished.finish_reason] += 1

    with engine_of(model, max_batch=3, prefix_cache_bytes=4096) as engine:
        seeds = random.integers(0, 2**31, size=4).tolist()
        threads = [threading.Thread(target=client, args=(engine, seed)) for seed in seeds]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        deadline = time.time() + 5
        while engine.stats().active and time.time() < deadline:
            time.sleep(0.01)
        assert (engine.stats().active, engine.stats().queued) == (0, 0)
        assert engine.stats().prefix_cache_bytes <= 4096
    assert sum(ends.values()) == 400
    assert set(ends) <= {"length", "cancelled"}
    gc.collect()
    assert not [thing for thing in gc.get_objects() if type(thing) is EngineSequence]


def test_stats_count_what_happened() -> None:
    with engine_of(FakeModel()) as engine:
        for n in range(3):
            ids(engine.submit(ask([n + 1, 2, 3], 4)))
        deadline = time.time() + 5
        while engine.stats().requests_total < 3 and time.time() < deadline:
            time.sleep(0.01)
        stats = engine.stats()
    assert (stats.requests_total, stats.prompt_tokens_total, stats.completion_tokens_total) == (3, 9, 12)
    assert (stats.active, stats.queued) == (0, 0)
    assert stats.prefix_entries == 3
