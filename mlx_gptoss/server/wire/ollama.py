"""Ollama's generate and chat: request bodies to ChatRequest; events to NDJSON objects and whole answers."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from mlx_gptoss.errors import InvalidRequestError
from mlx_gptoss.events import (
    Done,
    Event,
    FinishReason,
    PreambleDelta,
    ReasoningDelta,
    TextDelta,
    TokenLogprob,
    ToolCallEnd,
)
from mlx_gptoss.harmony.arguments import parse_arguments
from mlx_gptoss.messages import (
    AssistantMessage,
    Message,
    SystemMessage,
    ToolCall,
    ToolMessage,
    UserMessage,
)
from mlx_gptoss.request import ChatRequest, Effort, ResponseFormat, SamplingParams
from mlx_gptoss.server.duration import duration_seconds
from mlx_gptoss.server.wire import openai

NANOSECONDS = 1_000_000_000


def without_nulls(values: Any) -> Any:
    """A body's fields without those that are null: to Ollama they are as good as absent."""
    return {key: value for key, value in values.items() if value is not None} if isinstance(values, dict) else values


class OllamaBody(BaseModel):
    """What generate and chat share. Fields we do not know are ignored, as Ollama does."""

    model_config = ConfigDict(extra="ignore", protected_namespaces=())
    _nulls = model_validator(mode="before")(without_nulls)

    model: str = Field(max_length=512)
    stream: bool | None = None
    format: str | dict[str, Any] | None = None
    options: dict[str, Any] | None = None
    keep_alive: str | float | int | None = None
    think: bool | str | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = Field(default=None, ge=0, le=20)


class GenerateBody(OllamaBody):
    """The body of `POST /api/generate`."""

    prompt: str = ""
    suffix: str | None = None
    images: list[str] | None = None
    system: str | None = None
    template: str | None = None
    raw: bool | None = None
    context: list[int] | None = None


class OllamaFunction(BaseModel):
    name: str = Field(max_length=256)
    arguments: dict[str, Any] | str = Field(default_factory=dict)
    index: int | None = None


class OllamaToolCall(BaseModel):
    id: str = Field(default="", max_length=256)
    function: OllamaFunction


class OllamaMessage(BaseModel):
    model_config = ConfigDict(extra="ignore")

    role: Literal["system", "user", "assistant", "tool"]
    content: str | None = None
    thinking: str | None = None
    images: list[str] | None = None
    tool_calls: list[OllamaToolCall] | None = None
    tool_name: str | None = None
    tool_call_id: str | None = None


class ChatBody(OllamaBody):
    """The body of `POST /api/chat`."""

    messages: list[OllamaMessage] = Field(default_factory=list)
    tools: list[dict[str, Any]] | None = None


def keep_alive_of(body: OllamaBody) -> float | None:
    """Seconds to keep the model loaded, None when the client says nothing."""
    if body.keep_alive is None or body.keep_alive == "":
        return None
    try:
        return duration_seconds(body.keep_alive)
    except ValueError as error:
        raise InvalidRequestError(str(error), param="keep_alive") from error


def effort_of(think: bool | str | None) -> Effort:
    """`think` as a level; a plain true is medium, and since gpt-oss always reasons a plain false is low."""
    if isinstance(think, bool):
        return "medium" if think else "low"
    if think is not None and think not in ("low", "medium", "high", "max"):
        raise InvalidRequestError("not a think value", param="think", expected="true, false, low, medium or high")
    return openai.effort_of(think)


def format_of(value: str | Mapping[str, Any] | None) -> ResponseFormat:
    """`format`: "json", a JSON Schema, or nothing."""
    if value is None or value == "" or value == {}:
        return ResponseFormat()
    if value == "json":
        return ResponseFormat(kind="json_object")
    if isinstance(value, Mapping):
        return ResponseFormat(kind="json_schema", schema=value)
    raise InvalidRequestError("not a format", param="format", expected='"json" or a JSON Schema', got=repr(value)[:60])


_NUMBERS: Mapping[str, tuple[str, type]] = {
    "temperature": ("temperature", float),
    "top_p": ("top_p", float),
    "top_k": ("top_k", int),
    "min_p": ("min_p", float),
    "seed": ("seed", int),
    "repeat_penalty": ("repetition_penalty", float),
    "repeat_last_n": ("repetition_context", int),
    "presence_penalty": ("presence_penalty", float),
    "frequency_penalty": ("frequency_penalty", float),
}


@dataclass(frozen=True, slots=True)
class Options:
    """`options` as far as they mean something here; the rest (num_ctx, num_gpu, ...) is ours to decide."""

    sampling: SamplingParams
    max_tokens: int | None
    stop: tuple[str, ...]


