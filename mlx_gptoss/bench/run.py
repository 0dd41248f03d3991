"""A whole benchmark: the ceiling, then each engine, reported as it goes."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from mlx_gptoss.bench.ceiling import measure_ceiling
from mlx_gptoss.bench.report import HEADER, Report, ceiling_line, line, machine_record, model_label, ratios
from mlx_gptoss.bench.spec import BenchSpec, Ceiling, EngineName, Measurement
from mlx_gptoss.bench.worker import run_apart, run_here
from mlx_gptoss.errors import GptOssError


def run(
    spec: BenchSpec,
    *,
    against: Sequence[EngineName] = (),
    say: Callable[[str], None],
    ceiling: Ceiling | None = None,
) -> Report:
    """Measures our model, and those it is set `against`, each then in a process of its own. `say` gets the lines.

    Raises what loading our model raises. What breaks another engine is in the report, with all that was measured
    before. Whether a model fits is for the caller to check before (plan.guard).
    """
    machine = machine_record()
    say(f"{machine['device']}, mlx {machine['mlx']}, mlx-gptoss {machine['mlx_gptoss']}: {model_label(spec)}")
    ceiling = measure_ceiling() if ceiling is None else ceiling
    say(ceiling_line(ceiling))
    say(HEADER)
    measurements: list[Measurement] = []
    engines: list[EngineName] = ["mlx-gptoss", *against]
    failures: dict[str, str] = {}
    for engine in engines:
        try:
            for measurement in run_apart(engine, spec) if against else run_here(engine, spec):
                measurements.append(measurement)
                say(line(measurement, ceiling))
        except GptOssError as error:
            if engine == "mlx-gptoss":
                raise
            failures[engine] = str(error)
    for ratio in ratios(measurements):
        say(ratio)
    return Report(spec, ceiling, tuple(measurements), failures)
