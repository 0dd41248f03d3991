"""What ends a request early or alone: failures, constraints, refusals, closing."""

from __future__ import annotations

import gc
import subprocess
import sys
import threading
import weakref
from collections.abc import Sequence
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from mlx_gptoss.engine import Engine, EngineOptions, GenerationRequest
from mlx_gptoss.engine.constraint import Mask
from mlx_gptoss.errors import (
    ContextOverflowError,
    EngineClosedError,
    InsufficientMemoryError,
    InternalError,
    InvalidRequestError,
)
from mlx_gptoss.request import SamplingParams
from tests.unit.engine_support import AllowOnly, ask, engine_of, ids
from tests.unit.fake_model import FakeCache, FakeModel


def test_nan_logits_end_their_own_request_only() -> None:
    model = FakeModel()
    with engine_of(model) as engine:
        healthy = model.alone([1, 2, 3], 30)
        model.nan_when = lambda cache: cache.offset == 25
        sick = engine.submit(ask(range(20), 30))
        well = engine.submit(ask([1, 2, 3], 22))
        assert len(ids(sick)) == 5
        assert ids(well) == healthy[:22]
        assert sick.finished is not None
        assert sick.finished.finish_reason == "error"
        assert isinstance(sick.finished.error, InternalError)
        assert "not finite" in str(sick.finished.error)


@pytest.mark.parametrize(
    "sampling",
    [
        SamplingParams(repetition_penalty=1.5, repetition_context=10**30),
        SamplingParams(top_k=10**30),
        SamplingParams(seed=-(10**30)),
        SamplingParams(temperature=5e-324),
    ],
)
def test_extreme_sampling_is_answered(sampling: SamplingParams) -> None:
    with engine_of(FakeModel()) as engine:
        assert len(ids(engine.submit(ask([1, 2, 3], 5, sampling=sampling)))) == 5


def test_a_request_that_cannot_start_fails_alone() -> None:
    model = FakeModel()
    with engine_of(model) as engine:
        sick = engine.submit(ask([1, 2, 3], 5, boundaries=("one",)))
        finished = sick.wait(5)
        assert finished is not None
        assert isinstance(finished.error, InternalError)
        assert ids(engine.submit(ask([1, 2, 3], 20))) == model.alone([1, 2, 3], 20)


@pytest.mark.parametrize("field", ["top_k", "repetition_context", "seed"])
@pytest.mark.parametrize("value", [1.5, "1", True])
def test_whole_numbers_are_whole(field: str, value: object) -> None:
    with pytest.raises(InvalidRequestError, match=field):
        SamplingParams(**{field: value})  # type: ignore[arg-type]  # wrong on purpose


def test_a_request_that_breaks_prefill_fails_alone() -> None:
    model = FakeModel()
    model.break_prefill = lambda tokens: 99 in tokens
    with engine_of(model) as engine:
        well = engine.submit(ask([1, 2, 3], 20))
        sick = engine.submit(ask([99, 1], 20))
        assert ids(well) == model.alone([1, 2, 3], 20)
        finished = sick.wait(5)
        assert finished is not None
        assert finished.finish_reason == "error"
        assert "prefill broke" in str(finished.error)


def test_a_request_that_breaks_the_batch_fails_alone() -> None:
    model = FakeModel()
    poison: set[object] = set()

    def broken(caches: Sequence[FakeCache]) -> bool:
        return any(cache.offset >= 15 and cache.states[1].item() in poison for cache in caches)

    marker = FakeCache()
    marker_model = FakeModel()
    marker_model.prefill(np_row([50]), marker)
    poison = {marker.states[1].item()}
    model.break_decode = broken
    with engine_of(model) as engine:
        generations = [engine.submit(ask([n + 1] * 10, 20)) for n in range(3)]
        sick = engine.submit(ask([50] * 10, 20))
        for n, generation in enumerate(generations):
            assert ids(generation) == model.alone([n + 1] * 10, 20)
        finished = sick.wait(5)
        assert finished is not None
        assert finished.finish_reason == "error"
        assert "decode broke" in str(finished.error)
        assert ids(sick) == model.alone([50] * 10, 20)[: finished.usage.completion_tokens]


