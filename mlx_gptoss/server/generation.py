"""Running generations from a route: several choices at once, streams that always clean up, disconnects."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack

from fastapi.responses import StreamingResponse
from starlette.requests import Request
from starlette.types import Receive, Scope, Send

from mlx_gptoss.events import Done, Event
from mlx_gptoss.request import ChatRequest
from mlx_gptoss.server.http import service_of
from mlx_gptoss.server.logs import LOGGER, note, noted
from mlx_gptoss.server.service import Running, unless_disconnected
from mlx_gptoss.stream import Completion


class GenerationStream(StreamingResponse):
    """A streaming answer that owns what it streams from.

    When the client is gone before the first byte the body iterator never starts, so cleaning up cannot be left to
    it: the stack is closed here, whatever happens.
    """

    def __init__(self, chunks: AsyncIterator[str], stack: AsyncExitStack, media_type: str) -> None:
        super().__init__(
            chunks, media_type=media_type, headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
        )
        self._stack = stack

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            await self._stack.aclose()


async def start(
    request: Request,
    stack: AsyncExitStack,
    model: str | None,
    chats: Sequence[ChatRequest],
    keep_alive_s: float | None = None,
) -> list[Running]:
    """Start generations that end when the stack is closed. Raises what makes them impossible, leaving nothing open."""
    service = service_of(request)
    if service.settings.log_prompts:
        for chat in chats:
            LOGGER.info("prompt %r", [message.text for message in chat.messages] or chat.raw_prompt)
    try:
        return await stack.enter_async_context(service.run(model, chats, keep_alive_s))
    except BaseException:
        await stack.aclose()
        raise


async def begin(
    request: Request,
    stack: AsyncExitStack,
    model: str | None,
    chats: Sequence[ChatRequest],
    keep_alive_s: float | None = None,
) -> list[Running]:
    """As `start`, for streams: a client that leaves while a model loads or is waited for is noticed."""
    return await unless_disconnected(request, lambda: start(request, stack, model, chats, keep_alive_s))


async def complete(
    request: Request, model: str | None, chats: Sequence[ChatRequest], keep_alive_s: float | None = None
) -> tuple[list[Completion], list[Running]]:
    """Run generations to their end and fold them; they are cancelled when the client goes away."""

    async def work() -> tuple[list[Completion], list[Running]]:
        async with AsyncExitStack() as stack:
            running = await start(request, stack, model, chats, keep_alive_s)
            completions = await asyncio.gather(*(generation.completion() for generation in running))
            for completion in completions:
                note_completion(request, completion)
            return list(completions), running

    return await unless_disconnected(request, work)


def note_completion(request: Request, completion: Completion | Done) -> None:
    """Put a generation's counts into the request's log line; what several choices generate adds up."""
    usage = completion.usage
    note(
        request.state,
        prompt_tokens=usage.prompt_tokens,
        cached_tokens=usage.cached_tokens,
        completion_tokens=usage.completion_tokens + noted(request.state).get("completion_tokens", 0),
        finish_reason=completion.finish_reason,
    )


async def merge(streams: Sequence[AsyncIterator[Event]]) -> AsyncIterator[tuple[int, Event]]:
    """Events of several generations as they come, each with the index of its stream."""
    if len(streams) == 1:
        async for event in streams[0]:
            yield 0, event
        return
    queue: asyncio.Queue[tuple[int, Event | BaseException | None]] = asyncio.Queue(maxsize=64)

    async def pump(index: int, stream: AsyncIterator[Event]) -> None:
        try:
            async for event in stream:
                await queue.put((index, event))
            await queue.put((index, None))
        except Exception as error:
            await queue.put((index, error))

    tasks = [asyncio.ensure_future(pump(index, stream)) for index, stream in enumerate(streams)]
    open_streams = len(tasks)
    try:
        while open_streams:
            index, item = await queue.get()
            if item is None:
                open_streams -= 1
            elif isinstance(item, BaseException):
                raise item
            else:
                yield index, item
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def guarded(chunks: AsyncIterator[str], on_error: Callable[[Exception], str]) -> AsyncIterator[str]:
    """Pass chunks on; an exception becomes the API's last words instead of a broken connection."""
    try:
        async for chunk in chunks:
            yield chunk
    except Exception as error:
        yield on_error(error)
