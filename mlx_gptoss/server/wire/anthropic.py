"""Anthropic's Messages: request body to ChatRequest; events to its stream events and the whole message."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
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
    ToolCallEnd,
    ToolCallStart,
    Usage,
)
from mlx_gptoss.harmony.arguments import parse_arguments
from mlx_gptoss.messages import AssistantMessage, Message, SystemMessage, Tool, ToolCall, ToolMessage, UserMessage
from mlx_gptoss.request import ChatRequest, Effort, ResponseFormat, SamplingParams
from mlx_gptoss.server.wire import openai
from mlx_gptoss.server.wire.chat_completions import stops_of
from mlx_gptoss.stream import Completion

# `budget_tokens` below the first bound reasons little, from the second on much.
_LOW_BUDGET, _HIGH_BUDGET = 2_048, 16_384
_PING: Mapping[str, Any] = {"type": "ping"}
# Reasoning that is not shown says now and then that something is going on, so that nobody gives up waiting.
_PING_EACH = 100


class AnthropicMessage(BaseModel):
    model_config = ConfigDict(extra="ignore")

    role: Literal["user", "assistant", "system"]
    content: str | list[dict[str, Any]]


class MessagesBody(BaseModel):
    """The body of `POST /v1/messages`. Fields we do not know are ignored."""

    model_config = ConfigDict(extra="ignore")

    model: str = Field(max_length=512)
    messages: list[AnthropicMessage] = Field(min_length=1)
    max_tokens: int = Field(ge=1)
    system: str | list[dict[str, Any]] | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: dict[str, Any] | None = None
    thinking: dict[str, Any] | None = None
    output_config: dict[str, Any] | None = None
    output_format: dict[str, Any] | None = None
    stop_sequences: list[str] | None = None
    temperature: float | None = Field(default=None, ge=0, le=1)
    top_p: float | None = Field(default=None, ge=0, le=1)
    top_k: int | None = Field(default=None, ge=0)
    stream: bool | None = None


class CountBody(MessagesBody):
    """The body of `POST /v1/messages/count_tokens`: as above, with nothing to generate."""

    max_tokens: int = Field(default=1, ge=1)


def effort_of(body: MessagesBody) -> Effort:
    """The effort that `output_config.effort` names, or that the thinking budget suggests."""
    named = (body.output_config or {}).get("effort")
    if isinstance(named, str):
        return openai.effort_of(named, "output_config.effort")
    thinking = body.thinking or {}
    if thinking.get("type") == "disabled":
        return "low"
    budget = thinking.get("budget_tokens")
    if not isinstance(budget, int) or isinstance(budget, bool):
        return "medium"
    return "low" if budget < _LOW_BUDGET else "high" if budget >= _HIGH_BUDGET else "medium"


def shows_thinking(body: MessagesBody) -> bool:
    """Whether thinking blocks are wanted: as in the API, only when asked for. Much code reads `content[0].text`."""
    return (body.thinking or {}).get("type") in ("enabled", "adaptive")


def tools_of(body: MessagesBody) -> tuple[Tool, ...]:
    """Client tools; Anthropic's own server tools (with a `type` and no schema) cannot run here and are left out."""
    tools = []
    for index, entry in enumerate(body.tools or ()):
        if entry.get("type", "custom") != "custom" and "input_schema" not in entry:
            continue
        tools.append(
            openai.tool_from_function(
                {
                    "name": entry.get("name"),
                    "description": entry.get("description"),
                    "parameters": entry.get("input_schema"),
                    "strict": entry.get("strict"),
                },
                f"tools.{index}",
            )
        )
    return tuple(tools)


def _block_text(blocks: str | Sequence[Any] | None, param: str) -> str:
    """The text of a string or of text blocks; documents in plain text count, images do not."""
    if blocks is None or isinstance(blocks, str):
        return blocks or ""
    pieces = []
    for index, block in enumerate(blocks):
        kind = block.get("type") if isinstance(block, Mapping) else None
        source = block.get("source") if isinstance(block, Mapping) else None
        if kind == "text" and isinstance(block.get("text"), str):
            pieces.append(block["text"])
        elif kind == "document" and isinstance(source, Mapping) and source.get("type") == "text":
            pieces.append(str(source.get("data", "")))
        else:
            raise InvalidRequestError("gpt-oss reads text only", param=f"{param}.{index}", got=repr(kind))
    return "\n".join(pieces)


