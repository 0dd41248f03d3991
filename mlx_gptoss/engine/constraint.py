"""Token constraints: what may come next, decided outside the engine."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import numpy.typing as npt

Mask = npt.NDArray[np.uint32]


class TokenConstraint(Protocol):
    """Asked before every token and told of every token, on the engine's thread; one instance serves one request."""

    def mask(self) -> Mask | None:
        """Bit t % 32 of word t // 32 says whether token t may come next; None when anything may."""
        ...

    def advance(self, token_id: int) -> None:
        """Token `token_id` was generated."""
        ...

    def force(self) -> tuple[int, ...]:
        """Tokens that must come next, in order; empty when there is a choice. `advance` is called for them too."""
        ...


def stack_masks(masks: list[Mask | None], vocab_size: int) -> Mask:
    """uint32 [len(masks), ceil(vocab_size / 32)]: None rows allow everything, short rows forbid what they omit."""
    words = (vocab_size + 31) // 32
    stacked = np.zeros((len(masks), words), dtype=np.uint32)
    for row, mask in enumerate(masks):
        if mask is None:
            stacked[row] = 0xFFFFFFFF
        else:
            width = min(words, mask.shape[0])
            stacked[row, :width] = mask[:width]
    return stacked


def single_token_mask(token_id: int) -> Mask:
    """The mask that allows one token."""
    mask = np.zeros(token_id // 32 + 1, dtype=np.uint32)
    mask[token_id // 32] = np.uint32(1 << (token_id % 32))
    return mask
