"""Anthropic's `/v1/messages` and `/v1/messages/count_tokens`."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

from fastapi import APIRouter
from fastapi.responses import JSONResponse, Response
from starlette.requests import Request

from mlx_gptoss.events import Done
from mlx_gptoss.server.failure import body_of
from mlx_gptoss.server.generation import GenerationStream, begin, complete, guarded, note_completion
from mlx_gptoss.server.http import SSE, body_schema, read_body, service_of, sse, stream_failure
from mlx_gptoss.server.openapi import answers
from mlx_gptoss.server.service import Running
from mlx_gptoss.server.wire.anthropic import CountBody, EventWriter, MessagesBody, answer_of, shows_thinking, to_request

router = APIRouter(tags=["anthropic"])


@router.post(
    "/v1/messages",
    responses=answers("id", "type", "content", "usage", stream=SSE),
    openapi_extra=body_schema(MessagesBody),
)
async def messages(request: Request) -> Response:
    """Anthropic Messages, streaming or whole."""
    body = await read_body(request, MessagesBody)
    chat = to_request(body)
    identifier = f"msg_{uuid.uuid4().hex}"
    if not body.stream:
        completions, _ = await complete(request, body.model, [chat])
        return JSONResponse(answer_of(identifier, body.model, completions[0], thinking=shows_thinking(body)))
    stack = AsyncExitStack()
    running = await begin(request, stack, body.model, [chat])
    writer = EventWriter(identifier, body.model, shows_thinking(body))
    return GenerationStream(guarded(_events(request, running[0], writer), error_event), stack, SSE)


async def _events(request: Request, running: Running, writer: EventWriter) -> AsyncIterator[str]:
    for record in writer.open(running.prompt_tokens):
        yield sse(record, event=record["type"])
    async for event in running.events:
        if isinstance(event, Done):
            note_completion(request, event)
        for record in writer.write(event):
            yield sse(record, event=record["type"])


def error_event(error: Exception) -> str:
    """The last event of a stream that failed midway."""
    return sse(body_of(stream_failure(error), "anthropic"), event="error")


@router.post("/v1/messages/count_tokens", responses=answers("input_tokens"), openapi_extra=body_schema(CountBody))
async def count_tokens(request: Request) -> Response:
    """How many tokens a request's prompt has."""
    body = await read_body(request, CountBody)
    chat = to_request(body)
    async with service_of(request).models.use(body.model) as lease:
        count = await asyncio.to_thread(lease.model.llm.count_tokens, chat)
    return JSONResponse({"input_tokens": count})
