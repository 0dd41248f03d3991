"""OpenAI's chat completions: request body to ChatRequest; events to chunks and to the whole answer."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from mlx_gptoss.errors import InvalidRequestError
from mlx_gptoss.events import (
    Done,
    Event,
    PreambleDelta,
    ReasoningDelta,
    TextDelta,
    ToolCallDelta,
    ToolCallStart,
)
from mlx_gptoss.messages import (
    AssistantMessage,
    DeveloperMessage,
    Message,
    SystemMessage,
    Tool,
    ToolCall,
    ToolMessage,
    UserMessage,
)
from mlx_gptoss.request import ChatRequest, SamplingParams
from mlx_gptoss.server.wire import openai
from mlx_gptoss.stream import Completion

Role = Literal["system", "developer", "user", "assistant", "tool", "function"]


class FunctionCallBody(BaseModel):
    name: str = Field(max_length=256)
    arguments: str | dict[str, Any] = ""


class ToolCallBody(BaseModel):
    id: str = Field(default="", max_length=256)
    type: str = "function"
    function: FunctionCallBody


class ChatMessageBody(BaseModel):
    """One message. `reasoning`, `reasoning_content` and `thinking` are three clients' words for one thing."""

    model_config = ConfigDict(extra="ignore")

    role: Role
    content: str | list[dict[str, Any] | str] | None = None
    name: str | None = None
    tool_calls: list[ToolCallBody] | None = None
    function_call: FunctionCallBody | None = None
    tool_call_id: str | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None
    thinking: str | None = None


class StreamOptions(BaseModel):
    include_usage: bool | None = None


class ChatCompletionBody(BaseModel):
    """The body of `POST /v1/chat/completions`. Fields we do not know are ignored."""

    model_config = ConfigDict(extra="ignore")

    model: str = Field(max_length=512)
    messages: list[ChatMessageBody] = Field(min_length=1)
    tools: list[dict[str, Any]] | None = None
    functions: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    function_call: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    response_format: dict[str, Any] | None = None
    reasoning_effort: str | None = None
    reasoning: dict[str, Any] | None = None
    temperature: float | None = Field(default=None, ge=0, le=2)
    top_p: float | None = Field(default=None, ge=0, le=1)
    top_k: int | None = Field(default=None, ge=0)
    min_p: float | None = Field(default=None, ge=0, le=1)
    repetition_penalty: float | None = Field(default=None, gt=0, le=10)
    presence_penalty: float | None = Field(default=None, ge=-2, le=2)
    frequency_penalty: float | None = Field(default=None, ge=-2, le=2)
    logit_bias: dict[str, float] | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = Field(default=None, ge=0, le=20)
    n: int | None = Field(default=None, ge=1, le=16)
    seed: int | None = None
    stop: str | list[str] | None = None
    max_tokens: int | None = Field(default=None, ge=1)
    max_completion_tokens: int | None = Field(default=None, ge=1)
    stream: bool | None = None
    stream_options: StreamOptions | None = None


def stops_of(stop: str | Sequence[str] | None) -> tuple[str, ...]:
    """Stop strings as a tuple; empty ones would stop at once and are refused."""
    stops = (stop,) if isinstance(stop, str) else tuple(stop or ())
    if len(stops) > 16 or any(not text for text in stops):
        raise InvalidRequestError("stop has empty or too many strings", param="stop", expected="up to 16 texts")
    return stops


def sampling_of(body: Any, logprobs: int | None) -> SamplingParams:
    """Sampling parameters from the fields that chat completions and completions share."""
    given = {
        name: value
        for name in (
            "temperature", "top_p", "top_k", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty",
            "seed",
        )
        if (value := getattr(body, name, None)) is not None
    }  # fmt: skip
    return SamplingParams(**given, logit_bias=openai.logit_bias_of(body.logit_bias), logprobs=logprobs)


def tools_of(body: ChatCompletionBody) -> tuple[Tool, ...]:
    """Function tools; kinds that gpt-oss cannot call here are left out rather than refused."""
    tools = [
        openai.tool_from_function(entry.get("function"), f"tools.{index}.function")
        for index, entry in enumerate(body.tools or ())
        if entry.get("type", "function") == "function"
    ]
    tools += [openai.tool_from_function(entry, f"functions.{i}") for i, entry in enumerate(body.functions or ())]
    return tuple(tools)


def messages_of(bodies: Sequence[ChatMessageBody]) -> tuple[Message, ...]:
    """The conversation. A tool result without a name gets that of the call it answers."""
    names: dict[str, str] = {}
    messages: list[Message] = []
    for index, body in enumerate(bodies):
        text = openai.text_of(body.content, f"messages.{index}.content")
        if body.role == "system":
            messages.append(SystemMessage(text))
        elif body.role == "developer":
            messages.append(DeveloperMessage(text))
        elif body.role == "user":
            messages.append(UserMessage(text))
        elif body.role == "assistant":
            calls = _calls_of(body, index)
            names.update({call.id: call.name for call in calls})
            reasoning = body.reasoning or body.reasoning_content or body.thinking or ""
            messages.append(AssistantMessage.said(text, reasoning=reasoning, tool_calls=calls))
        else:
            call_id = body.tool_call_id or (f"function_{body.name}" if body.name else "")
            messages.append(ToolMessage(call_id, names.get(call_id) or body.name or "", text))
    return tuple(messages)


