"""What a draw needs of each row and what it gives: plain data, the same for the kernels and their twin."""

from __future__ import annotations

from dataclasses import dataclass

import mlx.core as mx
import numpy as np

SETTINGS = 8
"""Floats of a row's settings on the device."""
LARGEST_NUMBER = 1.0 - 2.0**-23
"""Below 1 in float32, with a bit to spare."""


@dataclass(frozen=True, slots=True)
class Draws:
    """How each of S rows is drawn; every field has S entries.

    `inverse`: 1 / temperature, at most 1e30. `number`: in [0, 1), where in the summed weights the token lies; 0 with
    the largest `inverse` is the first of the best. `top_k`: 0 keeps all. `top_p`: 1 keeps all. `min_p`: 0 keeps all.
    Top-k comes first, then the nucleus of what it leaves, and ties at an end are kept.
    """

    inverse: tuple[float, ...]
    number: tuple[float, ...]
    top_k: tuple[int, ...]
    top_p: tuple[float, ...]
    min_p: tuple[float, ...]

    @property
    def truncated(self) -> bool:
        """Whether any row keeps less than all."""
        return any(self.top_k) or any(p < 1 for p in self.top_p) or any(self.min_p)

    def limits(self, vocab: int) -> list[int]:
        """How many of `vocab` ids top-k leaves of each row."""
        return [k if 0 < k < vocab else vocab for k in self.top_k]

    def settings(self, vocab: int) -> mx.array:
        """float32 [S, 8]: inverse, number, top-k (0: all), top-p, log of min-p, and zeros."""
        table = np.zeros((len(self.number), SETTINGS), dtype=np.float32)
        table[:, 0] = self.inverse
        table[:, 1] = np.minimum(self.number, LARGEST_NUMBER)
        table[:, 2] = [k if k < vocab else 0 for k in self.top_k]
        table[:, 3] = self.top_p
        table[:, 4] = log_min_p(self)
        return mx.array(table)


def log_min_p(draws: Draws) -> list[float]:
    """The least scaled logit that min-p keeps of each row, -inf for all."""
    return [float(np.log(p)) if p > 0 else -float("inf") for p in draws.min_p]


@dataclass(frozen=True, slots=True)
class Drawn:
    """`tokens` int32 [S]. `peaks` float32 [S]: each row's largest logit; NaN when its logits are broken, -inf when
    nothing is allowed. `logprobs` of the tokens and `totals` (the logarithm of the summed exp), both float32 [S], are
    those of the raw logits; None where nobody asked."""

    tokens: mx.array
    peaks: mx.array
    logprobs: mx.array | None = None
    totals: mx.array | None = None
