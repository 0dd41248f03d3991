"""`mlx-gptoss pull`: bring a model to this machine."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from mlx_gptoss.cli.progress import byte_progress
from mlx_gptoss.convert.ollama import find_ollama_model
from mlx_gptoss.folder import read_manifest
from mlx_gptoss.hub import PullProgress, RemoteModel
from mlx_gptoss.hub import pull as pull_model
from mlx_gptoss.names import DEMO, convert_source, resolve_model
from mlx_gptoss.plan.guard import check_download
from mlx_gptoss.plan.machine import this_machine
from mlx_gptoss.plan.planner import CHOICES
from mlx_gptoss.registry import Registry, canonical_name


@click.command()
@click.argument("name")
@click.option("--revision", default=None, help="Branch, tag or commit on the hub.")
@click.option("--keep-download", is_flag=True, help="Keep the hub's files beside the model folder.")
@click.option("--from-ollama", is_flag=True, help="Take NAME (for example gpt-oss:20b) from Ollama's own store.")
@click.option(
    "--for",
    "choice",
    type=click.Choice(list(CHOICES)),
    default=None,
    help="Precision of all but the experts, by machine; another one than is here is downloaded again. Default: what is "
    "here, else as released.",
)
@click.option("--force", is_flag=True, help="Download even what will not fit in this machine's memory.")
def pull(
    name: str, revision: str | None, keep_download: bool, from_ollama: bool, choice: str | None, force: bool
) -> None:  # fmt: skip
    """Download NAME (20b, 120b or a hub id), convert it, and make it the default. Resumes when interrupted."""
    registry = Registry()
    of_the_hub = revision is not None or keep_download
    if from_ollama:
        if of_the_hub:
            raise click.UsageError("--from-ollama downloads nothing: it has no --revision and no --keep-download")
        click.echo(str(take_from_ollama(name, registry, precision_of(choice))))
        return
    if canonical_name(name) == DEMO:
        if of_the_hub or choice is not None:
            raise click.UsageError("the demo comes with the package as it is: no --revision, --keep-download or --for")
        click.echo(str(resolve_model(DEMO, registry=registry)))
        registry.set_default(DEMO)
        return

    def accept(model: RemoteModel) -> None:
        if not force:
            check_download(this_machine(), model.name, model.size_bytes, choice)
        click.echo(f"{model.name}: {model.size_bytes / 1e9:.1f} GB in {len(model.files)} files", err=True)

    with byte_progress() as bar:
        tasks: dict[str, Any] = {}

        def show(progress: PullProgress) -> None:
            if progress.phase not in tasks:
                tasks[progress.phase] = bar.add_task(progress.phase, total=progress.total)
            bar.update(tasks[progress.phase], completed=progress.completed, total=progress.total)

        folder = pull_model(
            name,
            registry=registry,
            revision=revision,
            keep_download=keep_download,
            progress=show,
            accept=accept,
            precision=precision_of(choice),
        )
    click.echo(str(folder))
    if choice is None:
        say_precision(name, folder)
    if sys.stdout.isatty():
        click.echo(f"Ready: mlx-gptoss generate --model {name} 'Hello'", err=True)


def say_precision(name: str, folder: Path) -> None:
    """Says so on stderr when a model that was asked for as released is here as an earlier pull stored it instead."""
    chosen = read_manifest(folder).precision
    stored = {part: chosen.get(part, "source") for part in ("attention", "embedding", "head")}
    if all(precision in ("source", "bf16") for precision in stored.values()):
        return
    parts = ", ".join(f"{part} {precision}" for part, precision in stored.items())
    click.echo(
        f"It was here already, with {parts}, as it was asked for before. "
        f"`mlx-gptoss pull {name} --for max-quality` downloads it again and stores them in bf16.",
        err=True,
    )


def take_from_ollama(name: str, registry: Registry, precision: dict[str, str] | None = None) -> Path:
    """Convert the weights that Ollama has on this disk; nothing is downloaded."""
    blob = find_ollama_model(name)
    target = registry.model_folder(name)
    with byte_progress() as bar:
        task = bar.add_task("convert", total=blob.stat().st_size)

        def converting(done: int, total: int) -> None:
            bar.update(task, completed=done, total=total)

        convert_source(blob, target, progress=converting, precision=precision)
    registry.set_default(name)
    return target


def precision_of(choice: str | None) -> dict[str, str] | None:
    """The converter's options for one of the planner's choices; None leaves everything as released."""
    if choice is None:
        return None
    precisions = CHOICES[choice]
    return {"attention": precisions.attention, "embedding": precisions.embedding, "head": precisions.head}
