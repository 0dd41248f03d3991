"""The draw in numpy, for when the device is the CPU: there numpy's exp, sort and sums are several times faster than
MLX's, and the logits need no transfer. The twin of the device's draw in sampling.py."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from mlx_gptoss.engine.row_sampler import RowSampler
from mlx_gptoss.request import SamplingParams

_NEAR = 10.0


def draw_on_host(scores: npt.NDArray[np.float32], rows: Sequence[RowSampler]) -> npt.NDArray[np.int32]:
    """One token for each row of float32 `scores` [S, vocab]."""
    return np.array([_draw(line, row) for line, row in zip(scores, rows, strict=True)], dtype=np.int32)


def _draw(scores: npt.NDArray[np.float32], row: RowSampler) -> int:
    best = int(scores.argmax())
    # Broken rows are reported by their peak; any token will do.
    if row.greedy or not np.isfinite(scores[best]):
        return best
    scaled = (scores - scores[best]) * np.float32(1.0 / row.params.temperature)
    weights = np.exp(scaled)
    floor = _floor(scaled, weights, row.params)
    if floor > -np.inf:
        weights[scaled < floor] = 0
    edges = np.cumsum(weights, dtype=np.float64)
    place = int(np.searchsorted(edges, row.uniform() * edges[-1], side="right"))
    return min(place, len(scores) - 1) if place < len(scores) else best


def _floor(scaled: npt.NDArray[np.float32], weights: npt.NDArray[np.float32], params: SamplingParams) -> float:
    """The lowest scaled logit that may be drawn: top-k first, then the nucleus of what it leaves, and min-p."""
    floor = -np.inf
    kept, mass = scaled, weights
    if 0 < params.top_k < len(scaled):
        floor = float(np.partition(scaled, -params.top_k)[-params.top_k])
        chosen = scaled >= floor
        kept, mass = scaled[chosen], weights[chosen]
    if params.top_p < 1:
        wanted = params.top_p * mass.sum(dtype=np.float64)
        # A confident model's nucleus is among the few logits near the best: sort those alone when they suffice.
        near = kept >= -_NEAR
        falling = -np.sort(-(kept[near] if mass[near].sum(dtype=np.float64) >= wanted else kept))
        reached = np.cumsum(np.exp(falling), dtype=np.float64) >= wanted
        floor = max(floor, float(falling[int(reached.argmax()) if reached.any() else -1]))
    if params.min_p > 0:
        floor = max(floor, float(np.log(params.min_p)))
    return floor
