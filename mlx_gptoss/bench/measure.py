"""Measures a subject: decode with one token in flight, as the engine runs it, and whole prompts."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import mlx.core as mx

from mlx_gptoss.bench.cost import prompt_bytes, prompt_flops, step_bytes
from mlx_gptoss.bench.launches import count_launches
from mlx_gptoss.bench.spec import BenchSpec, Measurement
from mlx_gptoss.bench.subject import Subject, random_ids
from mlx_gptoss.errors import InvalidRequestError

WARM_STEPS = 3


def measure(subject: Subject, spec: BenchSpec) -> Iterator[Measurement]:
    """Everything the spec asks for, one measurement at a time as it is finished. Raises as `check_lengths` does."""
    limit = subject.config.max_position_embeddings
    check_lengths(spec, limit)
    for length in spec.prefill:
        yield measure_prefill(subject, length, spec)
    for context in spec.decode:
        for batch in spec.batch:
            yield measure_decode(subject, min(context, limit - _room(spec)), batch, spec)


def check_lengths(spec: BenchSpec, limit: int) -> None:
    """Raises InvalidRequestError for lengths beyond the `limit` of a model's context.

    A decode context near the limit is none: it begins as far before it as the steps need, and its line says where.
    """
    for name, lengths in (("prefill", spec.prefill), ("decode", spec.decode)):
        if max(lengths, default=0) > limit:
            raise InvalidRequestError(
                f"--{name} is longer than the model's context",
                param=name,
                expected=f"at most {limit} tokens",
                got=str(max(lengths)),
                hint="Give shorter lengths.",
            )
    if spec.decode and _room(spec) >= limit:
        raise InvalidRequestError(
            "the decode steps do not fit into the model's context",
            param="steps",
            expected=f"--steps times --repeats below {limit - _room(spec) + spec.steps * spec.repeats}",
            got=str(spec.steps * spec.repeats),
        )


def _room(spec: BenchSpec) -> int:
    """Positions that a decode measurement goes on for."""
    return WARM_STEPS + spec.steps * spec.repeats + 2


def measure_prefill(subject: Subject, length: int, spec: BenchSpec) -> Measurement:
    """Median seconds of prompts of `length` random tokens, each into a fresh cache; one more is run first."""
    prompts = [random_ids(subject.config, (1, length), spec.seed + number) for number in range(spec.repeats + 1)]
    mx.reset_peak_memory()
    times = []
    for number, prompt in enumerate(prompts):
        began = time.perf_counter()
        subject.prefill(prompt)
        if number:
            times.append(time.perf_counter() - began)
    peak = mx.get_peak_memory()
    mx.clear_cache()
    return Measurement(
        engine=subject.engine,
        backend=subject.backend,
        phase="prefill",
        length=length,
        batch=1,
        seconds=statistics.median(times),
        fastest=min(times),
        slowest=max(times),
        bytes=prompt_bytes(subject.config, subject.stored, length),
        flops=prompt_flops(subject.config, length),
        peak_bytes=peak,
    )


def measure_decode(subject: Subject, context: int, batch: int, spec: BenchSpec) -> Measurement:
    """Median seconds of a step at `context`, each step given out before the token before it is read."""
    step = subject.decoder(context, batch, _room(spec))
    tokens = random_ids(subject.config, (batch,), spec.seed)
    mx.reset_peak_memory()
    tokens = _run(step, tokens, WARM_STEPS)[0]
    runs = []
    for _ in range(spec.repeats):
        tokens, timed = _run(step, tokens, spec.steps)
        runs.append(timed)
    peak = mx.get_peak_memory()
    launches = _launches(step, tokens)
    mx.clear_cache()
    middle = sorted(runs)[len(runs) // 2]
    return Measurement(
        engine=subject.engine,
        backend=subject.backend,
        phase="decode",
        length=context,
        batch=batch,
        seconds=statistics.median(run.seconds for run in runs),
        fastest=min(run.seconds for run in runs),
        slowest=max(run.seconds for run in runs),
        bytes=step_bytes(subject.config, subject.stored, context + WARM_STEPS + spec.steps * spec.repeats // 2, batch),
        flops=0.0,
        peak_bytes=peak,
        host_seconds=middle.host,
        wait_seconds=middle.wait,
        launches=launches,
    )


def _launches(step: Callable[[mx.array], mx.array], tokens: mx.array) -> int:
    """Of one step, 0 where MLX cannot trace one of its operations."""
    try:
        return count_launches(step, tokens).total()
    except (RuntimeError, ValueError):
        return 0


@dataclass(frozen=True, slots=True, order=True)
class _Timed:
    """Seconds a step: in all, spent by the host on building and giving out the work, and waiting for tokens."""

    seconds: float
    host: float
    wait: float


def _run(step: Callable[[mx.array], mx.array], tokens: mx.array, steps: int) -> tuple[mx.array, _Timed]:
    """`steps` steps from `tokens` on; the last tokens, evaluated."""
    host = wait = 0.0
    mx.eval(tokens)
    began = time.perf_counter()
    flying = step(tokens)
    mx.async_eval(flying)  # type: ignore[no-untyped-call]  # mlx's stub leaves *args bare
    host += time.perf_counter() - began
    for _ in range(steps - 1):
        started = time.perf_counter()
        following = step(flying)
        mx.async_eval(following)  # type: ignore[no-untyped-call]  # as above
        given = time.perf_counter()
        flying.tolist()
        wait += time.perf_counter() - given
        host += given - started
        flying = following
    waiting = time.perf_counter()
    flying.tolist()
    ended = time.perf_counter()
    wait += ended - waiting
    return flying, _Timed((ended - began) / steps, host / steps, wait / steps)


def time_steps(step: Callable[[mx.array], mx.array], tokens: mx.array, runs: tuple[int, ...]) -> float:
    """Runs of so many steps each, one after the other; seconds a step of the last."""
    seconds = 0.0
    for steps in runs:
        tokens, timed = _run(step, tokens, steps)
        seconds = timed.seconds
    return seconds
