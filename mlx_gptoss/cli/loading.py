"""Load a model for a command, with a progress bar where that takes long."""

from __future__ import annotations

from typing import Any

from mlx_gptoss.cli.progress import byte_progress
from mlx_gptoss.config import ModelConfig
from mlx_gptoss.errors import InvalidRequestError
from mlx_gptoss.llm import GptOss
from mlx_gptoss.names import resolve_model


def load(model: str | None, *, context: int | None = None, backend: str = "auto", **options: Any) -> GptOss:
    """Resolve a model name (converting it on first use) and load it. Raises InvalidRequestError for a context that is
    longer than the model's: who asks for one counts on having it."""
    with byte_progress() as bar:
        task: Any = None

        def converting(completed: int, total: int) -> None:
            nonlocal task
            if task is None:
                task = bar.add_task("converting (first use)", total=total)
            bar.update(task, completed=completed, total=total)

        folder = resolve_model(model, progress=converting)
    most = None if context is None else ModelConfig.from_file(folder).max_position_embeddings
    if context is not None and most is not None and context > most:
        raise InvalidRequestError(
            "--context is longer than the model's own",
            param="context",
            expected=f"at most {most} tokens",
            got=str(context),
            hint="Leave it out for as much as memory allows.",
        )
    return GptOss.load(folder, context=context, backend=backend, **options)
