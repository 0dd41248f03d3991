"""How fast this machine prefills and decodes, measured as it goes, and what a step may therefore spend on prefill."""

from __future__ import annotations

from typing import Final

LARGEST_CHUNK: Final = 2048
SMALLEST_CHUNK: Final = 64
"""Tokens. A pass over fewer costs as much: it reads the weights once all the same."""
FIRST_BUSY_CHUNK: Final = 256
BUSY_SECONDS: Final = 0.12
IDLE_SECONDS: Final = 1.0
"""Who comes or leaves while nobody decodes is noticed between two chunks, so one must not take for ever."""
_WEIGHT: Final = 0.5


class Pace:
    """Moving averages; used from the engine's thread alone."""

    def __init__(self) -> None:
        self._tokens_per_second: float | None = None
        self._step_s = 0.0

    def prefilled(self, tokens: int, seconds: float) -> None:
        """One pass over `tokens` took so long."""
        if seconds > 0:
            self._tokens_per_second = _average(self._tokens_per_second, cost(tokens) / seconds)

    def stepped(self, seconds: float, prefilled: int) -> None:
        """A round took so long, from one decode step's tokens to the next one's, with passes of that `cost` in it."""
        if prefilled and self._tokens_per_second is None:
            return
        own = seconds - prefilled / (self._tokens_per_second or 1.0)
        self._step_s = _average(self._step_s or None, max(0.0, own))

    def idle_budget(self) -> int:
        """Tokens of a chunk while nobody decodes: as many as are efficient, unless this machine is so slow that they
        would take much longer than IDLE_SECONDS."""
        if self._tokens_per_second is None:
            return LARGEST_CHUNK
        return _chunk(self._tokens_per_second * IDLE_SECONDS, FIRST_BUSY_CHUNK)

    def busy_budget(self) -> int:
        """Tokens that a step may prefill while others decode: what takes as long as their own step, or BUSY_SECONDS
        if that is longer, so that nobody waits for a token much more than twice as long as alone."""
        if self._tokens_per_second is None:
            return FIRST_BUSY_CHUNK
        return _chunk(self._tokens_per_second * max(BUSY_SECONDS, self._step_s), SMALLEST_CHUNK)


def cost(tokens: int) -> int:
    """What a pass over so many tokens takes out of a budget of tokens."""
    return max(tokens, SMALLEST_CHUNK)


def _chunk(wanted: float, smallest: int) -> int:
    return max(smallest, min(int(wanted) // SMALLEST_CHUNK * SMALLEST_CHUNK, LARGEST_CHUNK))


def _average(before: float | None, now: float) -> float:
    return now if before is None else before + _WEIGHT * (now - before)
