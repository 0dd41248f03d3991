"""Load a model for a command, with a progress bar where that takes long."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from mlx_gptoss.llm import GptOss
from mlx_gptoss.names import resolve_model


@contextmanager
def byte_progress() -> Iterator[Progress]:
    """A progress bar for bytes on stderr; silent when stderr is not a terminal."""
    console = Console(stderr=True)
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
        console=console,
        disable=not sys.stderr.isatty(),
        transient=True,
    ) as bar:
        yield bar


def load(model: str | None, *, context: int | None = None, backend: str = "auto", **options: Any) -> GptOss:
    """Resolve a model name (converting it on first use) and load it."""
    with byte_progress() as bar:
        task: Any = None

        def converting(completed: int, total: int) -> None:
            nonlocal task
            if task is None:
                task = bar.add_task("converting (first use)", total=total)
            bar.update(task, completed=completed, total=total)

        folder = resolve_model(model, progress=converting)
    return GptOss.load(folder, context=context, backend=backend, **options)