def _calls_of(body: ChatMessageBody, index: int) -> tuple[ToolCall, ...]:
    calls = [
        ToolCall(call.id or f"call_{index}_{k}", call.function.name, arguments_text(call.function.arguments))
        for k, call in enumerate(body.tool_calls or ())
    ]
    if body.function_call is not None:
        name = body.function_call.name
        calls.append(ToolCall(f"function_{name}", name, arguments_text(body.function_call.arguments)))
    return tuple(calls)


def arguments_text(arguments: str | Mapping[str, Any]) -> str:
    """A call's arguments as the text the model wrote; clients that parsed them get them written again."""
    return arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)


def to_request(body: ChatCompletionBody) -> ChatRequest:
    """The internal request. Raises InvalidRequestError that names the field."""
    effort = body.reasoning_effort
    if effort is None and body.reasoning is not None and isinstance(body.reasoning.get("effort"), str):
        effort = body.reasoning["effort"]
    choice, tools = openai.tool_choice_of(_choice_value(body), tools_of(body))
    if body.top_logprobs is not None and not body.logprobs:
        raise InvalidRequestError("top_logprobs needs logprobs", param="top_logprobs")
    return ChatRequest(
        messages=messages_of(body.messages),
        tools=tools,
        tool_choice=choice,
        parallel_tool_calls=body.parallel_tool_calls is not False,
        response_format=openai.response_format_of(body.response_format, "response_format"),
        effort=openai.effort_of(effort),
        sampling=sampling_of(body, (body.top_logprobs or 0) if body.logprobs else None),
        max_tokens=body.max_completion_tokens or body.max_tokens,
        stop=stops_of(body.stop),
    )


def _choice_value(body: ChatCompletionBody) -> Any:
    if body.tool_choice is not None or body.function_call is None:
        return body.tool_choice
    if isinstance(body.function_call, str):
        return body.function_call
    return {"type": "function", "function": body.function_call}


@dataclass(slots=True)
class ChunkWriter:
    """Events of one choice to the `chat.completion.chunk` objects of its stream."""

    id: str
    model: str
    created: int
    fingerprint: str
    index: int = 0
    logprobs: bool = False
    include_usage: bool = False
    done: Done | None = field(default=None)

    def _chunk(self, delta: dict[str, Any], finish: str | None = None, logprobs: Any = None) -> dict[str, Any]:
        choice = {"index": self.index, "delta": delta, "logprobs": logprobs, "finish_reason": finish}
        chunk = self.frame([choice])
        return {**chunk, "usage": None} if self.include_usage else chunk

    def frame(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        """A chunk with these choices."""
        return {
            "id": self.id,
            "object": "chat.completion.chunk",
            "created": self.created,
            "model": self.model,
            "system_fingerprint": self.fingerprint,
            "choices": choices,
        }

    def open(self) -> dict[str, Any]:
        """The first chunk, which names the role."""
        return self._chunk({"role": "assistant", "content": ""})

    def write(self, event: Event) -> list[dict[str, Any]]:
        """The chunks for one event; the one for `Done` carries the finish reason."""
        if isinstance(event, ReasoningDelta):
            return [self._chunk({"reasoning": event.text, "reasoning_content": event.text})]
        if isinstance(event, TextDelta | PreambleDelta):
            content = openai.logprob_entries(event.logprobs)
            found = {"content": content, "refusal": None} if self.logprobs and content else None
            return [self._chunk({"content": event.text}, logprobs=found)]
        if isinstance(event, ToolCallStart):
            function = {"name": event.name, "arguments": ""}
            call = {"index": event.index, "id": event.call_id, "type": "function", "function": function}
            return [self._chunk({"tool_calls": [call]})]
        if isinstance(event, ToolCallDelta):
            return [self._chunk({"tool_calls": [{"index": event.index, "function": {"arguments": event.arguments}}]})]
        if isinstance(event, Done):
            self.done = event
            return [self._chunk({}, finish=openai.finish_reason_of(event.finish_reason))]
        return []


def choice_of(completion: Completion, index: int, logprobs: bool) -> dict[str, Any]:
    """One finished choice of a `chat.completion`."""
    content = completion.preamble + completion.text
    message: dict[str, Any] = {"role": "assistant", "content": content or None, "refusal": None, "annotations": []}
    if completion.reasoning:
        message |= {"reasoning": completion.reasoning, "reasoning_content": completion.reasoning}
    if completion.tool_calls:
        message["tool_calls"] = [
            {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
            for call in completion.tool_calls
        ]
    elif message["content"] is None:
        message["content"] = ""
    entries = {"content": openai.logprob_entries(completion.logprobs), "refusal": None} if logprobs else None
    finish = openai.finish_reason_of(completion.finish_reason)
    return {"index": index, "message": message, "logprobs": entries, "finish_reason": finish}


def answer_of(
    identifier: str, model: str, created: int, fingerprint: str, completions: Sequence[Completion], logprobs: bool
) -> dict[str, Any]:
    """The whole `chat.completion` object; usage is summed over the choices, the prompt counted once."""
    return {
        "id": identifier,
        "object": "chat.completion",
        "created": created,
        "model": model,
        "system_fingerprint": fingerprint,
        "choices": [choice_of(completion, index, logprobs) for index, completion in enumerate(completions)],
        "usage": openai.usage_of(openai.summed([completion.usage for completion in completions])),
    }
