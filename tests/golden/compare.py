"""How far logits are from an oracle's."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Logits = npt.NDArray[np.floating]

CLEAR_GAP = 0.1
"""Where the oracle's best two logits differ by more, the same token must win."""


@dataclass(frozen=True, slots=True)
class Distance:
    """`relative` is |ours - oracle| / |oracle| over all logits; `kl` the mean KL(oracle || ours) in nats;
    `flips` counts positions where another token wins although the oracle's gap is clear."""

    relative: float
    kl: float
    worst_kl: float
    flips: int


def distance(oracle: Logits, ours: Logits) -> Distance:
    """Compares logits [positions, vocab]."""
    want, got = oracle.astype(np.float64), ours.astype(np.float64)
    log_p, log_q = _log_softmax(want), _log_softmax(got)
    kl = (np.exp(log_p) * (log_p - log_q)).sum(axis=-1)
    best = np.sort(want, axis=-1)
    clear = best[:, -1] - best[:, -2] > CLEAR_GAP
    flips = int((clear & (want.argmax(axis=-1) != got.argmax(axis=-1))).sum())
    return Distance(float(np.linalg.norm(got - want) / np.linalg.norm(want)), float(kl.mean()), float(kl.max()), flips)


def _log_softmax(x: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    x = x - x.max(axis=-1, keepdims=True)
    return np.asarray(x - np.log(np.exp(x).sum(axis=-1, keepdims=True)))
