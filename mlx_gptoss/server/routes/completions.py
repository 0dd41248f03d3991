"""`POST /v1/completions`."""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack
from typing import Any

from fastapi import APIRouter
from fastapi.responses import JSONResponse, Response
from starlette.requests import Request

from mlx_gptoss.events import Done, TextDelta, Usage
from mlx_gptoss.server.generation import GenerationStream, begin, complete, guarded, merge, note_completion
from mlx_gptoss.server.http import SSE, body_schema, read_body, sse
from mlx_gptoss.server.openapi import answers
from mlx_gptoss.server.routes.chat_completions import choices, error_event
from mlx_gptoss.server.service import Running
from mlx_gptoss.server.wire import openai
from mlx_gptoss.server.wire.completions import CompletionBody, choice, frame, logprobs_object, to_requests, whole_choice

router = APIRouter(tags=["openai"])


@router.post(
    "/v1/completions",
    responses=answers("id", "object", "choices", "usage", stream=SSE),
    openapi_extra=body_schema(CompletionBody),
)
async def completions(request: Request) -> Response:
    """OpenAI's legacy completions, streaming or whole; the prompt is taken as plain text."""
    body = await read_body(request, CompletionBody)
    requests = [chat for prompt in to_requests(body) for chat in choices(prompt, body.n or 1)]
    identifier, created = f"cmpl-{uuid.uuid4().hex}", int(time.time())
    if not body.stream:
        done, _ = await complete(request, body.model, requests)
        listed = [whole_choice(completion, index, body.logprobs is not None) for index, completion in enumerate(done)]
        usage = openai.usage_of(_summed([completion.usage for completion in done], body.n or 1))
        return JSONResponse({**frame(identifier, body.model, created, listed), "usage": usage})
    stack = AsyncExitStack()
    running = await begin(request, stack, body.model, requests)
    chunks = guarded(_chunks(request, body, running, identifier, created), error_event)
    return GenerationStream(chunks, stack, SSE)


def _summed(usages: Sequence[Usage], n: int) -> Usage:
    """Usage over several prompts with n choices each: every prompt counts once."""
    prompts = [openai.summed(usages[index : index + n]) for index in range(0, len(usages), n)]
    return Usage(
        prompt_tokens=sum(usage.prompt_tokens for usage in prompts),
        cached_tokens=sum(usage.cached_tokens for usage in prompts),
        completion_tokens=sum(usage.completion_tokens for usage in prompts),
        reasoning_tokens=sum(usage.reasoning_tokens for usage in prompts),
    )


async def _chunks(
    request: Request, body: CompletionBody, running: Sequence[Running], identifier: str, created: int
) -> AsyncIterator[str]:
    include_usage = body.stream_options is not None and body.stream_options.include_usage is True
    usages: dict[int, Usage] = {}
    offsets = dict.fromkeys(range(len(running)), 0)
    async for index, event in merge([generation.events for generation in running]):
        piece: dict[str, Any] | None = None
        if isinstance(event, TextDelta):
            entries = logprobs_object(event.logprobs, offsets[index]) if body.logprobs is not None else None
            offsets[index] += len(event.text)
            piece = choice(index, event.text, None, entries)
        elif isinstance(event, Done):
            note_completion(request, event)
            usages[index] = event.usage
            piece = choice(index, "", openai.finish_reason_of(event.finish_reason))
        if piece is not None:
            chunk = frame(identifier, body.model, created, [piece])
            yield sse({**chunk, "usage": None} if include_usage else chunk)
    if include_usage:
        usage = openai.usage_of(_summed([usages[index] for index in sorted(usages)], body.n or 1))
        yield sse({**frame(identifier, body.model, created, []), "usage": usage})
    yield sse("[DONE]")
