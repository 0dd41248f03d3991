"""One generation as its caller holds it: a request, and a stream of tokens that ends with how it finished."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field

from mlx_gptoss.engine.constraint import TokenConstraint
from mlx_gptoss.errors import GptOssError
from mlx_gptoss.events import FinishReason, Timings, Usage
from mlx_gptoss.request import SamplingParams

STOP_IDS = (200_002, 200_012)
"""`<|return|>` and `<|call|>`: the two tokens that end a turn."""


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """What the engine is asked for, in token ids.

    `max_tokens` None means up to the context. `boundaries` are prompt positions where another prompt is likely to
    part from this one (ends of messages). Requests with the same `cache_key` are one conversation: a newer state
    replaces the stored older one. `on_progress(done, total)` counts prompt tokens, on the engine's thread.
    """

    prompt_ids: tuple[int, ...]
    sampling: SamplingParams = field(default_factory=SamplingParams)
    max_tokens: int | None = None
    stop_ids: tuple[int, ...] = STOP_IDS
    constraint: TokenConstraint | None = None
    boundaries: tuple[int, ...] = ()
    repetition_stop: bool = True
    timeout_s: float | None = None
    cache_key: str | None = None
    on_progress: Callable[[int, int], None] | None = None


@dataclass(frozen=True, slots=True)
class TokenEvent:
    """One generated token. Natural-log probabilities under the model itself: before temperature and penalties."""

    token_id: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, slots=True)
class Finished:
    """How a generation ended. `error` is set when `finish_reason` is "error"."""

    finish_reason: FinishReason
    usage: Usage
    timings: Timings
    error: GptOssError | None = None


class Generation:
    """A handle on a submitted request: iterate it (sync or async) for its tokens, then read `finished`.

    Made by `Engine.submit`. One consumer; `cancel` may come from any thread.
    """

    def __init__(self, request: GenerationRequest) -> None:
        self.request = request
        self.submitted = time.perf_counter()
        self._lock = threading.Condition()
        self._events: deque[TokenEvent] = deque()
        self._finished: Finished | None = None
        self._cancel: FinishReason | None = None
        self._waiter: tuple[asyncio.AbstractEventLoop, asyncio.Future[None]] | None = None

    @property
    def finished(self) -> Finished | None:
        """How it ended; None while it runs. Set before the last token is read."""
        return self._finished

    @property
    def cancel_reason(self) -> FinishReason | None:
        """What the generation will finish as because somebody asked; None when nobody did."""
        return self._cancel

    def cancel(self, reason: FinishReason = "cancelled") -> None:
        """Ends the generation within one step, with `reason`. The first call wins; no effect once finished."""
        if self._cancel is None:
            self._cancel = reason

    def __iter__(self) -> Iterator[TokenEvent]:
        while (events := self.next_tokens()) is not None:
            yield from events

    async def __aiter__(self) -> AsyncIterator[TokenEvent]:
        while (events := await self.next_tokens_async()) is not None:
            for event in events:
                yield event

    def wait(self, timeout: float | None = None) -> Finished | None:
        """Blocks until it finished or `timeout` seconds went by; unread tokens stay readable."""
        with self._lock:
            self._lock.wait_for(lambda: self._finished is not None, timeout)
        return self._finished

    def next_tokens(self) -> list[TokenEvent] | None:
        """Blocks for at least one token; None when it finished and all were read."""
        with self._lock:
            while not self._events:
                if self._finished is not None:
                    return None
                self._lock.wait()
            return self._drain()

    async def next_tokens_async(self) -> list[TokenEvent] | None:
        """As `next_tokens`, without blocking the event loop."""
        loop = asyncio.get_running_loop()
        while True:
            with self._lock:
                if self._events:
                    return self._drain()
                if self._finished is not None:
                    return None
                future: asyncio.Future[None] = loop.create_future()
                self._waiter = (loop, future)
            try:
                await future
            finally:
                self._waiter = None

    def _drain(self) -> list[TokenEvent]:
        events = list(self._events)
        self._events.clear()
        return events

    def push(self, event: TokenEvent) -> None:
        """For the engine: hands one token over."""
        with self._lock:
            self._events.append(event)
            self._wake()

    def finish(self, finished: Finished) -> None:
        """For the engine: ends the stream. Only the first call counts."""
        with self._lock:
            if self._finished is None:
                self._finished = finished
            self._wake()

    def _wake(self) -> None:
        self._lock.notify_all()
        if self._waiter is not None:
            loop, future = self._waiter
            self._waiter = None
            # The consumer's loop may have closed under us; nobody is left to wake then.
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(_settle, future)


def _settle(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
