"""`mlx-gptoss doctor`: is this machine, are its kernels, is a model in order?"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import click
from rich.console import Console
from rich.table import Table

from mlx_gptoss.cli.tables import wide_console

if TYPE_CHECKING:
    from mlx_gptoss.doctor import Diagnosis

EXIT_UNHEALTHY = 1


@click.command()
@click.argument("model", required=False)
@click.option("-m", "--model", "named", default=None, help="MODEL, as other commands name theirs.")
@click.option("--backend", type=click.Choice(["auto", "stock", "metal", "cuda"]), default="auto", show_default=True)
@click.option("--kernel", "kernels", multiple=True, metavar="NAME", help="Check only this kernel; may be repeated.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object, to paste into a report.")
def doctor(model: str | None, named: str | None, backend: str, kernels: tuple[str, ...], as_json: bool) -> None:
    """Check this machine, every kernel on it, and MODEL's folder when one is named.

    Each kernel is compiled, compared with plain MLX and timed, in a process of its own. Exits with 1 when a kernel is
    off or the folder is not sound; generation works without kernels all the same.
    """
    from mlx_gptoss.doctor import diagnose
    from mlx_gptoss.names import as_folder, looks_like_path, resolve_model

    if model is not None and named is not None:
        raise click.UsageError(f"name one model, not both {model!r} and {named!r}")
    model = model or named
    folder = None
    if model is not None:  # a folder is taken as it is, so that a damaged one can be looked at too
        folder = as_folder(model) if looks_like_path(model) else resolve_model(model)
    diagnosis = diagnose(folder, backend=backend, kernels=kernels)
    if as_json:
        click.echo(json.dumps(diagnosis.to_dict()))
    else:
        show(diagnosis, wide_console())
    if not diagnosis.healthy:
        raise SystemExit(EXIT_UNHEALTHY)


def show(diagnosis: Diagnosis, console: Console) -> None:
    """Prints a diagnosis for people."""
    memory = diagnosis.memory
    facts = Table(box=None, show_header=False, pad_edge=False)
    facts.add_row("device", f"{diagnosis.device} ({diagnosis.architecture})")
    facts.add_row(
        "memory",
        ", ".join(
            f"{amount / 2**30:.1f} GiB {name}"
            for name, amount in (
                ("in all", memory.total),
                ("free", memory.free),
                ("for the GPU", memory.recommended),
                ("wired limit set by its owner", memory.wired_limit),
            )
            if amount
        )
        or "unknown",
    )
    facts.add_row("system", diagnosis.system)
    facts.add_row("versions", ", ".join(f"{name} {version}" for name, version in diagnosis.versions.items()))
    facts.add_row("kernels", _summary(diagnosis))
    if diagnosis.model is not None:
        health = diagnosis.model
        good = f"sound, {health.size_bytes / 1e9:.2f} GB, {health.layers} layers, {health.experts} experts"
        good += (
            "; weights are mapped where they lie" if health.loading == "wrapped" else "; weights are read into memory"
        )
        facts.add_row("model", f"{health.path}: {health.problem or good}")
    console.print(facts, soft_wrap=True)
    if diagnosis.kernels:
        console.print()
        console.print(_table(diagnosis))
        if diagnosis.backend == "cuda" and any(report.microseconds for report in diagnosis.kernels):
            console.print("\nThe host takes longer to launch most of these than the GPU to run them.", soft_wrap=True)
    for report in diagnosis.kernels:
        if report.status == "off":
            console.print(f"{report.kernel} is off: {report.reason}", soft_wrap=True, markup=False)


def _summary(diagnosis: Diagnosis) -> str:
    if diagnosis.backend == "stock":
        return "none here: MLX has no GPU on this machine, or stock was asked for; models run on MLX's own operations"
    on = sum(report.status == "ok" for report in diagnosis.kernels)
    return f"{on} of {len(diagnosis.kernels)} on ({diagnosis.backend}, tuned for {diagnosis.family})"


def _table(diagnosis: Diagnosis) -> Table:
    table = Table("kernel", "status", box=None, header_style="bold", pad_edge=False)
    for heading in ("max error", "us", "GB/s", "x stock"):
        table.add_column(heading, justify="right")
    for report in diagnosis.kernels:
        values = (report.max_error, report.microseconds, report.gigabytes_per_second, report.speedup)
        cells = (
            "" if value is None else text.format(value)
            for value, text in zip(values, ("{:.1e}", "{:.1f}", "{:.0f}", "{:.1f}"), strict=True)
        )
        table.add_row(report.kernel, report.status, *cells)
    return table
