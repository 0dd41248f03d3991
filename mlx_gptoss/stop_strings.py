"""Stop strings: text that ends an answer and is not part of it."""

from __future__ import annotations

from collections.abc import Sequence

from mlx_gptoss.events import TextDelta, TokenLogprob


class StopStrings:
    """Lets text through up to the first stop string, whatever pieces it comes in.

    Text that may be the start of a stop string waits until it is clear; `flush` lets it go at the end."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._held = ""
        self._logprobs: list[TokenLogprob] = []
        self.matched: str | None = None

    @property
    def found(self) -> bool:
        """Whether a stop string came."""
        return self.matched is not None

    def feed(self, delta: TextDelta) -> list[TextDelta]:
        """The part of the text so far that may be shown. After `found` nothing more comes."""
        if self.found:
            return []
        if not self._stops:
            return [delta]
        self._held += delta.text
        self._logprobs += delta.logprobs
        places = [(place, stop) for stop in self._stops if (place := self._held.find(stop)) >= 0]
        if places:
            place, self.matched = min(places, key=lambda found: found[0])
            return self._release(place)
        return self._release(len(self._held) - self._undecided())

    def flush(self) -> list[TextDelta]:
        """What still waited when the text ended without a stop string."""
        return [] if self.found else self._release(len(self._held))

    def _undecided(self) -> int:
        """Length of the longest end of the held text that begins a stop string."""
        longest = min(len(self._held), max(len(stop) for stop in self._stops) - 1)
        for length in range(longest, 0, -1):
            tail = self._held[-length:]
            if any(stop.startswith(tail) for stop in self._stops):
                return length
        return 0

    def _release(self, length: int) -> list[TextDelta]:
        text, self._held = self._held[:length], self._held[length:]
        if not text:
            return []
        logprobs, self._logprobs = tuple(self._logprobs), []
        return [TextDelta(text, logprobs)]
