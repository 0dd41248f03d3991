"""One request while the engine works on it."""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from mlx_gptoss.engine.generation import Finished, Generation, TokenEvent
from mlx_gptoss.engine.prefix import TokenIds
from mlx_gptoss.engine.prefix_cache import Stored
from mlx_gptoss.engine.repetition import RepetitionDetector
from mlx_gptoss.engine.row_sampler import RowSampler
from mlx_gptoss.errors import GptOssError
from mlx_gptoss.events import FinishReason, Timings, Usage


class Sequence:
    """Tokens, cache and clocks of one request. Used by the engine's thread alone.

    `cache` holds the first `cache.offset` of prompt and generated tokens. `pending` counts tokens that were drawn
    on the device and not read yet.
    """

    def __init__(self, generation: Generation, prompt: TokenIds, max_tokens: int, cuts: tuple[int, ...]) -> None:
        request = generation.request
        self.generation = generation
        self.request = request
        self.prompt = prompt
        self.max_tokens = max_tokens
        self.cuts = cuts
        self.generated: list[int] = []
        self.todo = prompt
        self.cache: Any = None
        self.snapshots: list[Any] = []
        self.cached_tokens = 0
        self.pending = 0
        self.alone = False
        self.sampler = RowSampler(request.sampling, prompt[-max(request.sampling.repetition_context, 1) :].tolist())
        self.repetition = RepetitionDetector() if request.repetition_stop else None
        self.done = False
        self._started = time.perf_counter()
        self._first: float | None = None
        self._last = self._started

    @property
    def position(self) -> int:
        """Tokens in the cache."""
        return 0 if self.cache is None else int(self.cache.offset)

    @property
    def exhausted(self) -> bool:
        """Whether the drawn tokens, read or not, are all that may be drawn."""
        return len(self.generated) + self.pending >= self.max_tokens

    @property
    def waits_for_host(self) -> bool:
        """Whether the next draw needs the tokens before it on the host."""
        return self.request.constraint is not None or self.sampler.penalised

    def stored(self) -> Stored:
        """What is in the cache, for others to re-enter."""
        tokens = np.concatenate([self.prompt, np.array(self.generated, dtype=np.int32)])[: self.position]
        inside = [cut for cut in self.request.boundaries if 0 < cut < len(self.prompt)]
        keep_from = max(inside, default=len(self.prompt))
        return Stored(tokens, self.cache, tuple(self.snapshots), self.request.cache_key, min(keep_from, len(tokens)))

    def overdue(self, now: float) -> bool:
        """Whether the request's time is over."""
        limit = self.request.timeout_s
        return limit is not None and now - self.generation.submitted > limit

    def accept(self, event: TokenEvent) -> FinishReason | None:
        """Takes a token that was read from the device; how the generation ends with it, or None to go on.

        Raises whatever the request's constraint raises."""
        token = event.token_id
        self._last = time.perf_counter()
        if self._first is None:
            self._first = self._last
        self.generated.append(token)
        self.sampler.observe(token)
        stops = token in self.request.stop_ids
        if self.request.constraint is not None and not stops:
            self.request.constraint.advance(token)
        self.generation.push(event)
        if stops:
            return "stop"
        if self.repetition is not None and self.repetition.update(token):
            return "repetition"
        return "length" if len(self.generated) >= self.max_tokens else None

    def finish(self, reason: FinishReason, peak_memory: int, error: GptOssError | None = None) -> Finished:
        """Ends the stream the caller reads."""
        self.done = True
        now = time.perf_counter()
        first = self._first if self._first is not None else now
        prefill_s = first - self._started
        decode_s = self._last - first if self._first is not None else 0.0
        prefilled = len(self.prompt) - self.cached_tokens
        finished = Finished(
            finish_reason=reason,
            usage=Usage(
                prompt_tokens=len(self.prompt),
                cached_tokens=self.cached_tokens,
                completion_tokens=len(self.generated),
            ),
            timings=Timings(
                queue_s=self._started - self.generation.submitted,
                prefill_s=prefill_s,
                decode_s=decode_s,
                first_token_s=first - self.generation.submitted,
                total_s=now - self.generation.submitted,
                prefill_tps=prefilled / prefill_s if prefill_s > 0 else 0.0,
                decode_tps=(len(self.generated) - 1) / decode_s if decode_s > 0 else 0.0,
                peak_memory_bytes=peak_memory,
            ),
            error=error,
        )
        self.generation.finish(finished)
        return finished
