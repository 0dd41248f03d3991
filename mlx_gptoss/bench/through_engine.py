"""What a caller of the engine gets: prompts in, tokens out, with scheduling, sampling and stop checks in between."""

from __future__ import annotations

import statistics
from collections.abc import Iterator

import numpy as np

from mlx_gptoss.bench.cost import prompt_bytes, prompt_flops, step_bytes
from mlx_gptoss.bench.spec import BenchSpec, Measurement, Phase
from mlx_gptoss.bench.subject import OurSubject, load_ours, random_ids
from mlx_gptoss.engine import Engine, EngineOptions, GenerationRequest, TokenModel
from mlx_gptoss.errors import InternalError
from mlx_gptoss.events import Timings
from mlx_gptoss.request import SamplingParams


def measure_engine(spec: BenchSpec) -> Iterator[Measurement]:
    """For every context of the spec: the prompt's prefill and `steps` greedy tokens after it, one request at a time.

    Nothing is reused between requests. The decode time includes reading each token and handing it out.
    """
    loaded: list[OurSubject] = []

    def load() -> TokenModel:
        loaded.append(load_ours(spec))
        return loaded[0].model

    with Engine(load, EngineOptions(max_batch=1, prefix_cache_bytes=0)) as engine:
        for context in spec.decode:
            length = min(context, engine.context - spec.steps - 1)
            runs = [_generate(engine, loaded[0], length, spec, number) for number in range(spec.repeats + 1)][1:]
            prefills = [run.prefill_s for run in runs]
            yield _measurement(
                loaded[0], "prefill", length, prefills, prompt_bytes(loaded[0].config, loaded[0].stored, length),
                prompt_flops(loaded[0].config, length), runs[-1].peak_memory_bytes,
            )  # fmt: skip
            steps = [1 / run.decode_tps for run in runs]
            read = step_bytes(loaded[0].config, loaded[0].stored, length + spec.steps // 2, 1)
            yield _measurement(loaded[0], "decode", length, steps, read, 0.0, runs[-1].peak_memory_bytes)


def _generate(engine: Engine, subject: OurSubject, length: int, spec: BenchSpec, number: int) -> Timings:
    ids = np.array(random_ids(subject.config, (length,), spec.seed + number))
    request = GenerationRequest(
        tuple(int(token) for token in ids),
        SamplingParams(temperature=0),
        max_tokens=spec.steps + 1,
        stop_ids=(),
        repetition_stop=False,
    )
    finished = engine.submit(request).wait()
    if finished is None or finished.error is not None:
        raise InternalError("the engine failed under measurement", got=str(finished and finished.error))
    return finished.timings


def _measurement(
    subject: OurSubject, phase: Phase, length: int, seconds: list[float], read: int, flops: float, peak: int
) -> Measurement:
    return Measurement(
        engine="engine",
        backend=subject.backend,
        phase=phase,
        length=length,
        batch=1,
        seconds=statistics.median(seconds),
        fastest=min(seconds),
        slowest=max(seconds),
        bytes=read,
        flops=flops,
        peak_bytes=peak,
    )
