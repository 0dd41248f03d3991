"""Prefixes of token sequences: how far two agree, and from where a sequence can be gone on with."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

TokenIds = npt.NDArray[np.int32]


def common_prefix(first: TokenIds, second: TokenIds) -> int:
    """Length of the longest common prefix of two int32 arrays."""
    length = min(len(first), len(second))
    different = first[:length] != second[:length]
    return int(different.argmax()) if length and different.any() else length


def reached(offset: int, length: int) -> int:
    """The furthest position <= `length` that a state at `offset` leads to: every cache can drop its last position,
    but no more once the sliding window has passed. 0 when there is none."""
    if offset == length + 1:
        return length
    return offset if offset <= length else 0
