"""`mlx-gptoss list`, `show` and `rm`: the models on this machine."""

from __future__ import annotations

import json
from datetime import UTC, datetime

import click
from rich.table import Table

from mlx_gptoss.cli.tables import wide_console
from mlx_gptoss.errors import GptOssError, InvalidRequestError
from mlx_gptoss.names import resolve_model
from mlx_gptoss.registry import Registry


@click.command("list")
@click.option("--json", "as_json", is_flag=True, help="One JSON array.")
def list_models(as_json: bool) -> None:
    """List the models on this machine."""
    registry = Registry()
    models = registry.models()
    default = registry.state().get("default")
    if as_json:
        rows = [
            {
                "name": model.name,
                "path": str(model.path),
                "size_bytes": model.size_bytes,
                "default": model.name == default,
            }
            for model in models
        ]
        click.echo(json.dumps(rows))
        return
    if not models:
        click.echo("No models yet. Get one with `mlx-gptoss pull 20b`, or try `--model demo`.", err=True)
        return
    table = Table("name", "size", "changed", "folder", box=None, header_style="bold")
    for model in models:
        name = f"{model.name} (default)" if model.name == default else model.name
        changed = datetime.fromtimestamp(model.modified, UTC).astimezone().strftime("%Y-%m-%d %H:%M")
        table.add_row(name, f"{model.size_bytes / 1e9:.2f} GB", changed, str(model.path))
    wide_console().print(table)
    for alias in registry.aliases():
        click.echo(f"{alias.name} -> {alias.source}")


@click.command()
@click.argument("model", required=False)
@click.option("--json", "as_json", is_flag=True, help="The manifest as JSON.")
@click.option("--tensors", is_flag=True, help="Every tensor, one a line.")
def show(model: str | None, as_json: bool, tensors: bool) -> None:
    """Show what MODEL's folder holds: source, precisions, tensors, bytes a token."""
    from mlx_gptoss.cli.convert_cmd import show_folder, show_tensors

    folder = resolve_model(model)
    if tensors:
        show_tensors(folder)
    else:
        show_folder(folder, as_json=as_json)


@click.command("rm")
@click.argument("model")
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
def remove(model: str, yes: bool) -> None:
    """Delete MODEL from this machine."""
    registry = Registry()
    if registry.alias(model) is None:
        found = registry.find(model)
        if not yes and not _agreed(f"Delete {found.name} ({found.size_bytes / 1e9:.2f} GB)?"):
            raise GptOssError(f"{found.name} was not deleted")
    freed = registry.remove(model)
    click.echo(f"freed {freed / 1e9:.2f} GB")


def _agreed(question: str) -> bool:
    """The answer to a question. Raises InvalidRequestError when standard input ends without one."""
    try:
        return click.confirm(question)
    except click.Abort as error:
        # click says the same of Ctrl-C, which is an interruption.
        if not isinstance(error.__context__, EOFError):
            raise
        click.echo(err=True)
        raise InvalidRequestError(
            "nothing was deleted: standard input gave no answer", param="yes", hint="Add -y to delete without one."
        ) from None
