"""OpenAI's Responses: request body to ChatRequest, and the `response` object around output items."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from mlx_gptoss.errors import InvalidRequestError
from mlx_gptoss.events import Done, Usage
from mlx_gptoss.messages import Message, SystemMessage, Tool
from mlx_gptoss.request import ChatRequest, SamplingParams
from mlx_gptoss.server.wire import openai

LOGPROBS = "message.output_text.logprobs"
SEALED_REASONING = "reasoning.encrypted_content"


class ResponsesBody(BaseModel):
    """The body of `POST /v1/responses`. Fields we do not know are ignored."""

    model_config = ConfigDict(extra="ignore")

    model: str | None = Field(default=None, max_length=512)
    input: str | list[dict[str, Any]] = ""
    instructions: str | None = None
    previous_response_id: str | None = Field(default=None, max_length=128)
    conversation: str | dict[str, Any] | None = None
    prompt: dict[str, Any] | None = None
    store: bool | None = None
    background: bool | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    reasoning: dict[str, Any] | None = None
    text: dict[str, Any] | None = None
    include: list[str] | None = None
    truncation: str | None = None
    metadata: dict[str, str] | None = None
    max_output_tokens: int | None = Field(default=None, ge=1)
    max_tool_calls: int | None = Field(default=None, ge=1)
    temperature: float | None = Field(default=None, ge=0, le=2)
    top_p: float | None = Field(default=None, ge=0, le=1)
    top_logprobs: int | None = Field(default=None, ge=0, le=20)
    stream: bool | None = None
    user: str | None = None
    prompt_cache_key: str | None = None
    safety_identifier: str | None = None
    service_tier: str | None = None


def check(body: ResponsesBody) -> None:
    """Refuse what cannot be done here. Raises InvalidRequestError that names the field."""
    if body.conversation is not None:
        raise InvalidRequestError("conversations are not supported; use previous_response_id", param="conversation")
    if body.prompt is not None:
        raise InvalidRequestError("stored prompts are not supported", param="prompt")
    if body.truncation not in (None, "auto", "disabled"):
        raise InvalidRequestError("unknown truncation", param="truncation", expected="auto or disabled")
    if body.background and body.store is False:
        raise InvalidRequestError("a background response must be stored", param="store")
    if body.previous_response_id is None and not body.input:
        raise InvalidRequestError("input is required", param="input")


def tools_of(tools: Sequence[Mapping[str, Any]] | None) -> tuple[Tool, ...]:
    """Function tools; hosted tools that do not exist here are left out rather than refused."""
    return tuple(
        openai.tool_from_function(entry.get("function", entry), f"tools.{index}")
        for index, entry in enumerate(tools or ())
        if entry.get("type", "function") == "function"
    )


def to_request(body: ResponsesBody, messages: Sequence[Message]) -> ChatRequest:
    """The internal request over a conversation that `previous_response_id` and `input` make up."""
    reasoning = body.reasoning or {}
    effort = reasoning.get("effort")
    choice, tools = openai.tool_choice_of(body.tool_choice, tools_of(body.tools))
    given: dict[str, Any] = {}
    if body.temperature is not None:
        given["temperature"] = body.temperature
    if body.top_p is not None:
        given["top_p"] = body.top_p
    logprobs = None
    if body.top_logprobs or LOGPROBS in (body.include or ()):
        logprobs = body.top_logprobs or 0
    instructions: tuple[Message, ...] = (SystemMessage(body.instructions),) if body.instructions else ()
    return ChatRequest(
        messages=(*instructions, *messages),
        tools=tools,
        tool_choice=choice,
        parallel_tool_calls=body.parallel_tool_calls is not False,
        response_format=openai.response_format_of((body.text or {}).get("format"), "text.format"),
        effort=openai.effort_of(effort if isinstance(effort, str) else None, "reasoning.effort"),
        sampling=SamplingParams(**given, logprobs=logprobs),
        max_tokens=body.max_output_tokens,
    )


def shortened(request: ChatRequest) -> ChatRequest | None:
    """`truncation: auto`: the request without its oldest exchange, or None when only the last message is left."""
    head = [message for message in request.messages if isinstance(message, SystemMessage)]
    rest = [message for message in request.messages if not isinstance(message, SystemMessage)]
    if len(rest) < 2:
        return None
    return replace(request, messages=(*head, *rest[max(1, len(rest) // 4) :]))


def usage_of(usage: Usage) -> dict[str, Any]:
    """The `usage` object of Responses."""
    return {
        "input_tokens": usage.prompt_tokens,
        "input_tokens_details": {"cached_tokens": usage.cached_tokens},
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
    }


def response_object(
    body: ResponsesBody, identifier: str, model: str, created: int, status: str, output: list[dict[str, Any]]
) -> dict[str, Any]:
    """The `response` object of a request, with what it has produced so far."""
    reasoning = body.reasoning or {}
    text = body.text or {}
    return {
        "id": identifier,
        "object": "response",
        "created_at": created,
        "status": status,
        "background": body.background is True,
        "error": None,
        "incomplete_details": None,
        "instructions": body.instructions,
        "max_output_tokens": body.max_output_tokens,
        "max_tool_calls": body.max_tool_calls,
        "model": model,
        "output": output,
        "parallel_tool_calls": body.parallel_tool_calls is not False,
        "previous_response_id": body.previous_response_id,
        "prompt_cache_key": body.prompt_cache_key,
        "reasoning": {"effort": reasoning.get("effort") or "medium", "summary": reasoning.get("summary")},
        "safety_identifier": body.safety_identifier,
        "service_tier": "default",
        "store": body.store is not False,
        "temperature": 1.0 if body.temperature is None else body.temperature,
        "text": {"format": text.get("format") or {"type": "text"}, "verbosity": text.get("verbosity") or "medium"},
        "tool_choice": "auto" if body.tool_choice is None else body.tool_choice,
        "tools": [dict(entry) for entry in body.tools or ()],
        "top_logprobs": body.top_logprobs or 0,
        "top_p": 1.0 if body.top_p is None else body.top_p,
        "truncation": body.truncation or "disabled",
        "usage": None,
        "user": body.user,
        "metadata": body.metadata or {},
    }


def ended(response: Mapping[str, Any], done: Done, output: list[dict[str, Any]], completed: int) -> dict[str, Any]:
    """The `response` object at its end: completed, incomplete, failed or cancelled."""
    status, error, details = "completed", None, None
    if done.finish_reason == "error":
        status, error = "failed", {"code": "server_error", "message": done.error or "the generation failed"}
    elif done.finish_reason == "cancelled":
        status = "cancelled"
    elif done.finish_reason in ("length", "repetition", "timeout"):
        status, details = "incomplete", {"reason": "max_output_tokens"}
    return {
        **response,
        "status": status,
        "error": error,
        "incomplete_details": details,
        "output": output,
        "usage": usage_of(done.usage),
        "completed_at": completed if status == "completed" else None,
    }
