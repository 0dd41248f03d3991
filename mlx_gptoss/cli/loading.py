"""Load a model for a command, with a progress bar where that takes long."""

from __future__ import annotations

from typing import Any

from mlx_gptoss.cli.progress import byte_progress
from mlx_gptoss.llm import GptOss
from mlx_gptoss.names import resolve_model


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
