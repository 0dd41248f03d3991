"""Speed against context as a picture."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable
from pathlib import Path

from mlx_gptoss.bench.report import Report, machine_record, model_label
from mlx_gptoss.bench.spec import Measurement, Phase
from mlx_gptoss.errors import InvalidRequestError

KINDS = (".png", ".svg", ".pdf")


def check_plot(target: Path) -> None:
    """Raises InvalidRequestError when a picture could not be drawn to `target` later: no matplotlib, another kind."""
    if importlib.util.find_spec("matplotlib") is None:
        raise InvalidRequestError(
            "the plot needs matplotlib", param="plot", hint="Install it with `pip install 'mlx-gptoss[bench]'`."
        )
    if target.suffix.lower() not in KINDS:
        raise InvalidRequestError("not a picture", param="plot", expected=", ".join(KINDS), got=target.name)


def plot(report: Report, target: Path) -> None:
    """Writes a picture: decode and prefill speed against length, a line for each engine and batch, the memory ceiling.

    Raises InvalidRequestError as `check_plot` does.
    """
    check_plot(target)
    from matplotlib.figure import Figure

    phases: list[Phase] = [phase for phase in ("decode", "prefill") if _of(report.measurements, phase)]
    figure = Figure(figsize=(5.5 * max(1, len(phases)), 4.2), layout="constrained")
    figure.suptitle(f"{model_label(report.spec)} on {machine_record()['device']}", fontsize=10)
    for number, phase in enumerate(phases, start=1):
        axes = figure.add_subplot(1, len(phases), number)
        for (engine, batch), points in _lines(_of(report.measurements, phase)).items():
            label = engine if batch == 1 else f"{engine}, {batch} at once"
            axes.plot(
                [p.length for p in points],
                [p.tokens_per_second for p in points],
                marker="o",
                linestyle="--" if engine == "mlx-lm" else "-",
                label=label,
            )
        ours = [m for m in _of(report.measurements, phase) if m.engine == "mlx-gptoss" and m.batch == 1]
        if phase == "decode" and ours:
            axes.plot(
                [m.length for m in ours],
                [report.ceiling.copy_bytes_s / m.bytes for m in ours],
                color="grey",
                linestyle=":",
                label="memory ceiling",
            )
        axes.set_xscale("log", base=2)
        axes.set_ylim(bottom=0)
        axes.set_xlabel("context (tokens)" if phase == "decode" else "prompt (tokens)")
        axes.set_ylabel(f"{phase} (tokens/s)")
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    figure.savefig(target, dpi=120, format="png")


def _of(measurements: Iterable[Measurement], phase: Phase) -> list[Measurement]:
    return [m for m in measurements if m.phase == phase]


def _lines(measurements: Iterable[Measurement]) -> dict[tuple[str, int], list[Measurement]]:
    lines: dict[tuple[str, int], list[Measurement]] = {}
    for m in sorted(measurements, key=lambda m: m.length):
        lines.setdefault((m.engine, m.batch), []).append(m)
    return lines