def messages_of(body: MessagesBody) -> tuple[Message, ...]:
    """The conversation. A user turn may hold tool results and text; results come first."""
    system = _block_text(body.system, "system")
    messages: list[Message] = [SystemMessage(system)] if system else []
    names: dict[str, str] = {}
    for index, entry in enumerate(body.messages):
        param = f"messages.{index}.content"
        blocks = [{"type": "text", "text": entry.content}] if isinstance(entry.content, str) else entry.content
        if entry.role == "assistant":
            message = _assistant(blocks, param)
            names.update({call.id: call.name for call in message.tool_calls})
            messages.append(message)
            continue
        results = [block for block in blocks if block.get("type") == "tool_result"]
        for block in results:
            call_id = str(block.get("tool_use_id", ""))
            text = _block_text(block.get("content"), param)
            if block.get("is_error") is True:
                text = f"Error: {text}"
            messages.append(ToolMessage(call_id, names.get(call_id, ""), text))
        rest = _block_text([block for block in blocks if block.get("type") != "tool_result"], param)
        if entry.role == "system":
            messages.append(SystemMessage(rest))
        elif rest or not results:
            messages.append(UserMessage(rest))
    return tuple(messages)


def _assistant(blocks: Sequence[Mapping[str, Any]], param: str) -> AssistantMessage:
    text, reasoning, calls = [], [], []
    for index, block in enumerate(blocks):
        kind = block.get("type")
        if kind == "text" and isinstance(block.get("text"), str):
            text.append(block["text"])
        elif kind == "thinking" and isinstance(block.get("thinking"), str):
            reasoning.append(block["thinking"])
        elif kind == "tool_use" and isinstance(block.get("name"), str):
            arguments = json.dumps(block.get("input", {}), ensure_ascii=False)
            calls.append(ToolCall(str(block.get("id", "")), block["name"], arguments))
        elif kind not in ("redacted_thinking", "server_tool_use", "web_search_tool_result"):
            raise InvalidRequestError("not a block of an assistant turn", param=f"{param}.{index}.type", got=repr(kind))
    return AssistantMessage.said("".join(text), reasoning="".join(reasoning), tool_calls=tuple(calls))


def _format_of(body: MessagesBody) -> ResponseFormat:
    value = (body.output_config or {}).get("format", body.output_format)
    return openai.response_format_of(value, "output_config.format")


def to_request(body: MessagesBody) -> ChatRequest:
    """The internal request. Raises InvalidRequestError that names the field."""
    tools = tools_of(body)
    value: Any = None
    parallel = True
    if body.tool_choice is not None:
        parallel = body.tool_choice.get("disable_parallel_tool_use") is not True
        kind = body.tool_choice.get("type")
        value = body.tool_choice if kind == "tool" else kind
    choice, left = openai.tool_choice_of(value, tools)
    given = {name: number for name in ("temperature", "top_p", "top_k") if (number := getattr(body, name)) is not None}
    return ChatRequest(
        messages=messages_of(body),
        tools=left,
        tool_choice=choice,
        parallel_tool_calls=parallel,
        response_format=_format_of(body),
        effort=effort_of(body),
        sampling=SamplingParams(**given),
        max_tokens=body.max_tokens,
        stop=stops_of(body.stop_sequences),
    )


# -- answers ----------------------------------------------------------------------------------------------------


def stop_reason_of(done: Done | Completion) -> str:
    """Anthropic's word for why an answer ended."""
    if done.finish_reason == "tool_calls":
        return "tool_use"
    if done.stop is not None:
        return "stop_sequence"
    return "max_tokens" if done.finish_reason in ("length", "repetition", "timeout", "cancelled") else "end_turn"


def usage_of(usage: Usage) -> dict[str, Any]:
    """`input_tokens` counts what was not read from the cache, as the API defines it."""
    return {
        "input_tokens": usage.prompt_tokens - usage.cached_tokens,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": usage.cached_tokens,
        "output_tokens": usage.completion_tokens,
    }


