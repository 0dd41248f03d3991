"""Loading a model for the server, within what the planner says this machine can hold."""

from __future__ import annotations

from dataclasses import replace

from mlx_gptoss.config import ModelConfig
from mlx_gptoss.engine.options import EngineOptions
from mlx_gptoss.folder import read_manifest
from mlx_gptoss.llm import GptOss
from mlx_gptoss.names import resolve_model
from mlx_gptoss.plan.footprint import kv_bytes
from mlx_gptoss.plan.guard import bounded_context
from mlx_gptoss.plan.machine import Machine, this_machine
from mlx_gptoss.plan.planner import CONVERSATION_TOKENS, WORKSPACE_BYTES
from mlx_gptoss.registry import Registry
from mlx_gptoss.server.models import Loader
from mlx_gptoss.server.settings import ServerSettings

PREFIX_CACHE_SHARE = 0.25
"""Of the memory that the weights leave, for stored conversations."""


def engine_options(settings: ServerSettings, machine: Machine, config: ModelConfig, weight_bytes: int) -> EngineOptions:
    """Bounds with which the engine stays in memory: the context of one conversation, the batch at ordinary lengths,
    and the stored conversations. Raises InsufficientMemoryError when the model cannot work here at all."""
    free = machine.working_set - weight_bytes - WORKSPACE_BYTES
    stored = min(settings.prefix_cache_bytes, int(max(free, 0) * PREFIX_CACHE_SHARE))
    context = bounded_context(machine, config, weight_bytes + stored, settings.context)
    each = kv_bytes(config, min(CONVERSATION_TOKENS, context))
    return EngineOptions(
        max_batch=max(1, min(settings.max_batch, (free - stored) // each)),
        max_queue=settings.max_queue,
        context=context,
        prefix_cache_bytes=stored,
        spill_dir=settings.spill_dir,
    )


def registry_loader(settings: ServerSettings, registry: Registry) -> Loader:
    """Loads models from the registry, converting on first use."""

    def load(name: str, /) -> GptOss:
        folder = resolve_model(name, registry=registry)
        config = ModelConfig.from_file(folder / "config.json")
        options = engine_options(settings, this_machine(), config, sum(read_manifest(folder).files.values()))
        if settings.spill_dir is not None:
            # Stored conversations belong to one model.
            options = replace(options, spill_dir=settings.spill_dir / folder.name)
        return GptOss.load(folder, backend=settings.backend, options=options)

    return load
