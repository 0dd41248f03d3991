"""`mlx-gptoss convert`, `verify` and `export`, and the table that `show` prints."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table

from mlx_gptoss.cli.progress import byte_progress
from mlx_gptoss.cli.tables import wide_console
from mlx_gptoss.folder import read_manifest

_PRECISIONS = ["source", "bf16", "f32", "mxfp8", "q8", "q6", "q4"]
_FOLDER = click.Path(path_type=Path)


@contextmanager
def _bar(label: str) -> Iterator[Callable[[int, int], None]]:
    with byte_progress() as bar:
        task = bar.add_task(label, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


@click.command()
@click.argument("source", type=_FOLDER)
@click.argument("target", type=_FOLDER)
@click.option("--for", "preset", type=click.Choice(["16gb", "24gb", "max-quality"]), help="Precisions for a machine.")
@click.option("--attention", type=click.Choice(_PRECISIONS), help="Precision of the attention projections.")
@click.option("--embedding", type=click.Choice(_PRECISIONS), help="Precision of the embedding.")
@click.option("--head", type=click.Choice(_PRECISIONS), help="Precision of the output head.")
@click.option("--experts", type=click.Choice(["mxfp4", "bf16"]), help="Experts of a dense fine-tune (default mxfp4).")
@click.option("--adapter", "adapters", type=_FOLDER, multiple=True, help="A LoRA folder to merge; may be repeated.")
@click.option("--overwrite", is_flag=True, help="Replace another model in TARGET.")
def convert(
    source: Path,
    target: Path,
    preset: str | None,
    attention: str | None,
    embedding: str | None,
    head: str | None,
    experts: str | None,
    adapters: tuple[Path, ...],
    overwrite: bool,
) -> None:
    """Convert the checkpoint SOURCE (safetensors, GGUF, mlx-lm) into the model folder TARGET.

    Expert weights are kept bit for bit. Interrupted, the same command goes on where it stopped.
    """
    from mlx_gptoss.convert import PRESETS
    from mlx_gptoss.convert import convert as run

    choices = PRESETS[preset].to_dict() if preset is not None else {}
    for part, value in (("attention", attention), ("embedding", embedding), ("head", head), ("experts", experts)):
        if value is not None:
            choices[part] = value
    with _bar("converting") as progress:
        manifest = run(
            source,
            target,
            attention=choices.get("attention", "source"),
            embedding=choices.get("embedding", "source"),
            head=choices.get("head", "source"),
            experts=choices.get("experts", "mxfp4"),
            adapters=adapters,
            overwrite=overwrite,
            progress=progress,
        )
    for note in manifest.notes:
        click.echo(note, err=True)
    click.echo(f"{target}: {len(manifest.tensors)} tensors, {manifest.nbytes / 1e9:.2f} GB")


@click.command()
@click.argument("model")
def verify(model: str) -> None:
    """Check every byte of MODEL against its manifest."""
    from mlx_gptoss.convert.verify import verify as run

    with _bar("verifying") as progress:
        verified = run(_folder(model), progress=progress)
    click.echo(f"{verified.tensors} tensors, {verified.nbytes / 1e9:.2f} GB: all as written")


@click.command()
@click.argument("model")
@click.argument("target", type=_FOLDER)
@click.option("--overwrite", is_flag=True, help="Replace a checkpoint that is in TARGET already.")
def export(model: str, target: Path, overwrite: bool) -> None:
    """Write MODEL back to TARGET in the Hugging Face layout."""
    from mlx_gptoss.convert.export import export as run

    with _bar("exporting") as progress:
        exported = run(_folder(model), target, overwrite=overwrite, progress=progress)
    if exported.dequantised:
        click.echo(
            f"{len(exported.dequantised)} matrices were dequantised to bf16 and differ from the original checkpoint; "
            "everything else is byte-equal",
            err=True,
        )
    click.echo(f"{target}: {exported.tensors} tensors, {exported.nbytes / 1e9:.2f} GB in {_files(len(exported.files))}")


def _folder(model: str) -> Path:
    """The folder of a model name; a folder is taken as it is, so that a damaged one can be named too."""
    from mlx_gptoss.names import as_folder, looks_like_path, resolve_model

    return as_folder(model) if looks_like_path(model) else resolve_model(model)


def show_folder(folder: Path, *, as_json: bool = False, console: Console | None = None) -> None:
    """Prints what a model folder holds, by part; as JSON, the manifest with a summary."""
    from mlx_gptoss.convert.summary import summarise

    summary = summarise(folder)
    manifest = summary.manifest
    if as_json:
        parts = [
            {"name": p.name, "format": p.format, "bytes": p.nbytes, "bytes_per_token": p.per_token}
            for p in summary.parts
        ]
        click.echo(json.dumps({"folder": str(folder), "parts": parts, **manifest.to_dict()}, indent=1))
        return
    config = summary.config
    console = console if console is not None else wide_console()
    console.print(f"[bold]{folder}[/bold]", highlight=False)
    revision = f" at {manifest.source.revision}" if manifest.source.revision else ""
    console.print(
        f"from {manifest.source.kind} {manifest.source.name}{revision}, {manifest.created_by}", highlight=False
    )
    console.print(
        f"{config.num_layers} layers, hidden {config.hidden_size}, {config.num_experts} experts "
        f"({config.experts_per_token} a token), {len(manifest.tensors)} tensors in {_files(len(manifest.files))}",
        highlight=False,
    )
    table = Table("part", "format", box=None, header_style="bold")
    for column in ("size", "share", "read per token"):
        table.add_column(column, justify="right")
    for part in summary.parts:
        table.add_row(part.name, part.format, _size(part.nbytes), f"{part.share:.1%}", _size(part.per_token))
    table.add_row("[bold]all[/bold]", "", _size(summary.nbytes), "100.0%", _size(summary.per_token))
    console.print(table)
    for note in manifest.notes[:8]:
        console.print(note, style="dim", highlight=False, markup=False)


def show_tensors(folder: Path) -> None:
    """Prints every tensor of a model folder, one a line: name, dtype, shape, bytes, place and hash."""
    tensors = read_manifest(folder).tensors
    width = max(len(t.name) for t in tensors)
    for t in tensors:
        shape = "x".join(map(str, t.shape))
        click.echo(f"{t.name:{width}} {t.dtype:4} {shape:20} {t.nbytes:>12} {t.file}:{t.offset} {t.sha256}")


def _files(count: int) -> str:
    return "1 file" if count == 1 else f"{count} files"


def _size(count: int) -> str:
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:.2f} {unit}"
    return f"{count} B"
