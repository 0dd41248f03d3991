"""The check before loading: a model and its context either fit into this machine's memory or are refused."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from mlx_gptoss.config import ModelConfig
from mlx_gptoss.errors import InsufficientMemoryError
from mlx_gptoss.plan.footprint import footprint, kv_bytes, released_config
from mlx_gptoss.plan.machine import Machine
from mlx_gptoss.plan.planner import (
    CHOICES,
    CONVERSATION_TOKENS,
    MODELS,
    SMALLEST_CONTEXT,
    WORKSPACE_BYTES,
    largest_context,
    limit_command,
    memory_hint,
    wired_limit,
)


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


@dataclass(frozen=True, slots=True)
class Bounds:
    """What an engine may take: tokens of one conversation, sequences at once, bytes of stored conversations."""

    context: int
    max_batch: int
    prefix_cache_bytes: int


STORED_SHARE = 0.25
"""Of the memory that the weights leave, for stored conversations."""


def engine_bounds(
    machine: Machine,
    config: ModelConfig,
    weight_bytes: int,
    *,
    context: int | None,
    max_batch: int,
    prefix_cache_bytes: int,
) -> Bounds:
    """Bounds no larger than asked for with which weights, caches and stored conversations stay within memory.

    The context comes first: one that was asked for is never cut. Raises InsufficientMemoryError.
    """
    least = min(SMALLEST_CONTEXT if context is None else context, config.max_position_embeddings)
    check_fits(machine, config, weight_bytes, least)
    free = machine.working_set - weight_bytes - WORKSPACE_BYTES
    stored = min(prefix_cache_bytes, int(free * STORED_SHARE), free - kv_bytes(config, least))
    bounded = bounded_context(machine, config, weight_bytes + stored, context)
    each = kv_bytes(config, min(CONVERSATION_TOKENS, bounded))
    return Bounds(bounded, max(1, min(max_batch, (free - stored) // max(1, each))), stored)


def folder_bounds(
    machine: Machine, folder: Path, *, context: int | None, max_batch: int, prefix_cache_bytes: int
) -> Bounds:
    """`engine_bounds` of a model folder, from its config and manifest alone. Raises what reading those raises."""
    config = ModelConfig.from_file(folder)
    return engine_bounds(
        machine,
        config,
        folder_bytes(folder),
        context=context,
        max_batch=max_batch,
        prefix_cache_bytes=prefix_cache_bytes,
    )


def check_download(machine: Machine, model: str, size_bytes: int, choice: str | None = None) -> None:
    """Before a download: raises InsufficientMemoryError unless the model would run here once converted.

    `model` is a hub id of `size_bytes`, `choice` one of planner.CHOICES (None: as released). The hint names a choice
    that would fit, where there is one.
    """
    released = model in MODELS.values()
    config = released_config(model)
    least = min(SMALLEST_CONTEXT, config.max_position_embeddings)

    def weights(name: str) -> int:
        return footprint(config, CHOICES[name]).total if released else size_bytes

    try:
        check_fits(machine, config, weights(choice or next(iter(CHOICES))), least)
    except InsufficientMemoryError as error:
        hint = error.hint
        for name in CHOICES if released else ():
            if weights(name) + WORKSPACE_BYTES + kv_bytes(config, least) <= machine.working_set:
                hint = f"Add `--for {name}` for a precision that fits."
                break
        else:
            smallest = weights(list(CHOICES)[-1]) + WORKSPACE_BYTES + kv_bytes(config, least)
            if released and wired_limit(machine, smallest) is not None:
                hint = f"Add `--for {list(CHOICES)[-1]}` after `{limit_command(wired_limit(machine, smallest) or 0)}`."
        raise InsufficientMemoryError(
            f"{model} would not fit in this machine's memory",
            expected=error.expected,
            got=error.got,
            hint=f"{hint} `--force` downloads it all the same.",
        ) from error
