"""Which models and precisions fit a machine, at which context, for how many conversations, how fast."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from mlx_gptoss.config import ModelConfig
from mlx_gptoss.errors import InsufficientMemoryError
from mlx_gptoss.plan.chips import GIB
from mlx_gptoss.plan.costs import APPLE, decode_seconds, prefill_tokens_per_second
from mlx_gptoss.plan.footprint import Precisions, footprint, kv_bytes, released_config
from mlx_gptoss.plan.machine import Machine

PRECISIONS: tuple[Precisions, ...] = (
    Precisions(),
    Precisions("q8", "q8", "q8"),
    Precisions("q6", "q4", "q6"),
    Precisions("q4", "q4", "q4"),
)
MODELS = ("openai/gpt-oss-20b", "openai/gpt-oss-120b")
WORKSPACE_BYTES = GIB // 2
"""Activations of a prefill chunk, logits, kernels and the allocator's slack (estimate)."""
SYSTEM_BYTES = 4 * GIB
"""What macOS and a few programs need; the wired limit must leave it free."""
CONVERSATION_TOKENS = 8192
SMALLEST_CONTEXT = 4096


@dataclass(frozen=True, slots=True)
class Fit:
    """How one model at one precision sits on a machine. Bytes, tokens, tokens a second; speeds None if unknown."""

    model: str
    precision: str
    weight_bytes: int
    fits: bool
    context: int
    conversations: int
    decode_tps: float | None
    prefill_tps: float | None
    advice: str


def largest_context(config: ModelConfig, free: int) -> int:
    """The longest conversation whose cache fits into `free` bytes, in steps of 1024 tokens, up to the model's own."""
    if kv_bytes(config, 1024) > free:
        return 0
    step, most = 1024, config.max_position_embeddings // 1024
    low, high = 1, max(most, 1)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if kv_bytes(config, middle * step) <= free else (low, middle - 1)
    return min(low * step, config.max_position_embeddings)


def fit(
    machine: Machine, name: str, config: ModelConfig, precisions: Precisions, weight_bytes: int | None = None
) -> Fit:
    """Plan one model. `weight_bytes` is the real size where a model folder is at hand."""
    weights = weight_bytes if weight_bytes is not None else footprint(config, precisions).total
    free = machine.working_set - weights - WORKSPACE_BYTES
    context = largest_context(config, free) if free > 0 else 0
    fits = context >= min(SMALLEST_CONTEXT, config.max_position_embeddings)
    each = kv_bytes(config, min(CONVERSATION_TOKENS, config.max_position_embeddings))
    decode = prefill = None
    if machine.chip is not None:
        decode = 1 / decode_seconds(machine.chip.bandwidth, APPLE, config, precisions, 1024)
        prefill = prefill_tokens_per_second(machine.chip, APPLE, config, precisions, 2048)
    return Fit(
        model=name,
        precision=precisions.label,
        weight_bytes=weights,
        fits=fits,
        context=context if fits else 0,
        conversations=max(0, free // each) if fits else 0,
        decode_tps=decode,
        prefill_tps=prefill,
        advice=_advice(machine, config, weights, fits, context),
    )


def _advice(machine: Machine, config: ModelConfig, weights: int, fits: bool, context: int) -> str:
    if fits and context >= config.max_position_embeddings:
        return ""
    wanted = weights + WORKSPACE_BYTES + kv_bytes(config, min(config.max_position_embeddings, 32 * 1024))
    if machine.metal and machine.working_set < wanted <= machine.memory - SYSTEM_BYTES:
        return f"sudo sysctl iogpu.wired_limit_mb={-(-wanted // (1 << 20))}"
    if fits:
        return f"context up to {context}"
    return "does not fit; choose a lower precision or a smaller model"


def plan(machine: Machine, precisions: Sequence[Precisions] = PRECISIONS) -> list[Fit]:
    """Both released models at each precision."""
    return [fit(machine, name, released_config(name), choice) for name in MODELS for choice in precisions]


def plan_json(machine: Machine, fits: Sequence[Fit]) -> dict[str, Any]:
    """The plan as one JSON object."""
    return {
        "machine": machine.name,
        "memory_bytes": machine.memory,
        "working_set_bytes": machine.working_set,
        "estimated": True,
        "fits": [asdict(entry) for entry in fits],
    }


def bounded_context(machine: Machine, config: ModelConfig, weight_bytes: int, wanted: int | None) -> int:
    """The context to load a model with. Raises InsufficientMemoryError, before loading, when it cannot work.

    A context that was asked for is given or refused; otherwise it is the largest that fits.
    """
    free = machine.working_set - weight_bytes - WORKSPACE_BYTES
    largest = largest_context(config, free) if free > 0 else 0
    smallest = min(wanted or 1024, config.max_position_embeddings)
    if largest < min(smallest, 1024):
        raise InsufficientMemoryError(
            "the model does not fit in memory",
            expected=f"{(weight_bytes + WORKSPACE_BYTES + kv_bytes(config, smallest)) / 1e9:.1f} GB",
            got=f"{machine.working_set / 1e9:.1f} GB usable of {machine.memory / 1e9:.1f} GB",
            hint="Run `mlx-gptoss plan` to see what fits and what to change.",
        )
    if wanted is None:
        return largest
    if wanted > largest and wanted <= config.max_position_embeddings:
        raise InsufficientMemoryError(
            f"a context of {wanted} tokens does not fit in memory",
            expected=f"at most {largest}",
            got=str(wanted),
            hint="Choose a smaller --context, or run `mlx-gptoss plan`.",
        )
    return min(wanted, config.max_position_embeddings)
