"""OpenAI's `/v1/responses`: create (whole, streaming or in the background), retrieve, cancel, delete, input items."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

from fastapi import APIRouter
from fastapi.responses import JSONResponse, Response
from starlette.requests import Request

from mlx_gptoss.errors import ContextOverflowError, InvalidRequestError
from mlx_gptoss.events import Done
from mlx_gptoss.messages import AssistantMessage, Message
from mlx_gptoss.request import ChatRequest
from mlx_gptoss.server.generation import GenerationStream, guarded, note_completion, start
from mlx_gptoss.server.http import SSE, body_schema, read_body, service_of, sse, stream_failure, streaming
from mlx_gptoss.server.openapi import answers
from mlx_gptoss.server.response_store import PreviousResponseError, ResponseNotFoundError, ResponseStore, StoredResponse
from mlx_gptoss.server.service import Running, unless_disconnected
from mlx_gptoss.server.wire.response_items import messages_of, new_id, stored_items
from mlx_gptoss.server.wire.response_stream import ResponseWriter
from mlx_gptoss.server.wire.responses import (
    SEALED_REASONING,
    ResponsesBody,
    check,
    response_object,
    shortened,
    to_request,
)
from mlx_gptoss.stream import CompletionBuilder

router = APIRouter(tags=["openai"])
MAX_PAGE = 100


def store_of(request: Request) -> ResponseStore:
    """The response store of the application that handles this request."""
    store = request.app.state.responses
    if not isinstance(store, ResponseStore):
        raise TypeError("the application has no response store")
    return store


class _Job:
    """One response being made: the request it came from, the writer, and where the result is kept."""

    def __init__(self, request: Request, body: ResponsesBody) -> None:
        self.request = request
        self.body = body
        self.store = store_of(request)
        service = service_of(request)
        self.model = body.model or service.models.target(None)[0]
        earlier: tuple[Message, ...] = ()
        if body.previous_response_id is not None:
            try:
                previous = self.store.get(body.previous_response_id)
            except ResponseNotFoundError as error:
                raise PreviousResponseError(
                    f"previous response with id {body.previous_response_id!r} not found", param="previous_response_id"
                ) from error
            if previous.response["status"] in ("queued", "in_progress"):
                raise InvalidRequestError("the previous response is not finished", param="previous_response_id")
            earlier = previous.history
        self.messages = (*earlier, *messages_of(body.input, self.store.item))
        self.chat = to_request(body, self.messages)
        response = response_object(body, new_id("resp"), self.model, int(time.time()), "in_progress", [])
        self.writer = ResponseWriter(response, sealed=SEALED_REASONING in (body.include or ()))
        self.stored = StoredResponse(response, stored_items(body.input), self.messages)
        self._builder = CompletionBuilder()

    async def start(self, stack: AsyncExitStack) -> Running:
        """Start generating; with `truncation: auto` the oldest messages give way until the prompt fits."""
        chat: ChatRequest | None = self.chat
        while chat is not None:
            try:
                return (await start(self.request, stack, self.body.model, [chat]))[0]
            except ContextOverflowError:
                chat = shortened(chat) if self.body.truncation == "auto" else None
                if chat is None:
                    raise
        raise ContextOverflowError("the prompt does not fit")

    async def records(self, running: Running) -> AsyncIterator[dict[str, Any]]:
        """All stream events of the response; the result is stored before the last ones go out."""
        for record in self.writer.open():
            yield record
        async for event in running.events:
            self._builder.add(event)
            records = self.writer.write(event, int(time.time()))
            if isinstance(event, Done):
                note_completion(self.request, event)
                self._keep()
            for record in records:
                yield record

    def _keep(self) -> None:
        final = self.writer.final
        if final is None or self.body.store is False:
            return
        completion = self._builder.build()
        said: AssistantMessage = completion.message
        self.stored.response = final
        self.stored.history = (*self.messages, said)
        self.store.put(self.stored)

    def fail(self, error: Exception) -> list[dict[str, Any]]:
        """The events of a response that broke off; what is stored says so too."""
        failure = stream_failure(error)
        records = self.writer.failed({"code": failure.code or "server_error", "message": failure.message})
        if self.writer.final is not None and self.body.store is not False:
            self.stored.response = self.writer.final
            self.store.put(self.stored)
        return records


@router.post(
    "/v1/responses",
    responses=answers("id", "object", "status", "output", stream=SSE),
    openapi_extra=body_schema(ResponsesBody),
)
async def create(request: Request) -> Response:
    """Make a response."""
    body = await read_body(request, ResponsesBody)
    check(body)
    job = _Job(request, body)
    if body.background:
        return await _in_background(job)
    if not body.stream:

        async def work() -> Response:
            async with AsyncExitStack() as stack:
                async for _ in job.records(await job.start(stack)):
                    pass
            return JSONResponse(job.writer.final)

        return await unless_disconnected(request, work)
    stack = AsyncExitStack()
    running = await unless_disconnected(request, lambda: job.start(stack))
    chunks = (sse(record, event=record["type"]) async for record in job.records(running))
    return GenerationStream(
        guarded(chunks, lambda error: "".join(sse(r, event=r["type"]) for r in job.fail(error))), stack, SSE
    )


async def _in_background(job: _Job) -> Response:
    """A response that outlives its request. A stream of it shows the same events; leaving it stops nothing."""
    stack = AsyncExitStack()
    running = await job.start(stack)
    shown: asyncio.Queue[dict[str, Any] | None] = asyncio.Queue()
    streamed = job.body.stream is True

    async def work() -> None:
        async with stack:
            try:
                async for record in job.records(running):
                    if streamed:
                        shown.put_nowait(record)
            except asyncio.CancelledError:
                job.stored.response = {**job.stored.response, "status": "cancelled", "output": job.writer.output}
                raise
            except Exception as error:
                for record in job.fail(error):
                    shown.put_nowait(record)
            finally:
                shown.put_nowait(None)

    job.stored.task = asyncio.create_task(work())
    job.store.put(job.stored)
    if not streamed:
        return JSONResponse({**job.stored.response, "status": "queued"})

    async def events() -> AsyncIterator[str]:
        while (record := await shown.get()) is not None:
            yield sse(record, event=record["type"])

    return streaming(events(), SSE)


@router.get("/v1/responses/{identifier}", responses=answers("id", "object", "status", "output"))
async def retrieve(request: Request, identifier: str, stream: bool = False) -> Response:
    """A stored response, whole: its events are streamed once, to whoever made it."""
    if stream:
        raise InvalidRequestError(
            "a stored response cannot be streamed", param="stream", hint="Retrieve it until its status is final."
        )
    return JSONResponse(store_of(request).get(identifier).response)


@router.delete("/v1/responses/{identifier}", responses=answers("id", "deleted"))
async def delete(request: Request, identifier: str) -> Response:
    """Forget a stored response."""
    store_of(request).delete(identifier)
    return JSONResponse({"id": identifier, "object": "response", "deleted": True})


@router.post("/v1/responses/{identifier}/cancel", responses=answers("id", "object", "status", "output"))
async def cancel(request: Request, identifier: str) -> Response:
    """Cancel a background response."""
    stored = store_of(request).get(identifier)
    if not stored.response["background"]:
        raise InvalidRequestError("only background responses can be cancelled", param="response_id")
    if stored.task is not None and not stored.task.done():
        stored.task.cancel()
        await asyncio.gather(stored.task, return_exceptions=True)
        if stored.response["status"] in ("queued", "in_progress"):
            stored.response = {**stored.response, "status": "cancelled"}
    return JSONResponse(stored.response)


@router.get("/v1/responses/{identifier}/input_items", responses=answers("object", "data", "has_more"))
async def input_items(
    request: Request, identifier: str, limit: int = 20, order: str = "desc", after: str | None = None
) -> Response:
    """The input items of a stored response, a page at a time."""
    if not 1 <= limit <= MAX_PAGE:
        raise InvalidRequestError("limit is out of range", param="limit", expected=f"1 to {MAX_PAGE}", got=str(limit))
    if order not in ("asc", "desc"):
        raise InvalidRequestError("unknown order", param="order", expected="asc or desc", got=repr(order)[:40])
    items = store_of(request).get(identifier).input_items
    listed = list(items) if order == "asc" else list(reversed(items))
    if after is not None:
        places = [index for index, item in enumerate(listed) if item["id"] == after]
        if not places:
            raise InvalidRequestError("no such item", param="after", got=repr(after)[:80])
        listed = listed[places[0] + 1 :]
    page = listed[:limit]
    return JSONResponse(
        {
            "object": "list",
            "data": page,
            "first_id": page[0]["id"] if page else None,
            "last_id": page[-1]["id"] if page else None,
            "has_more": len(listed) > limit,
        }
    )
