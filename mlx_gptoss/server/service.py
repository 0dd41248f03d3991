"""From a ChatRequest and a model name to a stream of events: what every wire format calls."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, replace
from typing import Any, Protocol, TypeVar

from starlette.requests import Request

from mlx_gptoss.errors import CancelledError, EngineClosedError, GptOssError, InvalidRequestError, SchemaError
from mlx_gptoss.events import Done, Event
from mlx_gptoss.messages import SystemMessage
from mlx_gptoss.request import ChatRequest
from mlx_gptoss.server.metrics import Metrics
from mlx_gptoss.server.models import Lease, LoadedModel, ModelManager
from mlx_gptoss.server.settings import ServerSettings
from mlx_gptoss.server.turns import TurnStore
from mlx_gptoss.stream import Completion, CompletionBuilder, Stream

Result = TypeVar("Result")


class Cancellable(Protocol):
    """Work that a client waits for."""

    def cancel(self) -> None:
        """End it soon; no effect once it has ended."""


Work = TypeVar("Work", bound=Cancellable)


@dataclass(frozen=True, slots=True)
class Running:
    """A generation under way. `events` ends with `Done`, or raises the error of a generation that failed; leaving
    the service's context cancels it."""

    model: LoadedModel
    load_s: float
    prompt_tokens: int
    events: AsyncIterator[Event]

    async def completion(self) -> Completion:
        """All events folded into one answer. Raises GptOssError when the generation failed."""
        builder = CompletionBuilder()
        async for event in self.events:
            builder.add(event)
        return builder.build()


class GenerationService:
    """Runs generations for the HTTP layer: leases the model, restores history, counts, and remembers turns."""

    def __init__(self, settings: ServerSettings, models: ModelManager, metrics: Metrics) -> None:
        self.settings = settings
        self.models = models
        self.metrics = metrics
        self.turns = TurnStore(settings.stored_turns)
        self.live: set[Cancellable] = set()
        self._stopping = False

    def check(self, request: ChatRequest) -> None:
        """Refuse what is over the server's bounds before any work is done."""
        settings = self.settings
        if len(request.messages) > settings.max_messages:
            raise InvalidRequestError(
                "too many messages",
                param="messages",
                expected=f"at most {settings.max_messages}",
                got=str(len(request.messages)),
            )
        if len(request.tools) > settings.max_tools:
            raise InvalidRequestError(
                "too many tools", param="tools", expected=f"at most {settings.max_tools}", got=str(len(request.tools))
            )
        for index, tool in enumerate(request.tools):
            self._check_schema(tool.parameters, f"tools.{index}.parameters")
        self._check_schema(request.response_format.schema, "response_format.schema")

    def _check_schema(self, schema: Mapping[str, Any] | None, param: str) -> None:
        if schema is None:
            return
        settings = self.settings
        if _deeper_than(schema, settings.max_schema_depth):
            raise SchemaError(
                "the schema is nested too deeply", param=param, expected=f"at most {settings.max_schema_depth} levels"
            )
        size = len(json.dumps(schema))
        if size > settings.max_schema_bytes:
            raise SchemaError(
                "the schema is too large",
                param=param,
                expected=f"at most {settings.max_schema_bytes} bytes",
                got=str(size),
            )

    @asynccontextmanager
    async def run(
        self, model: str | None, requests: Sequence[ChatRequest], keep_alive_s: float | None = None
    ) -> AsyncIterator[list[Running]]:
        """Start generations of one model. Raises before the first event when they cannot be served at all.

        They share one lease: a second one could wait for room that the first one keeps another model from making.
        """
        if self._stopping:
            raise EngineClosedError("the server is stopping")
        for request in requests:
            self.check(request)
        async with self.models.use(model, keep_alive_s) as lease, AsyncExitStack() as stack:
            yield [await stack.enter_async_context(self._run(lease, request)) for request in requests]

    @asynccontextmanager
    async def _run(self, lease: Lease, request: ChatRequest) -> AsyncIterator[Running]:
        prepared = replace(request, messages=self.turns.restore(request.messages))
        if lease.alias is not None and lease.alias.system and not _has_system(prepared):
            prepared = replace(prepared, messages=(SystemMessage(lease.alias.system), *prepared.messages))
        if prepared.timeout_s is None and self.settings.request_timeout_s is not None:
            prepared = replace(prepared, timeout_s=self.settings.request_timeout_s)
        self.metrics.running.inc()
        try:
            stream = await asyncio.to_thread(lease.model.llm.stream, prepared)
            with self.kept(stream):
                yield Running(lease.model, lease.load_s, stream.prompt_tokens, self._watch(prepared, stream))
        finally:
            self.metrics.running.dec()

    @contextmanager
    def kept(self, work: Work) -> Iterator[Work]:
        """Something under way, which ends with the context, or when the server has to stop before."""
        self.live.add(work)
        try:
            yield work
        finally:
            self.live.discard(work)
            work.cancel()

    async def drain(self, grace_s: float) -> None:
        """Accept nothing new; let what runs finish for `grace_s` seconds, then end it where it is."""
        self._stopping = True
        deadline = time.monotonic() + grace_s
        while self.live and time.monotonic() < deadline:
            await asyncio.sleep(0.05)
        for work in self.live:
            work.cancel()

    async def _watch(self, request: ChatRequest, stream: Stream) -> AsyncIterator[Event]:
        """Pass events on; at the end count them and keep the turn for clients that will drop a part of it."""
        builder = CompletionBuilder()
        async for event in stream:
            builder.add(event)
            if isinstance(event, Done):
                self.metrics.observe(event)
                if event.error is not None:
                    raise stream.error or GptOssError(event.error)
                if request.messages and event.finish_reason in ("stop", "tool_calls"):
                    self.turns.remember(request.messages, builder.build().message)
            yield event


def _deeper_than(value: Any, depth: int) -> bool:
    """Whether containers are nested deeper than `depth`; looks no further than that."""
    if depth < 0:
        return True
    if isinstance(value, Mapping):
        return any(_deeper_than(item, depth - 1) for item in value.values())
    return isinstance(value, list) and any(_deeper_than(item, depth - 1) for item in value)


def _has_system(request: ChatRequest) -> bool:
    return any(isinstance(message, SystemMessage) for message in request.messages)


async def unless_disconnected(request: Request, work: Callable[[], Awaitable[Result]]) -> Result:
    """Await `work()`, but cancel it as soon as the client goes away. Raises CancelledError then."""

    async def watch() -> None:
        while True:
            message = await request.receive()
            if message["type"] == "http.disconnect":
                return

    job = asyncio.ensure_future(work())
    watcher = asyncio.ensure_future(watch())
    try:
        await asyncio.wait({job, watcher}, return_when=asyncio.FIRST_COMPLETED)
        if not job.done():
            raise CancelledError("the client went away")
        return job.result()
    finally:
        for task in (job, watcher):
            if not task.done():
                task.cancel()
        await asyncio.gather(job, watcher, return_exceptions=True)
