"""Loading a model for the server, within what the planner says this machine can hold."""

from __future__ import annotations

from mlx_gptoss.engine.options import EngineOptions
from mlx_gptoss.llm import GptOss
from mlx_gptoss.names import resolve_model
from mlx_gptoss.plan.machine import Machine
from mlx_gptoss.registry import Registry
from mlx_gptoss.server.models import Loader
from mlx_gptoss.server.settings import ServerSettings


def registry_loader(settings: ServerSettings, registry: Registry, machine: Machine | None = None) -> Loader:
    """Loads models from the registry, converting on first use, for `machine` (this one).

    What the settings ask for is an upper bound: GptOss.load keeps context, batch and stored conversations within
    memory, and raises InsufficientMemoryError for a model that cannot work here at all.
    """

    def load(name: str, /) -> GptOss:
        folder = resolve_model(name, registry=registry)
        options = EngineOptions(
            max_batch=settings.max_batch,
            max_queue=settings.max_queue,
            context=settings.context,
            prefix_cache_bytes=settings.prefix_cache_bytes,
            # Stored conversations belong to one model.
            spill_dir=None if settings.spill_dir is None else settings.spill_dir / folder.name,
        )
        return GptOss.load(folder, backend=settings.backend, options=options, machine=machine)

    return load
