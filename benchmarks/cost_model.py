"""Holds the planner's cost model against measurements: other engines on Macs, kernels and whole steps on an H100.

    python -m benchmarks.cost_model                        # print the page
    python -m benchmarks.cost_model --output benchmarks/results/cost-model.md

The model says a decode step takes bytes / (bandwidth x efficiency) + launches x gap. Nothing can be fitted for our
kernels on a Mac before somebody measures them there, so what is checked is its form: one gap, fitted to one published
figure of an engine, has to foretell the engine's others.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mlx_gptoss.plan.chips import GB, find_chip
from mlx_gptoss.plan.costs import (
    APPLE,
    H100,
    H100_COPY,
    CostModel,
    launches,
    prefill_tokens_per_second,
    step_seconds,
)
from mlx_gptoss.plan.footprint import Precisions, released_config, token_bytes

RESULTS = Path(__file__).parent / "results"
BF16, EIGHT = Precisions(), Precisions("q8", "q8", "q8")
CONTEXT = 1024
"""Tokens of context assumed where a publisher names none."""


@dataclass(frozen=True, slots=True)
class Published:
    """A decode speed somebody published. `launched` operations a token as traced from mlx-lm's model."""

    engine: str
    chip: str
    model: str
    precisions: Precisions
    launched: int
    tps: float


# mlx-lm 0.32: 39 launches a layer with 8-bit attention, router, embedding and head. Rapid-MLX runs mlx-lm's models.
PUBLISHED = (
    Published("mlx-lm", "m3-ultra", "20b", EIGHT, 945, 80.5),
    Published("mlx-lm", "m3-ultra", "120b", EIGHT, 1413, 55),
    Published("Rapid-MLX", "m3-ultra", "20b", EIGHT, 945, 125),
    Published("Rapid-MLX", "m2-max", "20b", EIGHT, 945, 86),
)


@dataclass(frozen=True, slots=True)
class Kernel:
    """A read-only kernel in a dependent chain on one H100: megabytes and microseconds a launch."""

    megabytes: float
    us: float


H100_READS = (Kernel(17.6, 7.1), Kernel(23.6, 9.4), Kernel(29.5, 11.1), Kernel(35.3, 12.8), Kernel(1158, 367))


@dataclass(frozen=True, slots=True)
class Step:
    """A whole decode step on one H100, the GPU's own time in milliseconds."""

    name: str
    model: str
    launched: int
    ms: float


H100_STEPS = (
    Step("mlx-lm, GPU time", "20b", 822, 4.03),
    Step("7-launch prototype, GPU time", "20b", 7 * 24 + 4, 2.03),
    Step("7-launch prototype, GPU time", "120b", 7 * 36 + 4, 2.87),
)


@dataclass(frozen=True, slots=True)
class Prefill:
    """A published prefill speed: GPU work, compute-bound."""

    engine: str
    chip: str
    tokens: int
    tps: float


PREFILLS = (Prefill("llama.cpp", "m1-pro", 14_700, 405), Prefill("Rapid-MLX", "m2-max", 2048, 628))


def fit_gap(rows: Sequence[Published], efficiency: float) -> float:
    """Seconds a launch that fit an engine's figures best (least squares of the relative error of time)."""
    spare = [1 / row.tps - _moved(row) / (_bandwidth(row) * efficiency) for row in rows]
    weights = [row.launched * row.tps for row in rows]
    targets = [seconds * row.tps for seconds, row in zip(spare, rows, strict=True)]
    return float(np.dot(weights, targets) / np.dot(weights, weights))


def fit_reads(kernels: Sequence[Kernel]) -> tuple[float, float]:
    """Bytes/s and seconds a launch of the straight line through kernel times, in relative least squares."""
    matrix = np.array([[kernel.megabytes * 1e6, 1.0] for kernel in kernels])
    times = np.array([kernel.us * 1e-6 for kernel in kernels])
    slope, gap = np.linalg.lstsq(matrix / times[:, None], np.ones(len(kernels)), rcond=None)[0]
    return 1 / float(slope), float(gap)