def message_object(
    identifier: str,
    model: str,
    content: list[dict[str, Any]],
    reason: str | None,
    usage: Usage,
    stop: str | None = None,
) -> dict[str, Any]:
    """The `message` object, finished or about to begin."""
    return {
        "id": identifier,
        "type": "message",
        "role": "assistant",
        "model": model,
        "content": content,
        "stop_reason": reason,
        "stop_sequence": stop,
        "usage": usage_of(usage),
    }


def answer_of(identifier: str, model: str, completion: Completion, *, thinking: bool) -> dict[str, Any]:
    """The whole message, with the reasoning if `thinking`."""
    content: list[dict[str, Any]] = []
    if completion.reasoning and thinking:
        content.append({"type": "thinking", "thinking": completion.reasoning, "signature": ""})
    said = completion.preamble + completion.text
    if said or not completion.tool_calls:
        content.append({"type": "text", "text": said})
    content += [
        {"type": "tool_use", "id": call.id, "name": call.name, "input": input_of(call.arguments)}
        for call in completion.tool_calls
    ]
    reason = stop_reason_of(completion)
    return message_object(identifier, model, content, reason, completion.usage, completion.stop)


def input_of(arguments: str) -> dict[str, Any]:
    """A call's input must be an object here; text that is none is handed over under `raw`."""
    parsed = parse_arguments(arguments)
    return parsed if parsed is not None else {"raw": arguments}


@dataclass(slots=True)
class EventWriter:
    """Events to the stream's events: blocks are opened, filled and closed one after the other."""

    id: str
    model: str
    thinking: bool
    _index: int = -1
    _kind: str | None = None
    _hidden: int = 0

    def open(self, prompt_tokens: int) -> list[dict[str, Any]]:
        """The first events. What came from the cache is known, and told, at the end."""
        message = message_object(self.id, self.model, [], None, Usage(prompt_tokens=prompt_tokens))
        return [{"type": "message_start", "message": message}, dict(_PING)]

    def _close(self) -> list[dict[str, Any]]:
        if self._kind is None:
            return []
        closing: list[dict[str, Any]] = []
        if self._kind == "thinking":
            closing.append(self._delta({"type": "signature_delta", "signature": ""}))
        self._kind = None
        return [*closing, {"type": "content_block_stop", "index": self._index}]

    def _begin(self, kind: str, block: dict[str, Any]) -> list[dict[str, Any]]:
        events = self._close()
        self._index += 1
        self._kind = kind
        return [*events, {"type": "content_block_start", "index": self._index, "content_block": block}]

    def _delta(self, delta: dict[str, Any]) -> dict[str, Any]:
        return {"type": "content_block_delta", "index": self._index, "delta": delta}

    def write(self, event: Event) -> list[dict[str, Any]]:
        """The stream events for one event; those for `Done` close the message."""
        events: list[dict[str, Any]] = []
        if isinstance(event, ReasoningDelta):
            if not self.thinking:
                self._hidden += 1
                return [] if self._hidden % _PING_EACH else [dict(_PING)]
            if self._kind != "thinking":
                events = self._begin("thinking", {"type": "thinking", "thinking": "", "signature": ""})
            return [*events, self._delta({"type": "thinking_delta", "thinking": event.text})]
        if isinstance(event, TextDelta | PreambleDelta):
            if self._kind != "text":
                events = self._begin("text", {"type": "text", "text": ""})
            return [*events, self._delta({"type": "text_delta", "text": event.text})]
        if isinstance(event, ToolCallStart):
            return self._begin("tool_use", {"type": "tool_use", "id": event.call_id, "name": event.name, "input": {}})
        if isinstance(event, ToolCallDelta):
            return [self._delta({"type": "input_json_delta", "partial_json": event.arguments})]
        if isinstance(event, ToolCallEnd):
            return self._close()
        events = [] if self._index >= 0 else self._begin("text", {"type": "text", "text": ""})
        delta = {"stop_reason": stop_reason_of(event), "stop_sequence": event.stop}
        closing: list[dict[str, Any]] = [
            {"type": "message_delta", "delta": delta, "usage": usage_of(event.usage)},
            {"type": "message_stop"},
        ]
        return [*events, *self._close(), *closing]
