"""The time a token takes: bytes over bandwidth plus launches for decode, arithmetic over throughput for prefill.

    decode  t = bytes / (bandwidth x efficiency) + launches x gap
    prefill t = operations / (throughput x utilisation), at least the time to read every weight once a chunk

`efficiency` is the share of copy bandwidth that dependent matvecs reach, `gap` the time between two dependent
launches. For Apple's chips both are estimates until somebody measures there; benchmarks/cost_model.py holds the form
against measurements on an H100 and against published figures of other engines on Macs, and prints the error.
"""

from __future__ import annotations

from dataclasses import dataclass

from mlx_gptoss.config import ModelConfig
from mlx_gptoss.plan.chips import Chip
from mlx_gptoss.plan.footprint import Precisions, footprint, prefill_flops, token_bytes

LAUNCHES_PER_LAYER = 6
LAUNCHES_FIXED = 4
"""Launches a decoded token beside the layers': embedding, head, two of sampling."""


@dataclass(frozen=True, slots=True)
class CostModel:
    """How close a machine comes to its ceilings. `gap_s` seconds a dependent launch; the others are shares of 1."""

    efficiency: float
    gap_s: float
    prefill_utilisation: float


APPLE = CostModel(efficiency=0.75, gap_s=5e-6, prefill_utilisation=0.45)
"""Estimate: matvec efficiency as measured for the same kernel text on an H100; gap from published Mac figures."""


def launches(config: ModelConfig) -> int:
    """Kernel launches of one decoded token."""
    return LAUNCHES_PER_LAYER * config.num_layers + LAUNCHES_FIXED


def decode_seconds(
    bandwidth: float, model: CostModel, config: ModelConfig, precisions: Precisions, context: int, batch: int = 1
) -> float:
    """Seconds of one decode step."""
    moved = token_bytes(config, precisions, context, batch)
    return moved / (bandwidth * model.efficiency) + launches(config) * model.gap_s


def prefill_tokens_per_second(
    chip: Chip, model: CostModel, config: ModelConfig, precisions: Precisions, tokens: int, chunk: int = 2048
) -> float:
    """Prompt tokens a second for a prompt of `tokens`, read in chunks."""
    chunk = min(chunk, tokens)
    work = prefill_flops(config, tokens) * chunk / (chip.matrix_tflops * 1e12 * model.prefill_utilisation)
    weights = footprint(config, precisions)
    read = (weights.total - weights.embedding - weights.head) / (chip.bandwidth * model.efficiency)
    return chunk / max(work, read)