def _moved(row: Published) -> int:
    return token_bytes(released_config(row.model), row.precisions, CONTEXT)


def _bandwidth(row: Published) -> float:
    return find_chip(row.chip).bandwidth


def page() -> Iterator[str]:
    """The results page, line by line."""
    yield from (
        "# The cost model against what has been measured", "",
        "    python -m benchmarks.cost_model --output benchmarks/results/cost-model.md", "",
        "`mlx-gptoss plan` estimates a decode step as `bytes / (bandwidth x efficiency) + launches x gap`. The",
        "tables hold that form against measurements. Errors are of the time a token or launch takes: predicted over",
        "measured, less 1.", "",
    )  # fmt: skip
    yield from _macs()
    yield from _reads()
    yield from _steps()
    yield from _results()
    yield from _prefills()


def _macs() -> Iterator[str]:
    yield from (
        "## Other engines on Macs", "",
        f"Published speeds; efficiency {APPLE.efficiency} assumed, {CONTEXT} tokens of context, one gap an engine. The",
        "last column leaves the row itself out of the fit: a forecast.", "",
        "| engine | chip | model | tok/s | gap of the engine | fitted | forecast from its other figures |",
        "|---|---|---|---|---|---|---|",
    )  # fmt: skip
    for row in PUBLISHED:
        rows = [other for other in PUBLISHED if other.engine == row.engine]
        others = [other for other in rows if other is not row]
        gap = fit_gap(rows, APPLE.efficiency)
        fitted = _error(row, gap)
        forecast = f"{_error(row, fit_gap(others, APPLE.efficiency)):+.1%}" if others else ""
        yield _cells(row.engine, row.chip, row.model, f"{row.tps:g}", _us(gap), f"{fitted:+.1%}", forecast)
    yield from (
        "", "An engine's gap is one number across models and chips, as the form says. It holds the engine's host time",
        "too: these engines launch 945 to 1413 kernels a token where ours launch "
        f"{launches(released_config('20b'))} to {launches(released_config('120b'))}.", "",
    )  # fmt: skip


