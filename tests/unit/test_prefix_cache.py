"""Which tokens are not prefilled again, exactly."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mlx_gptoss.engine import Engine, EngineOptions, Finished, GenerationRequest
from mlx_gptoss.engine.prefill import choose_cuts
from mlx_gptoss.engine.prefix import common_prefix
from mlx_gptoss.engine.prefix_cache import PrefixCache, Stored, enter, reentry, thin
from mlx_gptoss.request import SamplingParams
from tests.unit.fake_model import WINDOW, FakeCache, FakeModel, FakeSnapshot


def run(engine: Engine, prompt: Sequence[int], count: int, **changes: Any) -> tuple[list[int], Finished]:
    generation = engine.submit(
        GenerationRequest(
            tuple(prompt),
            **{"sampling": SamplingParams(temperature=0.0), "max_tokens": count, "stop_ids": (), **changes},
        )
    )
    tokens = [event.token_id for event in generation]
    assert generation.finished is not None
    return tokens, generation.finished


def filled(tokens: Sequence[int], at: Sequence[int] = (), key: str | None = None, keep_from: int = 0) -> Stored:
    cache = FakeCache()
    snapshots = []
    for place, token in enumerate(tokens):
        cache.write(mx.array(token))
        if place + 1 in at:
            snapshots.append(cache.snapshot())
    return Stored(np.array(tokens, dtype=np.int32), cache, tuple(snapshots), key, keep_from)


@given(st.lists(st.integers(0, 3), max_size=30), st.lists(st.integers(0, 3), max_size=30))
def test_common_prefix(first: list[int], second: list[int]) -> None:
    expected = next((i for i, (a, b) in enumerate(zip(first, second, strict=False)) if a != b), None)
    found = common_prefix(np.array(first, dtype=np.int32), np.array(second, dtype=np.int32))
    assert found == (min(len(first), len(second)) if expected is None else expected)


def test_reentry_points() -> None:
    short = filled(range(WINDOW))
    assert [reentry(short, n) for n in (0, 3, WINDOW, 100)] == [0, 3, WINDOW, WINDOW]
    long = filled(range(30), at=(10, 20))
    assert [reentry(long, n) for n in (5, 8, 9, 10, 18, 19, 20, 28, 29, 30, 99)] == [
        0, 0, 9, 10, 10, 19, 20, 20, 29, 30, 30,
    ]  # fmt: skip


@settings(max_examples=50, deadline=None)
@given(
    length=st.integers(1, 40),
    wanted=st.integers(0, 45),
    at=st.sets(st.integers(1, 40), max_size=4),
    share=st.booleans(),
)
@example(length=9, wanted=8, at=set(), share=False)
@example(length=30, wanted=11, at={12}, share=True)
@example(length=30, wanted=5, at={6}, share=True)
def test_a_cache_that_was_cut_back_goes_on_as_if_new(length: int, wanted: int, at: set[int], share: bool) -> None:
    stored = filled(range(length), sorted(at))
    before = stored.cache.summary().item()
    position = reentry(stored, wanted)
    if position == 0:  # nothing to re-enter
        return
    hit = enter(stored, position, share=share)
    fresh = filled(range(position)).cache
    assert hit.cache.offset == position <= max(wanted, 0)
    # Cut back from a window that has gone round, it cannot be cut by one more: no point to come back to.
    cut_from = length if length <= WINDOW or length - position == 1 else position + 1
    whole = position == length or position in at or cut_from <= WINDOW
    kept = sorted(n for n in at if n < position)
    assert [snapshot.offset for snapshot in hit.snapshots] == ([*kept, position] if whole else kept)
    for token in (77, 78):
        hit.cache.write(mx.array(token))
        fresh.write(mx.array(token))
        assert hit.cache.summary().item() == fresh.summary().item()
    if share:
        assert stored.cache.summary().item() == before


def test_thinning_keeps_the_ends() -> None:
    ring = mx.zeros((1,))
    snapshots = [FakeSnapshot(n, ring) for n in (5, 6, 7, 8, 100, 200, 300, 400)]
    assert [snapshot.offset for snapshot in thin(snapshots, 5)] == [5, 100, 200, 300, 400]
    assert thin(snapshots, 8) == tuple(snapshots)


@pytest.mark.parametrize(
    ("boundaries", "length", "gap", "expected"),
    [
        ((), 10, 4, ()),
        ((0, 10, 12), 10, 4, ()),
        ((3, 8), 10, 4, (3,)),
        ((3, 6, 8), 10, 4, (3, 6)),
        ((3, 4, 5, 6, 7, 8), 10, 2, (3, 4, 6, 8)),
        ((3, 4, 5, 6, 7, 8), 10, 100, (3,)),
        ((8, 3, 3), 10, 1, (3, 8)),
        ((8,), 10, 100, (8,)),
    ],
)
def test_cuts(boundaries: tuple[int, ...], length: int, gap: int, expected: tuple[int, ...]) -> None:
    assert choose_cuts(boundaries, length, gap) == expected


def test_a_chat_prefills_only_what_is_new() -> None:
    """system | user -> answer; the next prompt has the answer without its reasoning, and another user message."""
    model = FakeModel()
    with Engine(lambda: model) as engine:
        system, opening = list(range(1, 41)), [201, 202]
        history = [*system, *range(50, 70)]
        previous = 0
        for turn in range(5):
            prompt = [*history, *opening]
            answer, finished = run(engine, prompt, 12, boundaries=(40, len(history)))
            assert finished.usage.cached_tokens == previous
            assert answer == model.alone(prompt, 12)
            # The next history shares the opening and goes on with the final message only.
            previous = len(prompt)
            history = [*prompt, 210, *answer[6:], 211, *range(70 + turn, 80 + turn)]
        assert engine.stats().prefix_entries <= 2


def test_a_tool_loop_goes_on_from_the_end_of_the_call() -> None:
    model = FakeModel()
    with Engine(lambda: model) as engine:
        prompt = list(range(1, 31))
        call = model.alone(prompt, 40)
        answer, finished = run(engine, prompt, 40, stop_ids=(call[7],), boundaries=(28,))
        assert answer == call[:8]
        # The stop token's own keys are in the cache too: it was in flight.
        longer = [*prompt, *answer, 5, 6, 7]
        tokens, finished = run(engine, longer, 3, boundaries=(28, len(longer) - 2))
        assert finished.usage.cached_tokens == len(prompt) + len(answer)
        assert tokens == model.alone(longer, 3)
        # After the final answer the reasoning goes: back to the end of the first prompt.
        after = [*prompt, 9, *tokens, 12, 13]
        _, finished = run(engine, after, 3, boundaries=(28, len(after) - 2))
        assert finished.usage.cached_tokens == len(prompt)


def test_an_answer_cut_by_length_leaves_its_last_token_out() -> None:
    model = FakeModel()
    with Engine(lambda: model) as engine:
        prompt = list(range(1, 31))
        answer, _ = run(engine, prompt, 10)
        _, finished = run(engine, [*prompt, *answer, 3, 4], 2)
        assert finished.usage.cached_tokens == len(prompt) + len(answer) - 1


def test_two_conversations_share_a_system_prompt() -> None:
    model = FakeModel()
    with Engine(lambda: model) as engine:
        system = list(range(1, 51))
        first, finished = run(engine, [*system, 60, 61, 62, 201], 5, boundaries=(50, 53))
        assert finished.usage.cached_tokens == 0
        _, finished = run(engine, [*system, 70, 71, 201], 5, boundaries=(50, 52))
        assert finished.usage.cached_tokens == 50
        # The first conversation is still whole.
        longer = [*system, 60, 61, 62, 201, *first, 9, 10]
        tokens, finished = run(engine, longer, 5, boundaries=(50, 60))
        assert finished.usage.cached_tokens == 54 + 4
        assert tokens == model.alone(longer, 5)


def test_the_same_prompt_again_prefills_its_end_only() -> None:
    model = FakeModel()
    with Engine(lambda: model) as engine:
        prompt = list(range(1, 41))
        first, _ = run(engine, prompt, 6, boundaries=(20, 38))
        for _ in range(3):
            again, finished = run(engine, prompt, 6, boundaries=(20, 38))
            assert finished.usage.cached_tokens == 39
            assert again == first
        assert engine.stats().prefix_entries == 1


def test_a_shorter_prompt_reuses_a_longer_one() -> None:
    model = FakeModel()
    with Engine(lambda: model) as engine:
        run(engine, range(1, 41), 6, boundaries=(20, 38))
        _, finished = run(engine, range(1, 31), 6)
        assert finished.usage.cached_tokens == 20
        _, finished = run(engine, range(1, 21), 6)
        assert finished.usage.cached_tokens == 19, "at least one token is left"
        _, finished = run(engine, range(1, 18), 6)
        assert finished.usage.cached_tokens == 0, "there is no snapshot before 17"


def test_requests_at_the_same_time_share_what_they_can() -> None:
    """Four samples of one prompt: the others wait for the first to prefill, then take it over."""
    model = FakeModel()
    model.gate = threading.Event()
    prompt = [n % 300 for n in range(200)]
    with Engine(lambda: model, EngineOptions(prefill_chunk=32)) as engine:
        generations = [
            engine.submit(GenerationRequest(tuple(prompt), SamplingParams(seed=n), 8, (), boundaries=(100, 198)))
            for n in range(4)
        ]
        model.gate.set()
        cached = []
        for generation in generations:
            generation.wait(10)
            assert generation.finished is not None
            cached.append(generation.finished.usage.cached_tokens)
    assert cached == [0, 199, 199, 199]
    assert sum(model.prefilled) == 200 + 3


def test_a_conversation_in_progress_lends_its_system_prompt() -> None:
    model = FakeModel(context=100_000)
    with Engine(lambda: model) as engine:
        system = list(range(1, 81))
        talking = engine.submit(
            GenerationRequest(
                (*system, 90), SamplingParams(temperature=0.0), None, (), boundaries=(80,), repetition_stop=False
            )
        )
        next(iter(talking))
        tokens, finished = run(engine, [*system, 91, 92], 8, boundaries=(80,))
        assert finished.usage.cached_tokens == 80
        assert tokens == model.alone([*system, 91, 92], 8)
        talking.cancel()


def test_a_cancelled_generation_can_be_taken_up_again() -> None:
    model = FakeModel(context=100_000)
    with Engine(lambda: model) as engine:
        prompt = list(range(1, 31))
        generation = engine.submit(
            GenerationRequest(tuple(prompt), SamplingParams(temperature=0.0), None, (), repetition_stop=False)
        )
        stream = iter(generation)
        for _ in range(20):
            next(stream)
        generation.cancel()
        generation.wait(5)
        rest = [event.token_id for event in stream]
        assert generation.finished is not None
        made = generation.finished.usage.completion_tokens
        assert made >= 20
        expected = model.alone(prompt, made)
        assert expected[20:] == rest[-(made - 20) :] if made > 20 else True
        _, finished = run(engine, [*prompt, *expected, 5], 2)
        assert finished.usage.cached_tokens == 30 + made


def test_a_failed_generation_leaves_nothing() -> None:
    model = FakeModel()
    model.nan_when = lambda cache: cache.offset == 35
    with Engine(lambda: model) as engine:
        _, finished = run(engine, range(1, 31), 20)
        assert finished.finish_reason == "error"
        assert engine.stats().prefix_entries == 0


def test_the_budget_drops_the_least_recently_used() -> None:
    entries = [filled([n] * 20, key=None, keep_from=20) for n in range(4)]
    size = entries[0].nbytes
    store = PrefixCache(3 * size)
    for entry in entries[:3]:
        store.store(entry)
    prompt = np.array([0] * 20 + [9], dtype=np.int32)
    assert store.best(prompt) == 20
    hit = store.lookup(np.array([0] * 20 + [9], dtype=np.int32))
    assert hit is not None
    store.store(Stored(np.array([0] * 20, dtype=np.int32), hit.cache, (), None, 20))
    store.store(entries[3])
    assert [store.best(np.array([n] * 21, dtype=np.int32)) for n in range(4)] == [20, 0, 20, 20]
    assert store.nbytes <= 3 * size


def test_a_budget_of_nothing_keeps_nothing() -> None:
    model = FakeModel()
    with Engine(lambda: model, EngineOptions(prefix_cache_bytes=0)) as engine:
        for _ in range(2):
            tokens, finished = run(engine, range(1, 31), 5, boundaries=(10,))
            assert finished.usage.cached_tokens == 0
            assert tokens == model.alone(range(1, 31), 5)


def test_a_key_is_one_conversation() -> None:
    model = FakeModel()
    with Engine(lambda: model) as engine:
        run(engine, range(1, 31), 5, cache_key="a")
        run(engine, range(100, 131), 5, cache_key="b")
        assert engine.stats().prefix_entries == 2
        run(engine, range(200, 231), 5, cache_key="a")
        assert engine.stats().prefix_entries == 2
        _, finished = run(engine, [*range(1, 31), 7], 5)
        assert finished.usage.cached_tokens == 0


def test_a_long_prompt_without_boundaries_is_snapshotted_on_the_way() -> None:
    model = FakeModel(context=10_000)
    with Engine(lambda: model, EngineOptions(prefill_chunk=512)) as engine:
        text = [n % 299 for n in range(3000)]
        run(engine, text, 2)
        _, finished = run(engine, [*text[:2500], 300, 301], 2)
        assert finished.usage.cached_tokens == 2048


def test_unspillable_is_not_fatal(tmp_path: Path) -> None:
    """A spill folder that cannot be written: conversations are forgotten, answers are not affected."""
    from tests.unit.tiny_model import tiny_model

    with Engine(tiny_model, EngineOptions(prefix_cache_bytes=1, spill_dir=tmp_path)) as engine:
        for left in tmp_path.iterdir():
            left.rmdir()
        first, _ = run(engine, range(1, 31), 5)
        second, finished = run(engine, range(1, 31), 5)
        assert len(first) == len(second) == 5
        assert finished.finish_reason == "length"


def test_stale_spill_folders_are_removed(tmp_path: Path) -> None:
    from mlx_gptoss.engine.spill import SpillStore

    dead = tmp_path / "mlx-gptoss-spill-999999999-ab"
    dead.mkdir()
    (dead / "0.safetensors").write_bytes(b"x")
    mine = tmp_path / "notes"
    mine.mkdir()
    store = SpillStore(tmp_path, 1 << 20, FakeCache)
    assert not dead.exists()
    assert mine.exists()
    store.clear()
    assert list(tmp_path.iterdir()) == [mine]
