"""The check before loading: a model and its context either fit into this machine's memory or are refused."""

from __future__ import annotations

from pathlib import Path

from mlx_gptoss.config import ModelConfig
from mlx_gptoss.errors import CheckpointError, InsufficientMemoryError
from mlx_gptoss.plan.footprint import kv_bytes
from mlx_gptoss.plan.machine import Machine
from mlx_gptoss.plan.planner import SMALLEST_CONTEXT, WORKSPACE_BYTES, largest_context, memory_hint


def folder_bytes(folder: Path) -> int:
    """Bytes of the weights in a model folder, from its manifest. Raises CheckpointError."""
    from mlx_gptoss.folder import read_manifest

    return sum(record.nbytes for record in read_manifest(folder).tensors)


def check_fits(
    machine: Machine, config: ModelConfig, weight_bytes: int, context: int, *, conversations: int = 1
) -> None:
    """Raises InsufficientMemoryError, with what to change, unless weights and caches of that context fit."""
    needed = weight_bytes + WORKSPACE_BYTES + conversations * kv_bytes(config, context)
    if needed > machine.working_set:
        raise InsufficientMemoryError(
            "the model does not fit in memory"
            if weight_bytes + WORKSPACE_BYTES > machine.working_set
            else f"a context of {context} tokens does not fit in memory",
            expected=f"{needed / 1e9:.1f} GB",
            got=f"{machine.working_set / 1e9:.1f} GB usable of {machine.memory / 1e9:.1f} GB",
            hint=memory_hint(machine, needed),
        )


def bounded_context(machine: Machine, config: ModelConfig, weight_bytes: int, wanted: int | None) -> int:
    """The context to load a model with, in tokens.

    One that was asked for is given as asked (as far as the model has it) or refused; otherwise it is the largest that
    fits, and nothing below a few thousand tokens is worth loading. Raises InsufficientMemoryError.
    """
    most = config.max_position_embeddings
    least = min(SMALLEST_CONTEXT if wanted is None else wanted, most)
    check_fits(machine, config, weight_bytes, least)
    if wanted is not None:
        return least
    return max(least, largest_context(config, machine.working_set - weight_bytes - WORKSPACE_BYTES))


def bounded_folder_context(machine: Machine, folder: Path, wanted: int | None) -> int:
    """`bounded_context` of a model folder. What is wrong with the folder itself is left for the loader to say."""
    config = ModelConfig.from_file(folder)
    try:
        weights = folder_bytes(folder)
    except CheckpointError:
        return min(config.max_position_embeddings, wanted or config.max_position_embeddings)
    return bounded_context(machine, config, weights, wanted)