def _cells(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def _us(seconds: float) -> str:
    return f"{seconds * 1e6:.1f} us"


def _error(row: Published, gap: float) -> float:
    model = CostModel(APPLE.efficiency, gap, 1.0)
    return step_seconds(_bandwidth(row), model, _moved(row), row.launched) * row.tps - 1


def _reads() -> Iterator[str]:
    rate, gap = fit_reads(H100_READS)
    yield from (
        "## Kernels on one H100", "",
        f"Read-only kernels in a dependent chain: {rate / GB:.0f} GB/s ({rate / H100_COPY:.3f} of a copy's",
        f"{H100_COPY / GB:.0f}) and {gap * 1e6:.2f} us a launch fit all sizes from a projection to the head.", "",
        "| MB | us | predicted | error |", "|---|---|---|---|",
    )  # fmt: skip
    for kernel in H100_READS:
        predicted = kernel.megabytes * 1e6 / rate + gap
        error = predicted / (kernel.us * 1e-6) - 1
        yield _cells(f"{kernel.megabytes:g}", f"{kernel.us:g}", f"{predicted * 1e6:.1f}", f"{error:+.1%}")
    yield ""


def _steps() -> Iterator[str]:
    rate = fit_reads(H100_READS)[0]
    yield from (
        "## Whole steps on one H100", "",
        "The GPU's own time, at the rate of the reads above, one gap an engine. What a gap holds beyond that of a mere",
        "read is work between the reads: dequantisation, sums over a threadgroup, kernels too small to fill the GPU.",
        "",
        "| step | model | launches | GPU ms | gap | fitted | forecast from its other figure |",
        "|---|---|---|---|---|---|---|",
    )  # fmt: skip
    for step in H100_STEPS:
        rows = [other for other in H100_STEPS if other.name == step.name]
        others = [other for other in rows if other is not step]
        gap = _step_gap(rows, rate)
        forecast = f"{_step_error(step, _step_gap(others, rate), rate):+.1%}" if others else ""
        fitted = f"{_step_error(step, gap, rate):+.1%}"
        yield _cells(step.name, step.model, str(step.launched), str(step.ms), _us(gap), fitted, forecast)
    yield ""


def _step_read(step: Step, rate: float) -> float:
    """Seconds that reading its bytes alone would take."""
    return token_bytes(released_config(step.model), BF16, CONTEXT) / rate


def _step_gap(steps: Sequence[Step], rate: float) -> float:
    return float(np.mean([(step.ms * 1e-3 - _step_read(step, rate)) / step.launched for step in steps]))


def _step_error(step: Step, gap: float, rate: float) -> float:
    return (_step_read(step, rate) + step.launched * gap) / (step.ms * 1e-3) - 1


def _results() -> Iterator[str]:
    """Our own measurements: every decode line at batch 1 in the JSON files beside the page."""
    rows = [row for path in sorted(RESULTS.glob("**/*.json")) for row in _rows_of(path)]
    if not rows:
        return
    yield from (
        "## Our own results", "",
        "Every decode measurement of one sequence in `benchmarks/results/`, on the copy rate measured in its own run,",
        "with the planner's constants for Macs or the H100.", "",
        "| file | context | launches | ms | predicted | error |", "|---|---|---|---|---|---|",
    )  # fmt: skip
    yield from rows
    yield ""


def _rows_of(path: Path) -> Iterator[str]:
    try:
        data: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        device = str(data["machine"]["device"])
        found = data["measurements"]
    except (ValueError, KeyError, TypeError):
        return
    if "Apple" not in device and "NVIDIA" not in device:
        return
    model = APPLE if "Apple" in device else H100
    for m in found:
        if m["engine"] == "mlx-gptoss" and m["phase"] == "decode" and m["batch"] == 1 and m["backend"] != "stock":
            # MLX cannot trace the kernels of its CUDA build: the planner's own count stands in.
            shape = data["spec"]["random"]
            launched = m["launches"] or (launches(released_config(shape)) if shape in ("20b", "120b") else 0)
            predicted = step_seconds(data["ceiling"]["copy_bytes_s"], model, m["bytes"], launched)
            yield (
                f"| {path.relative_to(RESULTS)} | {m['length']} | {launched} | {m['seconds'] * 1e3:.3f} "
                f"| {predicted * 1e3:.3f} | {predicted / m['seconds'] - 1:+.1%} |"
            )


def _prefills() -> Iterator[str]:
    yield from (
        "## Prefill", "",
        f"Operations over the ALUs' peak times a utilisation of {APPLE.prefill_utilisation}; 20b.", "",
        "| engine | chip | prompt | tok/s | predicted | error of time |", "|---|---|---|---|---|---|",
    )  # fmt: skip
    for row in PREFILLS:
        predicted = prefill_tokens_per_second(find_chip(row.chip), APPLE, released_config("20b"), EIGHT, row.tokens)
        error = row.tps / predicted - 1
        yield _cells(row.engine, row.chip, str(row.tokens), f"{row.tps:g}", f"{predicted:.0f}", f"{error:+.1%}")
    yield from (
        "", "Chips with matrix units (M5) are taken at four times that peak, which nothing here checks.", "",
        f"The planner's constants for Apple's chips: efficiency {APPLE.efficiency}, gap {APPLE.gap_s * 1e6:g} us,",
        f"utilisation {APPLE.prefill_utilisation} ({APPLE.source}).",
    )  # fmt: skip


def main(arguments: list[str]) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, help="write the page there instead of printing it")
    options = parser.parse_args(arguments)
    text = "\n".join(page()) + "\n"
    if options.output is None:
        sys.stdout.write(text)
    else:
        options.output.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