@pytest.mark.parametrize("where", ["prefill", "decode", "numbers"])
def test_a_model_that_mends_itself_costs_nobody_anything(where: str) -> None:
    """Whatever runs begins anew, prompts half prefilled included, and every answer is what it would have been."""
    model = FakeModel()

    def mends(error: Exception) -> bool:
        model.break_prefill = lambda tokens: False
        model.break_decode = lambda caches: False
        model.nan_when = lambda cache: False
        return True

    model.mends = mends
    if where == "prefill":
        model.break_prefill = lambda tokens: 50 in tokens
    elif where == "decode":
        model.break_decode = lambda caches: any(cache.offset > 30 for cache in caches)
    else:
        model.nan_when = lambda cache: cache.offset > 30
    prompts = [[n + 1] * 25 for n in range(3)] + [[50] * 90]
    with engine_of(model, prefill_chunk=16) as engine:
        seeded = engine.submit(ask([9] * 5, 30, sampling=SamplingParams(seed=5)))
        running = [engine.submit(ask(prompt, 12)) for prompt in prompts]
        assert [ids(generation) for generation in running] == [model.alone(prompt, 12) for prompt in prompts]
        drawn = ids(seeded)
        assert len(model.errors) == 1
        assert drawn == ids(engine.submit(ask([9] * 5, 30, sampling=SamplingParams(seed=5))))


def np_row(tokens: list[int]) -> Any:
    import mlx.core as mx

    return mx.array(np.array(tokens, dtype=np.int32))[None]


def test_constraints_rule_their_own_request() -> None:
    model = FakeModel()
    constraint = AllowOnly([3, 64, 319], forced=(11, 12), after=6)
    with engine_of(model) as engine:
        bound = engine.submit(ask([1, 2], 10, constraint=constraint, sampling=SamplingParams(seed=1)))
        free = engine.submit(ask([4, 5], 10))
        answer = ids(bound)
        assert ids(free) == model.alone([4, 5], 10)
    assert set(answer[:6]) <= {3, 64, 319}
    assert len(set(answer[:6])) > 1
    assert answer[6:8] == [11, 12]
    assert constraint.seen == answer


def test_a_constraint_that_raises_or_forbids_everything_fails_alone() -> None:
    class Raises(AllowOnly):
        def mask(self) -> Mask | None:
            raise ValueError("grammar fell over")

    model = FakeModel()
    with engine_of(model) as engine:
        raising = engine.submit(ask([1], 5, constraint=Raises([])))
        nothing = engine.submit(ask([1], 5, constraint=AllowOnly([])))
        well = engine.submit(ask([4, 5], 10))
        assert ids(well) == model.alone([4, 5], 10)
        for generation, text in ((raising, "grammar fell over"), (nothing, "no token may come next")):
            finished = generation.wait(5)
            assert finished is not None
            assert finished.finish_reason == "error"
            assert text in str(finished.error)


def test_endless_repetition_stops_with_its_own_reason() -> None:
    model = FakeModel(context=10_000)
    always = AllowOnly([7])
    with engine_of(model) as engine:
        looping = engine.submit(ask([1], 2000, constraint=always))
        allowed = engine.submit(ask([1], 600, constraint=AllowOnly([7]), repetition_stop=False))
        assert 256 <= len(ids(looping)) < 300
        assert looping.finished is not None
        assert looping.finished.finish_reason == "repetition"
        assert len(ids(allowed)) == 600


def test_a_callback_that_raises_fails_its_own_request() -> None:
    def broken(done: int, total: int) -> None:
        raise ValueError("no")

    model = FakeModel()
    with engine_of(model) as engine:
        sick = engine.submit(ask([1, 2], 5, on_progress=broken))
        assert ids(engine.submit(ask([3], 5))) == model.alone([3], 5)
        finished = sick.wait(5)
        assert finished is not None
        assert finished.finish_reason == "error"


