"""Endless repetition: the same run of tokens, over and over."""

from __future__ import annotations

import numpy as np

LONGEST_PERIOD = 512
SHORTEST_RUN = 256
FEWEST_COPIES = 8


class RepetitionDetector:
    """Watches one generation. It repeats when its last tokens are at least `copies` copies of one run of up to
    `longest` tokens, and at least `shortest_run` tokens long in all: long enough that tables, rulers and lists of
    similar lines pass. One vectorised compare a token.
    """

    def __init__(
        self, longest: int = LONGEST_PERIOD, shortest_run: int = SHORTEST_RUN, copies: int = FEWEST_COPIES
    ) -> None:
        self._longest = longest
        self._history = np.full(2 * longest, -1, dtype=np.int64)
        self._end = longest
        periods = np.arange(longest, 0, -1)
        # The first copy has no earlier one to agree with: a run of n tokens shows n - period agreements.
        self._limit = np.maximum(shortest_run, copies * periods) - periods
        self._agreed = np.zeros(longest, dtype=np.int64)

    def update(self, token_id: int) -> bool:
        """Takes the next token; True when the generation is repeating itself."""
        if self._end == len(self._history):
            self._history[: self._longest] = self._history[self._longest :]
            self._end = self._longest
        before = self._history[self._end - self._longest : self._end]
        self._agreed += 1
        self._agreed *= before == token_id
        self._history[self._end] = token_id
        self._end += 1
        return bool((self._agreed >= self._limit).any())
