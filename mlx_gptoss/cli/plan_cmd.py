"""`mlx-gptoss plan`: what fits on a machine, before anything is loaded."""

from __future__ import annotations

import json

import click
from rich.console import Console
from rich.table import Table

from mlx_gptoss.plan.machine import described_machine, this_machine
from mlx_gptoss.plan.planner import plan as make_plan
from mlx_gptoss.plan.planner import plan_json


@click.command()
@click.option("--chip", default=None, help="Plan for this chip instead, for example m4-max.")
@click.option("--memory", type=float, default=None, help="Its memory in GB. Default: the most it was sold with.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def plan(chip: str | None, memory: float | None, as_json: bool) -> None:
    """Show which models and precisions fit, at which context, and how fast they should be."""
    if chip is None and memory is not None:
        raise click.UsageError("--memory needs --chip")
    machine = described_machine(chip, memory) if chip is not None else this_machine()
    fits = make_plan(machine)
    if as_json:
        click.echo(json.dumps(plan_json(machine, fits)))
        return
    click.echo(f"{machine.name}: {machine.working_set / 1e9:.1f} GB usable by a model")
    table = Table("model", "attention/embed/head", "weights", "fits", "context", "8k chats", "decode", "prefill", "advice",
                  box=None, header_style="bold")  # fmt: skip
    for entry in fits:
        decode = "?" if entry.decode_tps is None else f"{entry.decode_tps:.0f} tok/s"
        prefill = "?" if entry.prefill_tps is None else f"{entry.prefill_tps:.0f} tok/s"
        table.add_row(
            entry.model.split("/")[-1],
            entry.precision,
            f"{entry.weight_bytes / 1e9:.1f} GB",
            "yes" if entry.fits else "no",
            f"{entry.context}" if entry.fits else "-",
            f"{entry.conversations}" if entry.fits else "-",
            decode if entry.fits else "-",
            prefill if entry.fits else "-",
            entry.advice,
        )
    Console().print(table)
    click.echo("Speeds are estimates of the cost model; `mlx-gptoss bench` measures.", err=True)
