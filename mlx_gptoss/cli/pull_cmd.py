"""`mlx-gptoss pull`: bring a model to this machine."""

from __future__ import annotations

import sys
from typing import Any

import click

from mlx_gptoss.cli.loading import byte_progress
from mlx_gptoss.hub import PullProgress, RemoteModel
from mlx_gptoss.hub import pull as pull_model
from mlx_gptoss.names import DEMO, resolve_model
from mlx_gptoss.registry import Registry, canonical_name


@click.command()
@click.argument("name")
@click.option("--revision", default=None, help="Branch, tag or commit on the hub.")
@click.option("--keep-download", is_flag=True, help="Keep the hub's files beside the model folder.")
def pull(name: str, revision: str | None, keep_download: bool) -> None:
    """Download NAME (20b, 120b or a hub id), convert it, and make it the default. Resumes when interrupted."""
    registry = Registry()
    if canonical_name(name) == DEMO:
        click.echo(str(resolve_model(DEMO, registry=registry)))
        registry.set_default(DEMO)
        return

    def accept(model: RemoteModel) -> None:
        click.echo(f"{model.name}: {model.size_bytes / 1e9:.1f} GB in {len(model.files)} files", err=True)

    with byte_progress() as bar:
        tasks: dict[str, Any] = {}

        def show(progress: PullProgress) -> None:
            if progress.phase not in tasks:
                tasks[progress.phase] = bar.add_task(progress.phase, total=progress.total)
            bar.update(tasks[progress.phase], completed=progress.completed, total=progress.total)

        folder = pull_model(
            name, registry=registry, revision=revision, keep_download=keep_download, progress=show, accept=accept
        )
    click.echo(str(folder))
    if sys.stdout.isatty():
        click.echo(f"Ready: mlx-gptoss generate --model {name} 'Hello'", err=True)
