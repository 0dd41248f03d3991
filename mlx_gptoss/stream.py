"""The streaming form of an answer, and the answer that its events fold into."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType

from mlx_gptoss.engine import Generation, TokenEvent
from mlx_gptoss.errors import GptOssError, InternalError
from mlx_gptoss.events import (
    Done,
    Event,
    FinishReason,
    PreambleDelta,
    ReasoningDelta,
    TextDelta,
    Timings,
    TokenLogprob,
    ToolCallEnd,
    Usage,
)
from mlx_gptoss.messages import AssistantMessage, ToolCall
from mlx_gptoss.turn_reader import TurnReader


@dataclass(frozen=True, slots=True)
class Completion:
    """A whole answer. `logprobs` are of the answer's text alone, when they were asked for; `token_ids` are all
    generated tokens, the stop token included; `stop` is the stop string that ended the text, if one did."""

    text: str
    reasoning: str
    preamble: str
    tool_calls: tuple[ToolCall, ...]
    finish_reason: FinishReason
    usage: Usage
    timings: Timings
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()
    stop: str | None = None

    @property
    def message(self) -> AssistantMessage:
        """The turn as a message for the history of the next request; carries its tokens, so nothing is prefilled
        twice."""
        return AssistantMessage(
            text=self.text,
            reasoning=self.reasoning,
            preamble=self.preamble,
            tool_calls=self.tool_calls,
            token_ids=self.token_ids or None,
        )


class CompletionBuilder:
    """Folds events into a Completion."""

    def __init__(self) -> None:
        self._text: list[str] = []
        self._reasoning: list[str] = []
        self._preamble: list[str] = []
        self._calls: list[ToolCall] = []
        self._logprobs: list[TokenLogprob] = []
        self._done: Done | None = None

    @property
    def error(self) -> str | None:
        """The one-line message of a generation that failed, else None."""
        return None if self._done is None else self._done.error

    def add(self, event: Event) -> None:
        """Takes the next event."""
        if isinstance(event, TextDelta):
            self._text.append(event.text)
            self._logprobs += event.logprobs
        elif isinstance(event, ReasoningDelta):
            self._reasoning.append(event.text)
        elif isinstance(event, PreambleDelta):
            self._preamble.append(event.text)
        elif isinstance(event, ToolCallEnd):
            self._calls.append(ToolCall(event.call_id, event.name, event.arguments))
        elif isinstance(event, Done):
            self._done = event

    def build(self) -> Completion:
        """The answer. Raises InternalError before the `Done` event."""
        if self._done is None:
            raise InternalError("the stream has not ended")
        return Completion(
            text="".join(self._text),
            reasoning="".join(self._reasoning),
            preamble="".join(self._preamble),
            tool_calls=tuple(self._calls),
            finish_reason=self._done.finish_reason,
            usage=self._done.usage,
            timings=self._done.timings,
            token_ids=self._done.token_ids,
            logprobs=tuple(self._logprobs),
            stop=self._done.stop,
        )


class Stream:
    """Events of one answer as they come, ending with `Done`. Iterate it once, with `for` or `async for`.

    Leaving its context, dropping it or `cancel` ends the generation within one step. `result` reads the rest and
    folds everything.
    """

    def __init__(
        self, generation: Generation, reader: TurnReader, on_done: Callable[[Completion], None] | None = None
    ) -> None:
        self._generation = generation
        self._reader = reader
        self._on_done = on_done
        self._ready: deque[Event] = deque()
        self._builder = CompletionBuilder()
        self._completion: Completion | None = None
        self._reading = threading.Lock()

    @property
    def error(self) -> GptOssError | None:
        """Why the generation failed; None while it runs and when it did not."""
        finished = self._generation.finished
        return None if finished is None else finished.error

    @property
    def prompt_tokens(self) -> int:
        """How many tokens the prompt has."""
        return len(self._generation.request.prompt_ids)

    def cancel(self) -> None:
        """Ends the generation within one step; the stream then ends with finish reason "cancelled". Thread-safe."""
        self._generation.cancel()

    def result(self) -> Completion:
        """Blocks until the end. Raises the error of a generation that failed; a cancelled one gives what there is."""
        for _ in self:
            pass
        return self._folded()

    async def aresult(self) -> Completion:
        """As `result`, without blocking the event loop; cancelling the task cancels the generation."""
        try:
            async for _ in self:
                pass
        finally:
            self.cancel()
        return self._folded()

    def __iter__(self) -> Stream:
        return self

    def __next__(self) -> Event:
        with self._reading:
            while not self._ready:
                if self._completion is not None:
                    raise StopIteration
                self._advance(self._generation.next_tokens())
            return self._ready.popleft()

    def __aiter__(self) -> Stream:
        return self

    async def __anext__(self) -> Event:
        while not self._ready:
            if self._completion is not None:
                raise StopAsyncIteration
            self._advance(await self._generation.next_tokens_async())
        return self._ready.popleft()

    def __enter__(self) -> Stream:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.cancel()
        if self._on_done is not None:
            # Somebody keeps the answer: what there is of it is read, which takes a step at most.
            for _ in self:
                pass

    async def __aenter__(self) -> Stream:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.cancel()
        if self._on_done is not None:
            async for _ in self:
                pass

    def __del__(self) -> None:
        self._generation.cancel()

    def _advance(self, tokens: list[TokenEvent] | None) -> None:
        events: list[Event] = []
        if tokens is None:
            finished = self._generation.wait()
            if finished is None:
                raise InternalError("a generation ended without saying how")
            events = self._reader.finish(finished)
        else:
            for token in tokens:
                events += self._reader.feed(token)
            if self._reader.stopped:
                self._generation.cancel("stop")
        for event in events:
            self._builder.add(event)
        self._ready.extend(events)
        if tokens is None:
            self._completion = self._builder.build()
            if self._on_done is not None:
                self._on_done(self._completion)

    def _folded(self) -> Completion:
        if self.error is not None:
            raise self.error
        if self._completion is None:
            raise InternalError("the stream has not ended")
        return self._completion