def test_closing_ends_everything_with_an_error() -> None:
    engine = Engine(lambda: FakeModel(context=1_000_000), EngineOptions(max_batch=1))
    running = engine.submit(ask([1], None, repetition_stop=False))
    queued = engine.submit(ask([2], 5))
    next(iter(running))
    engine.close()
    for generation in (running, queued):
        finished = generation.wait(5)
        assert finished is not None
        assert finished.finish_reason == "error"
        assert isinstance(finished.error, EngineClosedError)
    with pytest.raises(EngineClosedError):
        engine.submit(ask([1], 1))
    engine.close()


def test_a_load_error_reaches_the_caller() -> None:
    def load() -> FakeModel:
        raise InvalidRequestError("no such weights")

    with pytest.raises(InvalidRequestError, match="no such weights"):
        Engine(load)


@pytest.mark.parametrize(
    ("request_", "error"),
    [
        (ask([], 1), InvalidRequestError),
        (ask([1] * 64, 1), ContextOverflowError),
        (ask([1] * 65, 1), ContextOverflowError),
        (ask([1], 0), InvalidRequestError),
        (ask([-1], 1), InvalidRequestError),
        (ask([320], 1), InvalidRequestError),
        (ask([1], 1, timeout_s=0.0), InvalidRequestError),
        (ask([1], 1, timeout_s=float("nan")), InvalidRequestError),
        (ask([1], 1, sampling=SamplingParams(logit_bias={320: 1.0})), InvalidRequestError),
        (ask([1], 1, sampling=SamplingParams(logit_bias={1: float("inf")})), InvalidRequestError),
    ],
)
def test_impossible_requests_are_refused_at_the_door(request_: GenerationRequest, error: type[Exception]) -> None:
    with engine_of(FakeModel(context=64)) as engine, pytest.raises(error):
        engine.submit(request_)


def test_the_longest_prompt_leaves_room_for_one_token() -> None:
    with engine_of(FakeModel(context=64)) as engine:
        assert len(ids(engine.submit(ask([1] * 63, 5)))) == 1


def test_closing_does_not_wait_for_a_thread_that_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    """MLX's CUDA build cannot stand the end of a thread that used the GPU; the model goes all the same."""
    monkeypatch.setattr(mx.cuda, "is_available", lambda: True)
    made = [FakeModel()]
    gone = weakref.ref(made[0])
    others = set(threading.enumerate())  # those of engines closed before may linger still
    with Engine(made.pop, EngineOptions()) as engine:
        assert len(ids(engine.submit(ask([1, 2, 3], 2)))) == 2
        (thread,) = (each for each in threading.enumerate() if each.name == "mlx-gptoss-engine" and each not in others)
    gc.collect()
    assert thread.is_alive()
    assert gone() is None


@pytest.mark.parametrize(
    ("said", "kind", "words"),
    [
        ("[malloc] Unable to allocate 1 bytes.", InsufficientMemoryError, "no room for the model"),
        ("There is no Stream(gpu, 0) in current thread.", InternalError, "could not be loaded.*no Stream"),
    ],
)
def test_what_mlx_says_when_a_model_does_not_load_is_passed_on(said: str, kind: type[Exception], words: str) -> None:
    def load() -> FakeModel:
        raise RuntimeError(said)

    with pytest.raises(kind, match=words):
        Engine(load, EngineOptions())


_INTERRUPTED_LOAD = """
import signal, sys, threading, time
import mlx.core as mx
from mlx_gptoss.engine import Engine
from mlx_gptoss.errors import GptOssError

def load():
    signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
    until = time.monotonic() + 0.3
    while time.monotonic() < until:
        x = mx.random.normal((400, 400))
        mx.eval(x @ x)
    raise GptOssError("loaded too late")

try:
    Engine(load)
except KeyboardInterrupt:
    sys.exit(130)
"""


def test_interrupting_a_load_ends_the_program_without_a_crash() -> None:
    command = [sys.executable, "-c", _INTERRUPTED_LOAD]
    for _ in range(3):
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        assert (done.returncode, done.stderr) == (130, "")
