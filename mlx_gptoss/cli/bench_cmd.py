"""`mlx-gptoss bench`: prefill and decode speed of a model on this machine, beside what the machine allows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mlx_gptoss.cli.options import check_writable
from mlx_gptoss.errors import GptOssError, InvalidRequestError

if TYPE_CHECKING:
    from mlx_gptoss.bench.spec import BenchSpec

_PRECISIONS = click.Choice(["bf16", "mxfp8", "q8", "q6", "q4"])
_FILE = click.Path(path_type=Path, dir_okay=False)


def lengths(context: click.Context, option: click.Parameter, text: str) -> tuple[int, ...]:
    """`128,2k,32k`: token counts, k meaning 1024; `0` or `none` for none. Raises click.BadParameter."""
    if text in ("0", "none", ""):
        return ()
    try:
        return tuple(int(part[:-1]) * 1024 if part[-1:] in ("k", "K") else int(part) for part in text.split(","))
    except ValueError:
        raise click.BadParameter(f"{text!r} is no list of lengths such as 128,2k,32k", context, option) from None


@click.command()
@click.option("-m", "--model", default=None, help="A folder, demo, 20b, 120b or a hub id. Default: the default model.")
@click.option(
    "--random",
    default=None,
    type=click.Choice(["20b", "120b", "tiny"]),
    help="Random weights of this released shape, made in memory; no checkpoint needed.",
)
@click.option("--layers", type=click.IntRange(min=1), default=None, help="With --random: that many layers.")
@click.option(
    "--precision",
    type=_PRECISIONS,
    default=None,
    help="With --random: of attention, embedding and head. Default: bf16.",
)
@click.option("--attention", type=_PRECISIONS, default=None, help="With --random: of the attention alone.")
@click.option("--embedding", type=_PRECISIONS, default=None, help="With --random: of the embedding alone.")
@click.option("--head", type=_PRECISIONS, default=None, help="With --random: of the head alone.")
@click.option("--backend", type=click.Choice(["auto", "stock", "metal", "cuda"]), default="auto", show_default=True)
@click.option("--prefill", callback=lengths, default="512,2k", show_default=True, help="Prompt lengths; 0 for none.")
@click.option("--decode", callback=lengths, default="128,2k,8k", show_default=True, help="Contexts; 0 for none.")
@click.option("--batch", callback=lengths, default="1", show_default=True, help="Sequences decoded at once.")
@click.option("--steps", type=click.IntRange(min=2), default=64, show_default=True, help="Decode steps a run.")
@click.option("--repeats", type=click.IntRange(min=1), default=3, show_default=True, help="Runs; the median counts.")
@click.option("--seed", type=int, default=0)
@click.option("--vs", "against", type=click.Choice(["mlx-lm"]), multiple=True, help="Measure it too, same weights.")
@click.option("--engine", is_flag=True, help="Measure the model behind our engine too: what a caller gets.")
@click.option("--plot", type=_FILE, default=None, metavar="PNG", help="Draw speed against length.")
@click.option("--output", type=_FILE, default=None, metavar="JSON", help="Write the results to a file.")
@click.option("--tune", is_flag=True, help="Find the kernels' best constants for this GPU and keep them.")
@click.option("--tune-seconds", type=float, default=300.0, show_default=True, help="Time --tune may take.")
def bench(
    model: str | None, random: str | None, layers: int | None, precision: str | None, attention: str | None,
    embedding: str | None, head: str | None, backend: str, prefill: tuple[int, ...], decode: tuple[int, ...],
    batch: tuple[int, ...], steps: int, repeats: int, seed: int, against: tuple[str, ...], engine: bool,
    plot: Path | None, output: Path | None, tune: bool, tune_seconds: float,
) -> None:  # fmt: skip
    """Measure prefill and decode. The machine's ceiling comes first, one JSON line last."""
    from mlx_gptoss.bench.run import run
    from mlx_gptoss.bench.spec import BenchSpec, EngineName
    from mlx_gptoss.plan.footprint import Precisions

    if tune:
        from mlx_gptoss.bench.tune import tune as find_constants

        find_constants(tune_seconds, say=click.echo)
        return
    if random is None and layers is not None:
        raise click.UsageError("--layers goes with --random")
    if random is None and any((precision, attention, embedding, head)):
        raise click.UsageError("precisions go with --random: a folder has its own")
    if random is not None and model is not None:
        raise click.UsageError("--random and --model exclude each other")
    if not prefill and not decode:
        raise InvalidRequestError("there is nothing to measure", hint="Give --prefill or --decode a length.")
    from mlx_gptoss.kernels.backends import backend_named

    backend_named(backend)  # refuses one that this machine does not have
    for path in (plot, output):
        if path is not None:
            check_writable(path)
    if against:
        from mlx_gptoss.bench.peer import check_peer

        check_peer()
    if plot is not None:
        from mlx_gptoss.bench.plot import check_plot

        check_plot(plot)
    spec = BenchSpec(
        folder=None if random is not None else _folder(model),
        random=random,
        layers=layers,
        precisions=Precisions(*(part or precision or "bf16" for part in (attention, embedding, head))),
        backend=backend,
        prefill=prefill,
        decode=decode,
        batch=batch,
        steps=steps,
        repeats=repeats,
        seed=seed,
    )
    _check_room(spec)
    others: list[EngineName] = ["engine"] if engine else []
    others += ["mlx-lm"] if against else []
    report = run(spec, against=others, say=click.echo)
    if plot is not None:
        from mlx_gptoss.bench.plot import plot as draw

        draw(report, plot)
    text = json.dumps(report.to_dict())
    if output is not None:
        output.write_text(text + "\n", encoding="utf-8")
    click.echo(text)
    if report.failures:
        # The results are out; the exit code still says that the comparison asked for is not in them.
        raise GptOssError("; ".join(report.failures.values()), hint="What was measured before is in the results above.")


def _folder(model: str | None) -> str:
    from mlx_gptoss.names import resolve_model

    return str(resolve_model(model))


def _check_room(spec: BenchSpec) -> None:
    """Refuses, before anything is made, what cannot fit into the model's context or into memory."""
    from mlx_gptoss.bench.measure import check_lengths
    from mlx_gptoss.bench.subject import config_of
    from mlx_gptoss.plan.footprint import footprint
    from mlx_gptoss.plan.guard import check_fits, folder_bytes
    from mlx_gptoss.plan.machine import this_machine

    config = config_of(spec)
    check_lengths(spec, config.max_position_embeddings)
    weights = folder_bytes(Path(spec.folder)) if spec.folder is not None else footprint(config, spec.precisions).total
    longest = max((*spec.decode, *spec.prefill))
    context = min(longest + spec.steps * spec.repeats, config.max_position_embeddings)
    check_fits(this_machine(), config, weights, context, conversations=max(spec.batch, default=1))
