"""Prefill: prompts into caches, chunk by chunk, with snapshots where other prompts may part from this one."""

from __future__ import annotations

import time
from typing import Final

import mlx.core as mx
import numpy as np

from mlx_gptoss.engine.options import EngineOptions
from mlx_gptoss.engine.prefix_cache import PrefixCache, common_prefix, thin
from mlx_gptoss.engine.sequence import Sequence
from mlx_gptoss.engine.token_model import TokenModel

LARGEST_CHUNK: Final = 2048
SMALLEST_CHUNK: Final = 64
FIRST_BUSY_CHUNK: Final = 256
BUSY_SECONDS: Final = 0.12
_WORTH_WAITING: Final = 64


class Prefiller:
    """The sequences whose prompts are not in their caches yet.

    They start in the order they came. Every other chunk goes to the one with the least left to do, so that a short
    prompt does not wait for all of a long one; the oldest gets the chunks between. A prompt that shares its start
    with one being prefilled waits for it, to take over what they share.
    """

    def __init__(self, model: TokenModel, options: EngineOptions, prefixes: PrefixCache) -> None:
        self._model = model
        self._options = options
        self._prefixes = prefixes
        self._live: list[Sequence] = []
        self._waiting: list[Sequence] = []
        self._turn = 0
        self._tokens_per_second: float | None = None
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

    def advance(self, sequence: Sequence, *, busy: bool) -> mx.array | None:
        """Prefills one chunk of `sequence`; logits [1, vocab] when its last token is in, and then it is no longer
        ours. `busy` says that others are decoding: the chunk is shorter and nothing is waited for."""
        if sequence.cache is None:
            self._begin(sequence)
        began = time.perf_counter()
        start = sequence.position
        end = self._chunk_end(sequence, start, busy)
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
            self._measure(end - start, time.perf_counter() - began)
        if sequence.request.on_progress is not None and end <= len(sequence.prompt):
            sequence.request.on_progress(end, len(sequence.prompt))
        if last:
            self._waiting.remove(sequence)
        return logits

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
        return max((cut for cut in other.cuts if cut <= shared), default=0)

    def _chunk_end(self, sequence: Sequence, start: int, busy: bool) -> int:
        end = min(start + min(self._chunk_size(busy), self.chunk_limit), len(sequence.todo))
        cuts = [cut for cut in sequence.cuts if start < cut <= end]
        return min(cuts) if cuts else end

    def _chunk_size(self, busy: bool) -> int:
        if self._options.prefill_chunk is not None:
            return self._options.prefill_chunk
        if not busy:
            return LARGEST_CHUNK
        if self._tokens_per_second is None:
            return FIRST_BUSY_CHUNK
        wanted = int(self._tokens_per_second * BUSY_SECONDS) // SMALLEST_CHUNK * SMALLEST_CHUNK
        return max(SMALLEST_CHUNK, min(wanted, LARGEST_CHUNK))

    def _measure(self, tokens: int, seconds: float) -> None:
        if seconds > 0:
            now = tokens / seconds
            before = self._tokens_per_second
            self._tokens_per_second = now if before is None else 0.5 * (before + now)


def choose_cuts(boundaries: tuple[int, ...], length: int, gap: int) -> tuple[int, ...]:
    """Where to end a chunk for a snapshot: the first boundary, the last, and of those between, going back from the
    end, each that leaves at least `gap` tokens to the cut after it. A cut costs one more pass over the weights."""
    inside = sorted({cut for cut in boundaries if 0 < cut < length})
    if not inside:
        return ()
    cuts = [inside[-1]]
    for cut in reversed(inside[:-1]):
        if cuts[-1] - cut >= gap:
            cuts.append(cut)
    if cuts[-1] != inside[0]:
        cuts.append(inside[0])
    return tuple(reversed(cuts))
