"""`POST /v1/chat/completions`."""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack
from dataclasses import replace

from fastapi import APIRouter
from fastapi.responses import JSONResponse, Response
from starlette.requests import Request

from mlx_gptoss import __version__
from mlx_gptoss.events import Done
from mlx_gptoss.request import ChatRequest
from mlx_gptoss.server.failure import body_of
from mlx_gptoss.server.generation import GenerationStream, begin, complete, guarded, merge, note_completion
from mlx_gptoss.server.http import SSE, body_schema, read_body, sse, stream_failure
from mlx_gptoss.server.openapi import answers
from mlx_gptoss.server.service import Running
from mlx_gptoss.server.wire import openai
from mlx_gptoss.server.wire.chat_completions import ChatCompletionBody, ChunkWriter, answer_of, to_request

FINGERPRINT = f"mlx-gptoss-{__version__}"
router = APIRouter(tags=["openai"])


def choices(chat: ChatRequest, n: int) -> list[ChatRequest]:
    """One request a choice; a seed is spread so that the choices differ and stay reproducible."""
    seed = chat.sampling.seed
    if n == 1 or seed is None:
        return [chat] * n
    return [replace(chat, sampling=replace(chat.sampling, seed=seed + index)) for index in range(n)]


@router.post(
    "/v1/chat/completions",
    responses=answers("id", "object", "choices", "usage", stream=SSE),
    openapi_extra=body_schema(ChatCompletionBody),
)
async def chat_completions(request: Request) -> Response:
    """OpenAI chat completions, streaming or whole."""
    body = await read_body(request, ChatCompletionBody)
    chats = choices(to_request(body), body.n or 1)
    identifier, created = f"chatcmpl-{uuid.uuid4().hex}", int(time.time())
    logprobs = body.logprobs is True
    if not body.stream:
        completions, _ = await complete(request, body.model, chats)
        return JSONResponse(answer_of(identifier, body.model, created, FINGERPRINT, completions, logprobs))
    include_usage = body.stream_options is not None and body.stream_options.include_usage is True
    writers = [
        ChunkWriter(identifier, body.model, created, FINGERPRINT, index, logprobs, include_usage)
        for index in range(len(chats))
    ]
    stack = AsyncExitStack()
    running = await begin(request, stack, body.model, chats)
    chunks = guarded(_chunks(request, running, writers), error_event)
    return GenerationStream(chunks, stack, SSE)


async def _chunks(request: Request, running: Sequence[Running], writers: Sequence[ChunkWriter]) -> AsyncIterator[str]:
    for writer in writers:
        yield sse(writer.open())
    async for index, event in merge([generation.events for generation in running]):
        if isinstance(event, Done):
            note_completion(request, event)
        for chunk in writers[index].write(event):
            yield sse(chunk)
    if writers[0].include_usage:
        usage = openai.summed([writer.done.usage for writer in writers if writer.done is not None])
        yield sse({**writers[0].frame([]), "usage": openai.usage_of(usage)})
    yield sse("[DONE]")


def error_event(error: Exception) -> str:
    """The last event of a stream that failed midway."""
    return sse(body_of(stream_failure(error), "openai")) + sse("[DONE]")
