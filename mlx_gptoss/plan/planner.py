"""Which models and precisions fit a machine, at which context, for how many conversations, how fast, and what to do."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from mlx_gptoss.config import ModelConfig
from mlx_gptoss.plan.chips import GIB
from mlx_gptoss.plan.costs import APPLE, decode_seconds, prefill_tokens_per_second
from mlx_gptoss.plan.footprint import Precisions, footprint, kv_bytes, released_config
from mlx_gptoss.plan.machine import Machine

CHOICES: Mapping[str, Precisions] = {
    "max-quality": Precisions(),
    "24gb": Precisions("q8", "q8", "q8"),
    "16gb": Precisions("q6", "q4", "q6"),
}
"""The converter's presets, best first (`convert --for`, `pull --for`)."""
MODELS: Mapping[str, str] = {"20b": "openai/gpt-oss-20b", "120b": "openai/gpt-oss-120b"}
WORKSPACE_BYTES = GIB // 2
"""Activations of a prefill chunk, logits, kernels and the allocator's slack (estimate)."""
SYSTEM_BYTES = 4 * GIB
"""What macOS and a few programs need: a raised wired limit must leave it free."""
CONVERSATION_TOKENS = 8192
SMALLEST_CONTEXT = 4096
"""Below this a model is not worth loading."""
LIMIT_CONTEXT = 32 * 1024
"""A raised wired limit makes room for this context where the memory allows."""
SPEED_CONTEXT = 1024
SPEED_PROMPT = 2048


@dataclass(frozen=True, slots=True)
class Fit:
    """How one model at one precision sits on a machine. Bytes, tokens, tokens a second; speeds None if unknown.

    `wired_limit_mb` is a setting of iogpu.wired_limit_mb that makes the model fit, or fit with `wired_context`
    tokens; None where none helps or none is needed.
    """

    model: str
    choice: str
    precision: str
    weight_bytes: int
    fits: bool
    context: int
    conversations: int
    decode_tps: float | None
    prefill_tps: float | None
    wired_limit_mb: int | None
    wired_context: int


def largest_context(config: ModelConfig, free: int) -> int:
    """The longest conversation whose cache fits into `free` bytes, in steps of 1024 tokens, up to the model's own."""
    low, high = 0, max(config.max_position_embeddings // 1024, 1)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if kv_bytes(config, middle * 1024) <= free else (low, middle - 1)
    return min(low * 1024, config.max_position_embeddings)


def wired_limit(machine: Machine, needed: int) -> int | None:
    """MiB to set iogpu.wired_limit_mb to so that a model may take `needed` bytes; None where that cannot help."""
    if not machine.metal or needed <= machine.working_set or needed > machine.memory - SYSTEM_BYTES:
        return None
    return -(-needed // (1 << 20))


def limit_command(megabytes: int) -> str:
    """The command that raises the wired limit until the next restart."""
    return f"sudo sysctl iogpu.wired_limit_mb={megabytes}"


def memory_hint(machine: Machine, needed: int) -> str:
    """What a user can do about `needed` bytes that do not fit."""
    megabytes = wired_limit(machine, needed)
    if megabytes is not None:
        return (
            f"Run `{limit_command(megabytes)}` to let the GPU use more of this Mac's memory, or see `mlx-gptoss plan`."
        )
    return "Run `mlx-gptoss plan` to see what fits, at which precision and context."


def fit(machine: Machine, model: str, config: ModelConfig, choice: str) -> Fit:
    """Plan one model at one of `CHOICES`."""
    precisions = CHOICES[choice]
    weights = footprint(config, precisions).total
    base = weights + WORKSPACE_BYTES
    free = machine.working_set - base
    context = largest_context(config, free)
    least = min(SMALLEST_CONTEXT, config.max_position_embeddings)
    fits = context >= least
    limit, limited = _raised_limit(machine, config, base, context)
    decode = prefill = None
    if machine.chip is not None:
        decode = 1 / decode_seconds(machine.chip.bandwidth, APPLE, config, precisions, SPEED_CONTEXT)
        prefill = prefill_tokens_per_second(machine.chip, APPLE, config, precisions, SPEED_PROMPT)
    return Fit(
        model=model,
        choice=choice,
        precision=precisions.label,
        weight_bytes=weights,
        fits=fits,
        context=context if fits else 0,
        conversations=max(0, free // kv_bytes(config, CONVERSATION_TOKENS)) if fits else 0,
        decode_tps=decode,
        prefill_tps=prefill,
        wired_limit_mb=limit,
        wired_context=limited,
    )


def _raised_limit(machine: Machine, config: ModelConfig, base: int, context: int) -> tuple[int | None, int]:
    """The wired limit worth setting for weights and workspace of `base` bytes, and the context it gives."""
    goal = min(LIMIT_CONTEXT, config.max_position_embeddings)
    if context >= goal:
        return None, 0
    most = largest_context(config, machine.memory - SYSTEM_BYTES - base)
    reached = min(goal, most)
    if reached < min(SMALLEST_CONTEXT, goal) or reached <= context:
        return None, 0
    limit = wired_limit(machine, base + kv_bytes(config, reached))
    return limit, reached if limit is not None else 0


def plan(machine: Machine) -> list[Fit]:
    """Both released models at each choice."""
    return [fit(machine, name, released_config(name), choice) for name in MODELS.values() for choice in CHOICES]


def advice(machine: Machine, fits: list[Fit]) -> list[str]:
    """What to do, in whole sentences: the best choice of each model, and the limit that would make room for more."""
    lines = []
    for short, model in MODELS.items():
        entries = [entry for entry in fits if entry.model == model]
        good = _best([entry for entry in entries if entry.fits], lambda entry: entry.context)
        raised = _best(
            [entry for entry in entries if entry.wired_limit_mb is not None and entry.wired_context > _context(good)],
            lambda entry: entry.wired_context,
        )
        if good is not None:
            lines.append(
                f"{short}: `mlx-gptoss pull {short} --for {good.choice}`, context up to {good.context} tokens."
            )
        if raised is not None and raised.wired_limit_mb is not None:
            lines.append(
                f"{short}: {'with' if good is None else 'more with'} `{limit_command(raised.wired_limit_mb)}` (until "
                f"the next restart) and `pull {short} --for {raised.choice}`, context {raised.wired_context} tokens."
            )
        if good is None and raised is None:
            smallest = min(entry.weight_bytes for entry in entries) + WORKSPACE_BYTES
            lines.append(
                f"{short}: does not fit; it needs {smallest / 1e9:.1f} GB and this machine gives a model "
                f"{machine.working_set / 1e9:.1f} GB."
            )
    return lines


def _context(entry: Fit | None) -> int:
    return 0 if entry is None else entry.context


def _best(entries: list[Fit], context: Callable[[Fit], int]) -> Fit | None:
    """The finest precision that leaves room for a useful context, else the one with the most room."""
    roomy = [entry for entry in entries if context(entry) >= LIMIT_CONTEXT]
    return roomy[0] if roomy else max(entries, key=context, default=None)


def plan_json(machine: Machine, fits: list[Fit]) -> dict[str, Any]:
    """The plan as one JSON object."""
    return {
        "machine": machine.name,
        "memory_bytes": machine.memory,
        "working_set_bytes": machine.working_set,
        "speeds": "estimated" if machine.chip is not None else None,
        "fits": [asdict(entry) for entry in fits],
        "advice": advice(machine, fits),
    }
