"""`mlx-gptoss bench --tune`: the decode kernels' constants that are best on this GPU, found by timing whole steps.

A step of a random model with the released layers' shapes runs with each candidate in turn. Candidates that do not
compile or change the logits are out; the rest take turns, so that heat and other programs are no one's luck, and the
fastest wins if it beats what is there.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import mlx.core as mx

from mlx_gptoss.bench.measure import time_steps
from mlx_gptoss.bench.spec import BenchSpec
from mlx_gptoss.bench.subject import OurSubject, config_of, fill_cache, load_ours, random_ids
from mlx_gptoss.errors import GptOssError, KernelError
from mlx_gptoss.kernels.backends import default_backend
from mlx_gptoss.kernels.tuning import Attention, Rows, Tuning, tuning_for
from mlx_gptoss.kernels.user_tuning import on_trial, save
from mlx_gptoss.plan.footprint import footprint
from mlx_gptoss.plan.guard import check_fits
from mlx_gptoss.plan.machine import this_machine

LAYERS = 8
"""Few enough for a small Mac, enough that the head does not drown them."""
SHORT, LONG = 1024, 16_384
STEPS = 16
ROUNDS = 3
MARGIN = 0.01
"""A winner is at least this much faster than what is there."""
DOWN_BYTES = 4 * 4 * 2880
"""The activations of moe_down in the released shapes, as they would be staged."""
TOLERANCE = 2e-2
"""Of the largest logit: what another order of sums may change."""


@dataclass(frozen=True, slots=True)
class Question:
    """One field of Tuning, what it might be, and the context at which it matters. `without`: a field that would hide
    it, None while it is asked."""

    field: str
    candidates: tuple[Rows | Attention | int | None, ...]
    context: int = SHORT
    without: str | None = None


def questions(present: Tuning) -> Iterator[Question]:
    """All that is searched for a GPU with these constants, what weighs most first."""
    matrices = tuple(Rows(r, s, u) for r in (2, 4) for s in (4, 8, 16) for u in (1, 2, 4))
    work = ((1, 1), (3, 1), (3, 2), (3, 4))
    several = tuple(Rows(r, s, u, passes=p) for r in (2, 4) for s in (1, 2, 4) for u, p in work)
    yield Question("gate_up", several, without="gate_up_alone")
    alone = tuple(Rows(r, s, 3, passes=p) for s in (2, 4, 8, 11) for r, p in ((2, 1), (2, 2), (2, 4), (1, 6)))
    yield Question("gate_up_alone", (None, *alone))
    work = ((1, 4), (3, 4), (3, 2), (3, 1))
    several = tuple(Rows(r, 4, u, share=g) for r in (1, 2, 4) for u, g in work)
    yield Question("down", several, without="down_alone")
    if present.staged_bytes >= DOWN_BYTES:
        shapes = ((8, 1), (8, 4), (11, 1), (22, 1))
        yield Question("down_alone", (None, *(Rows(r, s, 3, share=g) for r in (1, 2) for s, g in shapes)))
    yield Question("qkv", matrices, without="qkv_alone")
    apart = ((2, 8, 4), (2, 16, 2), (2, 16, 4), (4, 8, 2), (4, 8, 4))
    yield Question("qkv_alone", (None, *(Rows(r, s, u, stagers=t) for r, s, u in apart for t in (2, 4, 8))))
    yield Question("out", matrices)
    yield Question(
        "head", tuple(Rows(r, s, u, passes=p) for r in (2, 4) for s in (4, 8) for u in (1, 2) for p in (1, 4))
    )
    yield Question("router", tuple(Rows(1, s, u) for s in (1, 4, 8) for u in (4, 6, 12)))
    parts = ((64, 32), (64, 64), (128, 32), (128, 64), (256, 64), (512, 16))
    full = tuple(Attention(s, u, split_keys=k, max_parts=p) for s, u in ((4, 2), (4, 4), (8, 2)) for k, p in parts)
    yield Question("full", full, LONG)
    yield Question("merge_in_out", (1, 2, 4, 8, 16))
    yield Question("sliding", tuple(Attention(s, u) for s, u in ((4, 2), (4, 4), (8, 2), (8, 4), (16, 2))))


def tune(seconds: float, *, say: Callable[[str], None]) -> Tuning:
    """Searches for about `seconds`, saves the winners for this GPU's family, and returns them.

    Raises KernelError where MLX has no GPU, InsufficientMemoryError where the model does not fit.
    """
    backend = default_backend()
    if backend.name == "stock":
        raise KernelError("there is nothing to tune: this machine has no GPU that MLX can use")
    spec = BenchSpec(random="20b", layers=LAYERS, backend=backend.name)
    config = config_of(spec)
    check_fits(this_machine(), config, footprint(config, spec.precisions).total, LONG)
    subject = load_ours(spec)
    family = backend.family
    say(f"tuning {family} with {LAYERS} layers of 20b, up to {seconds:.0f} s")
    best = search(
        questions(tuning_for(family)),
        tuning_for(family),
        check=lambda tuning, context: check(subject, family, tuning, context),
        timed=lambda tuning, context: step_seconds(subject, family, tuning, context),
        until=time.monotonic() + seconds,
        say=say,
    )
    say(f"kept in {save(family, best)}")
    return best


def search(
    asked: Iterator[Question],
    start: Tuning,
    *,
    check: Callable[[Tuning, int], bool],
    timed: Callable[[Tuning, int], float],
    until: float,
    say: Callable[[str], None],
) -> Tuning:
    """Answers the questions one after the other, each with the answers before it in place.

    `check(tuning, context)` says whether a tuning is right there, `timed` how many seconds a step takes. Nothing new is
    begun after `until` (time.monotonic).
    """
    best = start
    for question in asked:
        present = getattr(best, question.field)
        hidden = {question.without: None} if question.without else {}
        trials = {present: best.having(**hidden)}
        for candidate in question.candidates:
            if candidate == present or time.monotonic() > until:
                continue
            trial = best.having(**{question.field: candidate}, **hidden)
            if check(trial, question.context):
                trials[candidate] = trial
        times = _take_turns(trials, question.context, timed, until)
        if present not in times:
            break
        winner = min(times, key=lambda candidate: times[candidate])
        if times[winner] < times[present] * (1 - MARGIN):
            best = best.having(**{question.field: winner})
            gained = 1 - times[winner] / times[present]
            say(f"{question.field:8} {times[winner] * 1e6:8.1f} us a step, {gained:5.1%} less: {winner}")
        else:
            say(f"{question.field:8} {times[present] * 1e6:8.1f} us a step, unchanged")
    return best


def _take_turns(
    trials: dict[Any, Tuning], context: int, timed: Callable[[Tuning, int], float], until: float
) -> dict[Any, float]:
    """The least seconds of each trial over some rounds; those out of time are left out."""
    times: dict[Any, float] = {}
    for number in range(ROUNDS):
        for candidate, trial in trials.items():
            if time.monotonic() > until and (number or times):
                return times if number else {}
            times[candidate] = min(times.get(candidate, float("inf")), timed(trial, context))
    return times


def check(subject: OurSubject, family: str, tuning: Tuning, context: int) -> bool:
    """Whether a tuning compiles and leaves the logits as they are."""
    try:
        wanted = _logits(without_replays(subject), context)
        with on_trial(family, tuning):
            got = _logits(without_replays(subject), context)
    except (GptOssError, RuntimeError, ValueError):
        # MLX reports what a compiler or a driver refuses as RuntimeError, and threadgroups too large as ValueError.
        return False
    used = subject.config.used_vocab_size
    difference = mx.max(mx.abs(got[:, :used] - wanted[:, :used]))
    return bool((difference <= TOLERANCE * mx.max(mx.abs(wanted[:, :used]))).item())


def step_seconds(subject: OurSubject, family: str, tuning: Tuning, context: int) -> float:
    """Seconds of a decode step with a tuning."""
    with on_trial(family, tuning):
        step = without_replays(subject).decoder(context, 1, STEPS + 8)
        tokens = random_ids(subject.config, (1,), 0)
        return time_steps(step, tokens, (4, STEPS))


def without_replays(subject: OurSubject) -> OurSubject:
    """The same model over the same weights without the steps it keeps compiled: those hold their constants."""
    model: Any = copy.copy(subject.model)
    kept = getattr(model, "replays", None)
    if kept is not None:
        model.replays = type(kept)()
    fresh = copy.copy(subject)
    fresh.model = model
    return fresh


def _logits(subject: OurSubject, context: int) -> mx.array:
    cache = subject.model.make_cache()
    fill_cache(cache, context, 8, seed=0)
    logits = subject.model.decode(random_ids(subject.config, (1,), 0), [cache])
    mx.eval(logits)
    return logits
