"""`mlx-gptoss plan`: what fits on a machine, before anything is loaded."""

from __future__ import annotations

import json

import click

from mlx_gptoss.plan.machine import described_machine, this_machine
from mlx_gptoss.plan.planner import SPEED_CONTEXT, SPEED_PROMPT, Fit, advice, plan_json
from mlx_gptoss.plan.planner import plan as make_plan

_ROW = "{:6}{:13}{:12}{:>9}  {:5}{:>9}{:>8}{:>8}{:>8}"


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
    click.echo(f"{machine.name}: a model may take {machine.working_set / 1e9:.1f} GB")
    click.echo()
    click.echo(_ROW.format("model", "--for", "precision", "weights", "fits", "context", "chats", "decode", "prefill"))
    for entry in fits:
        click.echo(_row(entry))
    click.echo("Precision is that of attention/embedding/head; chats are of 8192 tokens each.\n")
    for line in advice(machine, fits):
        click.echo(line)
    click.echo()
    if machine.chip is not None:
        click.echo(
            f"Speeds are estimates in tokens/s, decode at {SPEED_CONTEXT} tokens and prefill of {SPEED_PROMPT};\n"
            "`mlx-gptoss bench` measures them."
        )


def _row(entry: Fit) -> str:
    return _ROW.format(
        entry.model.rsplit("-", 1)[-1],
        entry.choice,
        entry.precision,
        f"{entry.weight_bytes / 1e9:.1f} GB",
        "yes" if entry.fits else "no",
        entry.context if entry.fits else "-",
        entry.conversations if entry.fits else "-",
        "?" if entry.decode_tps is None else f"{entry.decode_tps:.0f}",
        "?" if entry.prefill_tps is None else f"{entry.prefill_tps:.0f}",
    ).rstrip()
