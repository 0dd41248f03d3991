"""The time a token takes: bytes over bandwidth plus launches for decode, arithmetic over throughput for prefill.

    decode  t = bytes / (bandwidth x efficiency) + launches x gap
    prefill t = operations / (throughput x utilisation), at least the time to read every weight once a chunk

`efficiency` is the share of copy bandwidth that a long stream of weights reaches, `gap` what every dependent launch
adds to that: its ramp, its tail and the space to the next one. The constants are data, each with where it is from;
benchmarks/cost_model.py fits them and prints the error against every measurement there is.
"""

from __future__ import annotations

from dataclasses import dataclass

from mlx_gptoss.config import ModelConfig
from mlx_gptoss.plan.chips import GB, Chip
from mlx_gptoss.plan.footprint import Precisions, footprint, prefill_flops, token_bytes

LAUNCHES_PER_LAYER = 6
LAUNCHES_FIXED = 4
"""Launches a decoded token beside the layers': embedding, head, two of sampling."""


@dataclass(frozen=True, slots=True)
class CostModel:
    """How close an engine on a machine comes to its ceilings. `gap_s` seconds a dependent launch; the others are shares
    of 1. `source` says what the numbers rest on."""

    efficiency: float
    gap_s: float
    prefill_utilisation: float
    source: str = ""


APPLE = CostModel(
    efficiency=0.75,
    gap_s=5e-6,
    prefill_utilisation=0.45,
    source="estimates: these kernels have not been measured on a Mac. The gap lies between those fitted to published "
    "speeds of other engines there, 3.7 us for Rapid-MLX and 8.7 us for mlx-lm, and is what such kernels take on an "
    "H100; the utilisation lies between those of Rapid-MLX (0.29) and llama.cpp (0.58)",
)
H100_COPY = 2906 * GB
"""Bytes/s of a large copy on one H100, read and write counted."""
H100 = CostModel(
    efficiency=1.095,
    gap_s=5.05e-6,
    prefill_utilisation=0.3,
    source="efficiency fitted to read-only kernels in a dependent chain (they read faster than a copy), gap to the GPU "
    "time of whole steps of a prototype with 7 launches a layer",
)


def launches(config: ModelConfig) -> int:
    """Kernel launches of one decoded token."""
    return LAUNCHES_PER_LAYER * config.num_layers + LAUNCHES_FIXED


def decode_seconds(
    bandwidth: float, model: CostModel, config: ModelConfig, precisions: Precisions, context: int, batch: int = 1
) -> float:
    """Seconds of one decode step of our kernels; `bandwidth` in bytes/s."""
    moved = token_bytes(config, precisions, context, batch)
    return step_seconds(bandwidth, model, moved, launches(config))


def step_seconds(bandwidth: float, model: CostModel, moved: float, launched: int) -> float:
    """Seconds of a step that reads `moved` bytes in `launched` dependent launches."""
    return moved / (bandwidth * model.efficiency) + launched * model.gap_s


def prefill_tokens_per_second(
    chip: Chip, model: CostModel, config: ModelConfig, precisions: Precisions, tokens: int, chunk: int = 2048
) -> float:
    """Prompt tokens a second for a prompt of `tokens`, read in chunks."""
    chunk = min(chunk, tokens)
    work = prefill_flops(config, tokens) * chunk / (chip.matrix_tflops * 1e12 * model.prefill_utilisation)
    weights = footprint(config, precisions)
    read = (weights.total - weights.embedding - weights.head) / (chip.bandwidth * model.efficiency)
    return chunk / max(work, read)
