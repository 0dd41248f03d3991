"""Ollama's `/api/generate` and `/api/chat`."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

from fastapi import APIRouter
from fastapi.responses import JSONResponse, Response
from starlette.requests import Request

from mlx_gptoss.events import Done
from mlx_gptoss.harmony.special import END, RETURN
from mlx_gptoss.messages import UserMessage
from mlx_gptoss.request import ChatRequest
from mlx_gptoss.server.failure import body_of
from mlx_gptoss.server.generation import GenerationStream, begin, guarded, note_completion, start
from mlx_gptoss.server.http import NDJSON, body_schema, ndjson, read_body, service_of, stream_failure
from mlx_gptoss.server.models import Lease
from mlx_gptoss.server.openapi import answers
from mlx_gptoss.server.service import Running, unless_disconnected
from mlx_gptoss.server.wire.ollama import (
    ChatBody,
    GenerateBody,
    LineWriter,
    OllamaBody,
    chat_request,
    fold,
    generate_request,
    keep_alive_of,
)

# How long a model stays between counting a prompt and answering it.
_BETWEEN_S = 5.0
router = APIRouter(tags=["ollama"])


@router.post(
    "/api/generate",
    responses=answers("model", "response", "done", stream=NDJSON),
    openapi_extra=body_schema(GenerateBody),
)
async def generate(request: Request) -> Response:
    """Ollama's generate: one prompt, streamed by default. An empty prompt loads or unloads the model."""
    body = await read_body(request, GenerateBody)
    if not body.prompt:
        return await _load_only(request, body, chat=False)
    keep_alive_of(body)  # What is wrong with it is said before anything is loaded.
    service = service_of(request)
    _, alias = service.models.target(body.model)
    defaults = alias.parameters if alias is not None else {}
    writer = LineWriter(body.model, chat=False, hide_thinking=body.think is False)
    prompt_ids: tuple[int, ...] | None = None
    if not body.raw:
        # The answer follows: a model that is to go after it must not go, and be loaded again, before it.
        async with service.models.use(body.model, at_least_s=_BETWEEN_S) as lease:
            system = body.system or (alias.system if alias is not None else None)
            plain = generate_request(body, defaults, system=system, continuation=None)
            prompt_ids = await _prompt_ids(lease, plain, body)
    continuation = prompt_ids if body.context else None
    system = body.system or (alias.system if alias is not None else None)
    chat = generate_request(body, defaults, system=system, continuation=continuation)
    return await _answer(request, body, chat, writer, prompt_ids)


async def _prompt_ids(lease: Lease, plain: ChatRequest, body: GenerateBody) -> tuple[int, ...]:
    """The prompt's token ids: the new message alone after the client's `context`, else the whole conversation."""
    llm = lease.model.llm
    if not body.context:
        return llm.encode(plain).token_ids
    alone = llm.encode(ChatRequest(messages=(UserMessage(body.prompt),), effort=plain.effort))
    # The first boundary ends the system message, which the context already holds.
    return (*body.context, *alone.token_ids[alone.boundaries[0] :])


@router.post(
    "/api/chat", responses=answers("model", "message", "done", stream=NDJSON), openapi_extra=body_schema(ChatBody)
)
async def chat(request: Request) -> Response:
    """Ollama's chat: a conversation, streamed by default. No messages: load or unload the model."""
    body = await read_body(request, ChatBody)
    if not body.messages:
        return await _load_only(request, body, chat=True)
    _, alias = service_of(request).models.target(body.model)
    chat_ = chat_request(body, alias.parameters if alias is not None else {})
    writer = LineWriter(body.model, chat=True, hide_thinking=body.think is False)
    return await _answer(request, body, chat_, writer, None)


async def _load_only(request: Request, body: OllamaBody, *, chat: bool) -> Response:
    service = service_of(request)
    keep_alive = keep_alive_of(body)
    writer = LineWriter(body.model, chat=chat)
    if keep_alive == 0:
        await service.models.unload(body.model)
        return JSONResponse(writer.only("unload"))
    async with service.models.use(body.model, keep_alive):
        return JSONResponse(writer.only("load"))


async def _answer(
    request: Request, body: OllamaBody, chat: ChatRequest, writer: LineWriter, prompt_ids: tuple[int, ...] | None
) -> Response:
    keep_alive = keep_alive_of(body)
    if body.stream is False:

        async def work() -> Response:
            async with AsyncExitStack() as stack:
                running = await start(request, stack, body.model, [chat], keep_alive)
                lines = [line async for line in _lines(request, running[0], writer, prompt_ids)]
            return JSONResponse(fold(lines, writer.chat))

        return await unless_disconnected(request, work)
    stack = AsyncExitStack()
    running = await begin(request, stack, body.model, [chat], keep_alive)
    chunks = (ndjson(line) async for line in _lines(request, running[0], writer, prompt_ids))
    return GenerationStream(guarded(chunks, error_line), stack, NDJSON)


async def _lines(
    request: Request, running: Running, writer: LineWriter, prompt_ids: tuple[int, ...] | None
) -> AsyncIterator[dict[str, object]]:
    writer.load_s = running.load_s
    async for event in running.events:
        if isinstance(event, Done):
            note_completion(request, event)
            if prompt_ids is not None:
                # What comes back as `context` is history, where a turn ends with <|end|>.
                answer = [END if token == RETURN else token for token in event.token_ids]
                writer.context = (*prompt_ids, *answer)
        for line in writer.write(event):
            yield line


def error_line(error: Exception) -> str:
    """The last line of a stream that failed midway."""
    return ndjson(body_of(stream_failure(error), "ollama"))
