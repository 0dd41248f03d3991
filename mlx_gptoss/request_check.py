"""Whether a request's parts are what their types say: callers without a type checker get one clear error."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import date
from numbers import Integral, Real
from typing import Any, get_args

from mlx_gptoss.errors import InvalidRequestError
from mlx_gptoss.messages import AssistantMessage, Message, Tool, ToolCall
from mlx_gptoss.request import ChatRequest, Effort, ResponseFormat, SamplingParams, ToolChoice

_MESSAGES = get_args(Message)
_EXAMPLE = 'such as UserMessage("Hello")'


def check_request(request: ChatRequest) -> None:
    """Raises InvalidRequestError that names the first field of the wrong type. Values are checked where they are used,
    but for those that nothing else looks at."""
    for message in request.messages:
        check_message(message)
    _each(() if request.prompt_ids is None else request.prompt_ids, is_whole, "prompt_ids", "whole numbers")
    _each(request.tools, lambda tool: isinstance(tool, Tool), "tools", "Tool objects")
    for tool in request.tools:
        _one(tool.name, _is_text, "tools", "a name that is text")
        _one(tool.description, _is_text, "tools", "a description that is text")
    for stop in request.stop:
        _one(stop, lambda text: bool(_is_text(text) and text), "stop", "text that is not empty")
    _one(request.raw_prompt, _or_none(_is_text), "raw_prompt", "text")
    _one(request.effort, lambda effort: effort in get_args(Effort), "effort", "low, medium or high")
    _one(request.sampling, lambda value: isinstance(value, SamplingParams), "sampling", "SamplingParams")
    _one(request.max_tokens, _or_none(is_whole), "max_tokens", "a whole number")
    _one(
        request.reasoning_budget,
        _or_none(lambda value: is_whole(value) and value >= 0),
        "reasoning_budget",
        "a whole number, not negative",
    )
    _one(request.timeout_s, _or_none(_is_number), "timeout_s", "seconds")
    _one(request.current_date, _or_none(lambda value: isinstance(value, date)), "current_date", "a date")
    _one(request.tool_choice, lambda value: isinstance(value, ToolChoice), "tool_choice", "a ToolChoice")
    _one(
        request.tool_choice.mode,
        lambda mode: mode in ("auto", "none", "required", "named"),
        "tool_choice",
        "auto, none, required or named",
    )
    _check_format(request.response_format)


def _check_format(wanted: ResponseFormat) -> None:
    name = "response_format"
    _one(wanted, lambda value: isinstance(value, ResponseFormat), name, "a ResponseFormat")
    _one(
        wanted.kind, lambda kind: kind in ("text", "json_object", "json_schema"), name, "text, json_object, json_schema"
    )
    if wanted.kind == "json_schema":
        _one(wanted.schema, lambda schema: isinstance(schema, Mapping), name, "a schema, which is an object")


def check_message(message: object) -> None:
    """Raises InvalidRequestError unless `message` is one of ours, with text where text belongs."""
    if not isinstance(message, _MESSAGES):
        raise InvalidRequestError(
            "a message has the wrong type",
            param="messages",
            expected=f"a message object {_EXAMPLE}",
            got=type(message).__name__,
        )
    _one(message.text, _is_text, "messages", "a message's text")
    if isinstance(message, AssistantMessage):
        _one(message.reasoning, _is_text, "messages", "reasoning that is text")
        _one(message.preamble, _is_text, "messages", "a preamble that is text")
        _each(
            () if message.token_ids is None else message.token_ids,
            is_whole,
            "messages",
            "token ids that are whole numbers",
        )
        _each(message.tool_calls, _is_call, "messages", "ToolCall objects of texts")


def as_tuple(value: object, param: str, expected: str) -> tuple[Any, ...]:
    """A sequence as a tuple. Raises InvalidRequestError for what cannot be gone through."""
    if not isinstance(value, Iterable):
        raise InvalidRequestError(
            f"{param} has the wrong type", param=param, expected=expected, got=type(value).__name__
        )
    return tuple(value)


def is_whole(value: object) -> bool:
    """Whether a value is a whole number, of Python or numpy, and not a truth value."""
    return isinstance(value, Integral) and not isinstance(value, bool)


def _is_number(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _is_call(value: object) -> bool:
    return isinstance(value, ToolCall) and all(map(_is_text, (value.id, value.name, value.arguments)))


def _or_none(right: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: value is None or right(value)


def _one(value: object, right: Callable[[Any], bool], param: str, expected: str) -> None:
    if not right(value):
        raise InvalidRequestError(f"{param} cannot be used", param=param, expected=expected, got=repr(value)[:80])


def _each(values: Sequence[object], right: Callable[[Any], bool], param: str, expected: str) -> None:
    for value in values:
        _one(value, right, param, expected)