def options_of(options: Mapping[str, Any] | None, logprobs: int | None) -> Options:
    """Read `options`. Raises InvalidRequestError in the words of the option."""
    values = dict(options or {})
    given: dict[str, Any] = {}
    for key, (name, kind) in _NUMBERS.items():
        value = values.get(key)
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int | float) or (kind is int and value != int(value)):
            raise InvalidRequestError(
                f"option {key!r} is not a number", param=key, expected=kind.__name__, got=repr(value)
            )
        try:
            given[name] = kind(value)
        except OverflowError:
            raise InvalidRequestError(f"option {key!r} is out of range", param=key) from None
    if given.get("repetition_context", 0) < 0:
        given["repetition_context"] = 1 << 20
    if given.get("top_k", 0) < 0:
        given["top_k"] = 0
    stop = values.get("stop")
    stops = [stop] if isinstance(stop, str) else stop or []
    if not isinstance(stops, list) or not all(isinstance(text, str) for text in stops):
        raise InvalidRequestError("option 'stop' is not a list of texts", param="stop")
    limit = values.get("num_predict")
    whole = isinstance(limit, int) or (isinstance(limit, float) and limit.is_integer())
    if limit is not None and (isinstance(limit, bool) or not whole):
        raise InvalidRequestError("option 'num_predict' is not a whole number", param="num_predict", got=repr(limit))
    return Options(
        sampling=SamplingParams(**given, logprobs=logprobs),
        max_tokens=int(limit) if limit is not None and limit > 0 else None,
        stop=tuple(text for text in stops if text)[:16],
    )


def _request(body: OllamaBody, defaults: Mapping[str, Any], **content: Any) -> ChatRequest:
    logprobs = (body.top_logprobs or 0) if body.logprobs else None
    options = options_of({**defaults, **(body.options or {})}, logprobs)
    return ChatRequest(
        **content,
        response_format=format_of(body.format),
        effort=effort_of(body.think),
        sampling=options.sampling,
        max_tokens=options.max_tokens,
        stop=options.stop,
    )


def _no_images(images: Sequence[str] | None, param: str) -> None:
    if images:
        raise InvalidRequestError("gpt-oss reads text only; it has no image input", param=param)


def generate_request(
    body: GenerateBody, defaults: Mapping[str, Any], *, system: str | None, continuation: tuple[int, ...] | None
) -> ChatRequest:
    """The internal request of `/api/generate`.

    `system` is the body's own or the alias's. `continuation` replaces the conversation by token ids: the client's
    `context` with the new prompt appended.
    """
    _no_images(body.images, "images")
    if body.suffix:
        raise InvalidRequestError("gpt-oss cannot fill in the middle; suffix is not supported", param="suffix")
    if body.raw:
        if body.system or body.context or body.template:
            raise InvalidRequestError("raw mode does not support template, system, or context", param="raw")
        return _request(body, defaults, raw_prompt=body.prompt)
    if body.template:
        raise InvalidRequestError("template is not supported; use raw for a prompt of your own form", param="template")
    if continuation is not None:
        return _request(body, defaults, prompt_ids=continuation)
    messages: list[Message] = [SystemMessage(system)] if system else []
    return _request(body, defaults, messages=(*messages, UserMessage(body.prompt)))


def chat_request(body: ChatBody, defaults: Mapping[str, Any]) -> ChatRequest:
    """The internal request of `/api/chat`."""
    tools = [
        openai.tool_from_function(entry.get("function"), f"tools.{index}.function")
        for index, entry in enumerate(body.tools or ())
        if entry.get("type", "function") == "function"
    ]
    return _request(body, defaults, messages=messages_of(body.messages), tools=tuple(tools))


def messages_of(bodies: Sequence[OllamaMessage]) -> tuple[Message, ...]:
    """The conversation. Clients often send neither call ids nor names: results then answer the calls in order."""
    messages: list[Message] = []
    waiting: list[ToolCall] = []
    for index, body in enumerate(bodies):
        _no_images(body.images, f"messages.{index}.images")
        text = body.content or ""
        if body.role == "system":
            messages.append(SystemMessage(text))
        elif body.role == "user":
            messages.append(UserMessage(text))
        elif body.role == "assistant":
            calls = tuple(_call_of(call, index, k) for k, call in enumerate(body.tool_calls or ()))
            waiting.extend(calls)
            messages.append(AssistantMessage.said(text, reasoning=body.thinking or "", tool_calls=calls))
        else:
            call = _answered(body, waiting)
            name = body.tool_name or (call.name if call is not None else "")
            messages.append(ToolMessage(call.id if call is not None else body.tool_call_id or "", name, text))
    return tuple(messages)


def _answered(body: OllamaMessage, waiting: list[ToolCall]) -> ToolCall | None:
    """The call that a result answers: by id, else the first open one of that name, else the first open one."""
    for call in waiting:
        if body.tool_call_id and call.id == body.tool_call_id:
            waiting.remove(call)
            return call
    for call in waiting:
        if not body.tool_name or call.name == body.tool_name:
            waiting.remove(call)
            return call
    return None


