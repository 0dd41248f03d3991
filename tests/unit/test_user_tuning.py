"""Constants that a user found for their own GPU: kept, read back, tried, and never worse than what is there."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import mlx.core as mx
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from mlx_gptoss.bench.spec import BenchSpec
from mlx_gptoss.bench.subject import load_ours
from mlx_gptoss.bench.tune import Question, check, questions, search, step_seconds, without_replays
from mlx_gptoss.cli.bench_cmd import bench
from mlx_gptoss.errors import ConfigError, KernelError
from mlx_gptoss.kernels import user_tuning
from mlx_gptoss.kernels.tuning import Attention, Rows, Tuning, own_tuning, packaged_tuning, tuning_for

FAMILY = "m4-max"


@pytest.fixture(autouse=True)
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    path = tmp_path / "folder" / "tuning.json"
    monkeypatch.setenv(user_tuning.VARIABLE, str(path))
    own_tuning.cache_clear()
    yield path
    own_tuning.cache_clear()


def test_without_a_file_the_package_decides() -> None:
    assert tuning_for(FAMILY) == packaged_tuning(FAMILY)
    assert tuning_for("unheard-of") == packaged_tuning("unheard-of")


def test_what_is_saved_is_used(file: Path) -> None:
    mine = dataclasses.replace(packaged_tuning(FAMILY), qkv=Rows(2, 16, 1), full=Attention(8, 2, 64, 32), top_chunk=512)
    assert user_tuning.save(FAMILY, mine) == file
    assert tuning_for(FAMILY) == mine
    assert tuning_for("m1") == packaged_tuning("m1")
    other = dataclasses.replace(packaged_tuning("m1"), out=Rows(1, 1, 1))
    user_tuning.save("m1", other)
    assert (tuning_for(FAMILY), tuning_for("m1")) == (mine, other)


def test_fields_left_out_stay_as_packaged(file: Path) -> None:
    file.parent.mkdir()
    file.write_text(json.dumps({"version": 1, "families": {FAMILY: {"qkv": {"unroll": 1}}, "m99-giga": {"x": 1}}}))
    base = packaged_tuning(FAMILY)
    assert tuning_for(FAMILY) == dataclasses.replace(base, qkv=dataclasses.replace(base.qkv, unroll=1))


@pytest.mark.parametrize("mine", [None, Rows(2, 8, 3, passes=4)])
@pytest.mark.parametrize("family", [FAMILY, "h100"])  # packaged without and with
def test_constants_for_one_sequence_may_be_none(mine: Rows | None, family: str) -> None:
    tuning = dataclasses.replace(packaged_tuning(family), gate_up_alone=mine, down_alone=mine)
    user_tuning.save(family, tuning)
    assert tuning_for(family) == tuning


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", '{"version": 2, "families": {}}', '{"version": 1, "families": []}',
     '{"version": 1, "families": {"m4-max": {"nonsense": 1}}}', '{"version": 1, "families": {"m4-max": 3}}',
     '{"version": 1, "families": {"m4-max": {"qkv": {"rows": 0}}}}',
     '{"version": 1, "families": {"m4-max": {"qkv": {"rows": true}}}}',
     '{"version": 1, "families": {"m4-max": {"qkv": {"bogus": 1}}}}',
     '{"version": 1, "families": {"m4-max": {"qkv": 7}}}',
     '{"version": 1, "families": {"m4-max": {"qkv": null}}}',
     '{"version": 1, "families": {"m4-max": {"down_alone": {"rows": 2}}}}',
     '{"version": 1, "families": {"m4-max": {"qkv": {"simdgroups": 33}}}}',
     '{"version": 1, "families": {"m4-max": {"qkv": {"unroll": 100000}}}}',
     '{"version": 1, "families": {"m4-max": {"qkv": {"simdgroups": 32, "stagers": 1}}}}',
     '{"version": 1, "families": {"m4-max": {"qkv": {"stagers": -1}}}}',
     '{"version": 1, "families": {"m4-max": {"staged_bytes": 65536}}}'],
)  # fmt: skip
def test_a_broken_file_is_named(file: Path, text: str) -> None:
    file.parent.mkdir()
    file.write_text(text)
    with pytest.raises(ConfigError, match=r"tuning\.json"):
        tuning_for(FAMILY)


def test_a_trial_ends_where_it_should() -> None:
    trial = dataclasses.replace(packaged_tuning(FAMILY), router=Rows(1, 1, 1))
    with user_tuning.on_trial(FAMILY, trial):
        assert tuning_for(FAMILY) is trial
        assert tuning_for("m1") == packaged_tuning("m1")
    assert tuning_for(FAMILY) == packaged_tuning(FAMILY)


START = Tuning()
ASKED = (
    Question("qkv", (Rows(1, 1, 1), Rows(2, 2, 2), START.qkv)),
    Question("full", (Attention(1, 1), Attention(2, 2)), 9000),
)


def run_search(cost: dict[object, float], bad: tuple[object, ...] = (), seconds: float = 60.0) -> Tuning:
    """A search over made-up times: a step takes 1 s plus what its constants cost."""

    def timed(tuning: Tuning, context: int) -> float:
        assert context in (1024, 9000)
        return 1.0 + cost.get(tuning.qkv, 0.0) + cost.get(tuning.full, 0.0)

    def right(tuning: Tuning, context: int) -> bool:
        return tuning.qkv not in bad and tuning.full not in bad

    until = time.monotonic() + seconds
    return search(iter(ASKED), START, check=right, timed=timed, until=until, say=lambda line: None)


def test_the_fastest_wins_field_by_field() -> None:
    best = run_search({Rows(2, 2, 2): -0.2, Rows(1, 1, 1): -0.1, Attention(1, 1): -0.3})
    assert best == dataclasses.replace(START, qkv=Rows(2, 2, 2), full=Attention(1, 1))


def test_a_field_is_asked_without_what_hides_it() -> None:
    start = Tuning(down_alone=Rows(1, 22, 3))
    asked = (
        Question("down", (Rows(4, 4, 1, share=2), Rows(2, 4, 1, share=4)), without="down_alone"),
        Question("down_alone", (None, Rows(2, 11, 3))),
    )
    cost = {Rows(2, 4, 1, share=4): 0.1, Rows(1, 22, 3): 0.0, Rows(2, 11, 3): 0.2}
    seen: list[tuple[Rows, Rows | None]] = []

    def timed(tuning: Tuning, context: int) -> float:
        seen.append((tuning.down, tuning.down_alone))
        return 1.0 + cost.get(tuning.down_alone or tuning.down, 0.5)

    until = time.monotonic() + 60
    best = search(iter(asked), start, check=lambda *_: True, timed=timed, until=until, say=lambda _: None)
    assert best == dataclasses.replace(start, down=Rows(2, 4, 1, share=4))
    assert {alone for _, alone in seen[: len(seen) // 2]} == {None}


def test_wrong_answers_never_win() -> None:
    assert run_search({Rows(2, 2, 2): -0.5, Rows(1, 1, 1): -0.1}, bad=(Rows(2, 2, 2),)).qkv == Rows(1, 1, 1)


def test_a_tie_changes_nothing() -> None:
    assert run_search({Rows(2, 2, 2): -0.005}) == START


def test_out_of_time_keeps_what_is_there() -> None:
    assert run_search({Rows(2, 2, 2): -0.5}, seconds=-1.0) == START


@given(st.dictionaries(st.sampled_from([*ASKED[0].candidates, *ASKED[1].candidates]), st.floats(-0.4, 0.4)))
def test_no_search_ends_worse_than_it_began(cost: dict[object, float]) -> None:
    def total(tuning: Tuning) -> float:
        return 1.0 + cost.get(tuning.qkv, 0.0) + cost.get(tuning.full, 0.0)

    assert total(run_search(cost)) <= total(START)


def test_trials_run_no_step_compiled_before_them() -> None:
    """A compiled step holds the constants it was compiled with: each trial starts without any."""

    class Replaying:
        def __init__(self) -> None:
            self.replays = [1, 2]

    subject = load_ours(BenchSpec(random="tiny"))
    model: Any = Replaying()
    subject.model = model
    fresh = without_replays(subject)
    assert cast("Any", fresh.model).replays == []
    assert model.replays == [1, 2]
    assert subject.model is model


def test_a_step_is_timed_under_its_constants() -> None:
    subject = load_ours(BenchSpec(random="tiny"))
    seen: list[Tuning] = []
    decode = subject.model.decode

    class Spying:
        config, make_cache = subject.model.config, subject.model.make_cache
        draw_backend = subject.model.draw_backend

        def decode(self, token_ids: mx.array, caches: Sequence[Any]) -> mx.array:
            seen.append(tuning_for(FAMILY))
            return decode(token_ids, caches)

    subject.model = cast("Any", Spying())
    trial = dataclasses.replace(packaged_tuning(FAMILY), out=Rows(1, 1, 1))
    assert step_seconds(subject, FAMILY, trial, 20) > 0
    assert set(seen) == {trial}
    assert check(subject, FAMILY, trial, 20)
    assert tuning_for(FAMILY) == packaged_tuning(FAMILY)


def test_every_question_is_about_a_field() -> None:
    fields = {item.name for item in dataclasses.fields(Tuning)}
    asked = list(questions(packaged_tuning("h100")))
    # The search runs one sequence on dense projections.
    unasked = {"qkv_halves", "out_halves", "gate_up_several", "down_several"}
    assert set(user_tuning.OPTIONAL) - unasked < {question.field for question in asked}
    assert "down_alone" not in {question.field for question in questions(packaged_tuning(FAMILY))}  # it does not fit
    for question in asked:
        assert question.field in fields
        assert len(set(question.candidates)) == len(question.candidates) > 1
        kinds = {type(candidate) for candidate in question.candidates}
        assert kinds == (
            {Rows, type(None)} if question.field in user_tuning.OPTIONAL else {type(getattr(START, question.field))}
        )


def test_without_a_gpu_there_is_nothing_to_tune(monkeypatch: pytest.MonkeyPatch) -> None:
    from mlx_gptoss.kernels.backend import StockBackend

    monkeypatch.setattr("mlx_gptoss.bench.tune.default_backend", StockBackend)
    result = CliRunner().invoke(bench, ["--tune"])
    assert isinstance(result.exception, KernelError)
