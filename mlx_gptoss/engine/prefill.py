"""Prefill: prompts into caches, chunk by chunk, with snapshots where other prompts may part from this one."""

from __future__ import annotations

import time
from typing import Final

import mlx.core as mx
import numpy as np

from mlx_gptoss.engine.options import EngineOptions
from mlx_gptoss.engine.pace import LARGEST_CHUNK, Pace
from mlx_gptoss.engine.prefix import common_prefix, reached
from mlx_gptoss.engine.prefix_cache import PrefixCache, thin
from mlx_gptoss.engine.sequence import Sequence
from mlx_gptoss.engine.token_model import TokenModel

_WORTH_WAITING: Final = 64


class Prefiller:
    """The sequences whose prompts are not in their caches yet.

    They start in the order they came. Every other chunk goes to the one with the least left to do, so that a short
    prompt does not wait for all of a long one; the oldest gets the chunks between. A prompt that shares its start
    with one being prefilled waits for it, to take over what they share.
    """

    def __init__(self, model: TokenModel, options: EngineOptions, prefixes: PrefixCache, pace: Pace) -> None:
        self._model = model
        self._pace = pace
        self._options = options
        self._prefixes = prefixes
        self._live: list[Sequence] = []
        self._waiting: list[Sequence] = []
        self._turn = 0
        self._timed: tuple[Sequence, int, float] | None = None
        self.chunk_limit = LARGEST_CHUNK
        """Positions a chunk may take at most, as memory allows."""

    def __len__(self) -> int:
        return len(self._waiting)

    @property
    def sequences(self) -> list[Sequence]:
        return self._waiting

    def add(self, sequence: Sequence) -> None:
        self._waiting.append(sequence)
        self._live.append(sequence)

    def restart(self, sequence: Sequence) -> None:
        """Prefills prompt and answer of a sequence whose cache was lost."""
        sequence.todo = np.concatenate([sequence.prompt, np.array(sequence.generated, dtype=np.int32)])
        sequence.cache = None
        sequence.snapshots = []
        sequence.pending = 0
        sequence.sampler.rewind(len(sequence.generated))
        if sequence not in self._waiting:
            self._waiting.append(sequence)

    def forget_ended(self) -> None:
        self._waiting = [sequence for sequence in self._waiting if not sequence.done]
        self._live = [sequence for sequence in self._live if not sequence.done]

    def choose(self) -> Sequence:
        """Whose chunk is next. There must be a sequence."""
        self._turn += 1
        ready = [
            sequence for sequence in self._waiting if sequence.cache is not None or not self._should_wait(sequence)
        ]
        if self._turn % 2:
            return ready[0]
        return min(ready, key=lambda sequence: len(sequence.todo) - sequence.position)

    def budget(self, *, busy: bool) -> int:
        """Tokens that this step may prefill; `busy` says that others are decoding."""
        if self._options.prefill_chunk is not None:
            return self._options.prefill_chunk
        return self._pace.busy_budget() if busy else self._pace.idle_budget()

    def remaining(self, sequence: Sequence) -> int:
        """Tokens of a sequence that are not in its cache, as far as is known before it begins."""
        return len(sequence.todo) - sequence.position

    def advance(self, sequence: Sequence, most: int, *, busy: bool) -> tuple[int, mx.array | None]:
        """Prefills one chunk of at most `most` tokens; how many it was, and logits [1, vocab] when the last token is
        in, and then the sequence is no longer ours. While others are decoding nothing is waited for."""
        if sequence.cache is None:
            self._begin(sequence)
        began = time.perf_counter()
        start = sequence.position
        end = self._chunk_end(sequence, start, most)
        last = end == len(sequence.todo)
        chunk = mx.array(sequence.todo[start:end])[None]
        logits = self._model.prefill(chunk, sequence.cache, need_logits=last)
        written = [*sequence.cache.arrays(), *([] if logits is None else [logits])]
        mx.async_eval(written)  # type: ignore[no-untyped-call]  # mlx's stub leaves *args bare
        latest = sequence.snapshots[-1].offset if sequence.snapshots else 0
        if end in sequence.cuts or end == len(sequence.prompt) or end - latest >= LARGEST_CHUNK // 2:
            sequence.snapshots = list(thin([*sequence.snapshots, sequence.cache.snapshot()]))
        if not busy and not last:
            # Alone there is no decode step that would hold the host back to one chunk ahead.
            mx.eval(*sequence.cache.arrays())
            self._pace.prefilled(end - start, time.perf_counter() - began)
        self._timed = (sequence, end - start, began) if last and not busy else None
        if sequence.request.on_progress is not None and end <= len(sequence.prompt):
            sequence.request.on_progress(end, len(sequence.prompt))
        if last:
            self._waiting.remove(sequence)
        return end - start, logits

    def arrived(self, sequence: Sequence) -> None:
        """The first token of a sequence was read: if nothing else ran meanwhile, that is how long its pass took."""
        if self._timed is not None and self._timed[0] is sequence:
            self._pace.prefilled(self._timed[1], time.perf_counter() - self._timed[2])
            self._timed = None

    def _begin(self, sequence: Sequence) -> None:
        hit = self._prefixes.lookup(sequence.todo, [other.stored() for other in self._started(sequence)])
        if hit is None:
            sequence.cache = self._model.make_cache()
        else:
            sequence.cache = hit.cache
            sequence.snapshots = list(hit.snapshots)
            if not sequence.generated:
                sequence.cached_tokens = hit.position
        if sequence.request.on_progress is not None:
            sequence.request.on_progress(min(sequence.position, len(sequence.prompt)), len(sequence.prompt))

    def _started(self, sequence: Sequence) -> list[Sequence]:
        if self._options.prefix_cache_bytes == 0:
            return []
        return [other for other in self._live if other is not sequence and other.cache is not None and not other.done]

    def _should_wait(self, sequence: Sequence) -> bool:
        """Whether an unfinished prefill will soon offer clearly more of this prompt than there is now."""
        if self._options.prefix_cache_bytes == 0:
            return False
        unfinished = [other for other in self._waiting if other.cache is not None]
        if not unfinished:
            return False
        ahead = max(self._promised(other, sequence) for other in unfinished)
        if ahead < _WORTH_WAITING:
            return False
        now = self._prefixes.best(sequence.todo, [other.stored() for other in self._started(sequence)])
        return ahead >= now + _WORTH_WAITING

    @staticmethod
    def _promised(other: Sequence, sequence: Sequence) -> int:
        shared = min(common_prefix(other.todo, sequence.todo), len(sequence.todo) - 1)
        return max(reached(cut, shared) for cut in (*other.cuts, len(other.prompt)))

    def _chunk_end(self, sequence: Sequence, start: int, most: int) -> int:
        end = min(start + min(most, self.chunk_limit), len(sequence.todo))
        cuts = [cut for cut in sequence.cuts if start < cut <= end]
        return min(cuts) if cuts else end


def choose_cuts(boundaries: tuple[int, ...], length: int, gap: int) -> tuple[int, ...]:
    """Where to end a chunk for a snapshot: the first boundary, and of the others, going back from the end, each that
    leaves at least `gap` tokens to the one after it or to the end of the prompt, where there is a snapshot anyway.
    A cut costs one more pass over the weights."""
    inside = sorted({cut for cut in boundaries if 0 < cut < length})
    cuts: list[int] = []
    after = length
    for cut in reversed(inside):
        if after - cut >= gap or cut == inside[0]:
            cuts.append(cut)
            after = cut
    return tuple(reversed(cuts))