def _call_of(body: OllamaToolCall, index: int, k: int) -> ToolCall:
    arguments = body.function.arguments
    text = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
    return ToolCall(body.id or f"call_{index}_{k}", body.function.name, text)


# -- answers ----------------------------------------------------------------------------------------------------


def timestamp() -> str:
    """Now, as Ollama writes times."""
    return datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


def done_reason_of(reason: FinishReason) -> str:
    """Ollama's word for why an answer ended."""
    return "length" if reason in ("length", "repetition", "timeout", "cancelled") else "stop"


def counts_of(done: Done, load_s: float) -> dict[str, int]:
    """Token counts, and durations in nanoseconds."""
    timings, usage = done.timings, done.usage
    return {
        "total_duration": _nanoseconds(timings.total_s + load_s),
        "load_duration": _nanoseconds(load_s),
        "prompt_eval_count": usage.prompt_tokens,
        "prompt_eval_duration": _nanoseconds(timings.prefill_s),
        "eval_count": usage.completion_tokens,
        "eval_duration": _nanoseconds(timings.decode_s),
    }


def _nanoseconds(seconds: float) -> int:
    return max(0, round(seconds * NANOSECONDS))


def logprobs_of(entries: Sequence[TokenLogprob]) -> list[dict[str, Any]]:
    """Ollama's `logprobs`: like OpenAI's, without the wrapper."""
    return openai.logprob_entries(entries)


@dataclass(slots=True)
class LineWriter:
    """Events to the objects of one NDJSON stream. `chat` tells `/api/chat` from `/api/generate`."""

    model: str
    chat: bool
    hide_thinking: bool = False
    load_s: float = 0.0
    context: tuple[int, ...] | None = None
    calls: int = field(default=0)

    def _line(self, content: str = "", *, thinking: str = "", calls: list[dict[str, Any]] | None = None,
              logprobs: Sequence[TokenLogprob] = ()) -> dict[str, Any]:  # fmt: skip
        line: dict[str, Any] = {"model": self.model, "created_at": timestamp()}
        if self.chat:
            message: dict[str, Any] = {"role": "assistant", "content": content}
            if thinking:
                message["thinking"] = thinking
            if calls:
                message["tool_calls"] = calls
            line["message"] = message
        else:
            line["response"] = content
            if thinking:
                line["thinking"] = thinking
        if logprobs:
            line["logprobs"] = logprobs_of(logprobs)
        return {**line, "done": False}

    def write(self, event: Event) -> list[dict[str, Any]]:
        """The objects for one event; that for `Done` is the last line."""
        if isinstance(event, ReasoningDelta):
            return [] if self.hide_thinking else [self._line(thinking=event.text)]
        if isinstance(event, TextDelta | PreambleDelta):
            return [self._line(event.text, logprobs=event.logprobs)]
        if isinstance(event, ToolCallEnd):
            if not self.chat:
                return []
            self.calls += 1
            return [self._line(calls=[call_object(event.call_id, self.calls - 1, event.name, event.arguments)])]
        if isinstance(event, Done):
            return [self.last(event)]
        return []

    def last(self, done: Done) -> dict[str, Any]:
        """The closing object with counts and durations."""
        line = {**self._line(), "done": True, "done_reason": done_reason_of(done.finish_reason)}
        if self.context is not None:
            line["context"] = list(self.context)
        return {**line, **counts_of(done, self.load_s)}

    def only(self, reason: Literal["load", "unload"]) -> dict[str, Any]:
        """The answer to a request that asks for nothing but loading or unloading."""
        return {**self._line(), "done": True, "done_reason": reason}


def call_object(call_id: str, index: int, name: str, arguments: str) -> dict[str, Any]:
    """One tool call. Arguments must be an object here; text that is none is handed over under `raw`."""
    parsed = parse_arguments(arguments)
    value = parsed if parsed is not None else {"raw": arguments}
    return {"id": call_id, "function": {"index": index, "name": name, "arguments": value}}


def fold(lines: Sequence[Mapping[str, Any]], chat: bool) -> dict[str, Any]:
    """The non-streaming answer: all lines of the stream as one object."""
    whole = dict(lines[-1])
    logprobs = [entry for line in lines for entry in line.get("logprobs", ())]
    if chat:
        messages = [line["message"] for line in lines]
        message: dict[str, Any] = {"role": "assistant", "content": "".join(part["content"] for part in messages)}
        thinking = "".join(part.get("thinking", "") for part in messages)
        calls = [call for part in messages for call in part.get("tool_calls", ())]
        whole["message"] = (
            message | ({"thinking": thinking} if thinking else {}) | ({"tool_calls": calls} if calls else {})
        )
    else:
        whole["response"] = "".join(line["response"] for line in lines)
        thinking = "".join(line.get("thinking", "") for line in lines)
        if thinking:
            whole["thinking"] = thinking
    if logprobs:
        whole["logprobs"] = logprobs
    return whole
