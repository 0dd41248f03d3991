"""What OpenAI's chat completions and Responses have in common: efforts, tools, formats, usage, finish reasons."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from mlx_gptoss.errors import InvalidRequestError
from mlx_gptoss.events import FinishReason, TokenLogprob, Usage
from mlx_gptoss.messages import Tool
from mlx_gptoss.request import Effort, ResponseFormat, ToolChoice

_EFFORTS: Mapping[str, Effort] = {
    "none": "low",
    "minimal": "low",
    "low": "low",
    "medium": "medium",
    "high": "high",
    "xhigh": "high",
    "max": "high",
}
_TEXT_PARTS = frozenset({"text", "input_text", "output_text", "summary_text", "reasoning_text", "refusal"})


def effort_of(value: str | None, param: str = "reasoning_effort") -> Effort:
    """gpt-oss knows three efforts; the API's other words go to the nearest. None is medium."""
    if value is None:
        return "medium"
    effort = _EFFORTS.get(value)
    if effort is None:
        raise InvalidRequestError("unknown effort", param=param, expected=", ".join(_EFFORTS), got=repr(value[:40]))
    return effort


def text_of(content: Any, param: str) -> str:
    """The text of a message's content: a string, a list of parts, or None. Parts that are not text are refused."""
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if not isinstance(content, Sequence):
        raise InvalidRequestError("content is neither text nor a list of parts", param=param)
    pieces = []
    for index, part in enumerate(content):
        if isinstance(part, str):
            pieces.append(part)
            continue
        kind = part.get("type") if isinstance(part, Mapping) else None
        text = (part.get("text", part.get("refusal")) if isinstance(part, Mapping) else None) or ""
        if not isinstance(kind, str) or kind not in _TEXT_PARTS or not isinstance(text, str):
            raise InvalidRequestError(
                "gpt-oss reads text only", param=f"{param}.{index}", expected="a text part", got=repr(kind)
            )
        pieces.append(text)
    return "".join(pieces)


def tool_from_function(function: Any, param: str) -> Tool:
    """A Tool from an OpenAI function object. Raises InvalidRequestError that names the field."""
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str) or not function["name"]:
        raise InvalidRequestError("a tool has no name", param=f"{param}.name")
    parameters = function.get("parameters")
    if parameters is not None and not isinstance(parameters, Mapping):
        raise InvalidRequestError("a tool's parameters are not a JSON Schema object", param=f"{param}.parameters")
    description = function.get("description")
    return Tool(
        name=function["name"],
        description=description if isinstance(description, str) else "",
        parameters=parameters or None,
        strict=function.get("strict") is True,
    )


def tool_choice_of(
    value: Any, tools: Sequence[Tool], param: str = "tool_choice"
) -> tuple[ToolChoice, tuple[Tool, ...]]:
    """The choice, and the tools it leaves. Understands auto, none, required, a named function and allowed_tools."""
    known = tuple(tools)
    if value is None or value == "auto":
        return ToolChoice("auto"), known
    if value == "none":
        return ToolChoice("none"), known
    if value == "required" or value == "any":
        return _needing_tools(ToolChoice("required"), known, param)
    if isinstance(value, Mapping):
        kind = value.get("type")
        if kind == "allowed_tools":
            return _allowed(value.get("allowed_tools", value), known, param)
        inner = value.get("function", value)
        name = inner.get("name") if isinstance(inner, Mapping) else None
        if kind in ("function", "custom", "tool") and isinstance(name, str):
            if name not in {tool.name for tool in known}:
                raise InvalidRequestError("tool_choice names no tool of the request", param=param, got=repr(name[:80]))
            return ToolChoice("named", name), known
    raise InvalidRequestError(
        "not a tool choice", param=param, expected="auto, none, required or a named function", got=repr(value)[:120]
    )


def _needing_tools(choice: ToolChoice, tools: tuple[Tool, ...], param: str) -> tuple[ToolChoice, tuple[Tool, ...]]:
    if not tools:
        raise InvalidRequestError("tool_choice requires a call but the request has no tools", param=param)
    return choice, tools


def _allowed(value: Any, tools: tuple[Tool, ...], param: str) -> tuple[ToolChoice, tuple[Tool, ...]]:
    entries = value.get("tools") if isinstance(value, Mapping) else None
    names = set()
    for entry in entries if isinstance(entries, list) else []:
        inner = entry.get("function", entry) if isinstance(entry, Mapping) else {}
        name = inner.get("name") if isinstance(inner, Mapping) else None
        if isinstance(name, str):
            names.add(name)
    left = tuple(tool for tool in tools if tool.name in names)
    if isinstance(value, Mapping) and value.get("mode") == "required":
        return _needing_tools(ToolChoice("required"), left, param)
    return ToolChoice("auto"), left


def response_format_of(value: Any, param: str) -> ResponseFormat:
    """`response_format` of chat completions, or `text.format` of Responses (the schema one level higher there)."""
    if value is None:
        return ResponseFormat()
    kind = value.get("type") if isinstance(value, Mapping) else None
    if kind == "text":
        return ResponseFormat()
    if kind == "json_object":
        return ResponseFormat(kind="json_object")
    if kind == "json_schema":
        inner = value.get("json_schema", value)
        schema = inner.get("schema") if isinstance(inner, Mapping) else None
        if not isinstance(schema, Mapping):
            raise InvalidRequestError("json_schema has no schema object", param=f"{param}.schema")
        name, description = inner.get("name"), inner.get("description")
        return ResponseFormat(
            kind="json_schema",
            schema=schema,
            name=name if isinstance(name, str) and name else "response",
            description=description if isinstance(description, str) else "",
        )
    raise InvalidRequestError(
        "unknown response format", param=f"{param}.type", expected="text, json_object or json_schema", got=repr(kind)
    )


def logit_bias_of(value: Mapping[str, float] | None) -> dict[int, float]:
    """`logit_bias` with token ids as numbers."""
    bias = {}
    for key, weight in (value or {}).items():
        if not key.isdecimal() or len(key) > 7 or not -100 <= weight <= 100:
            raise InvalidRequestError(
                "not a logit bias", param="logit_bias", expected="token id: -100 to 100", got=f"{key[:20]!r}: {weight}"
            )
        bias[int(key)] = weight
    return bias


def finish_reason_of(reason: FinishReason) -> str:
    """The API's word: what was cut short is `length`, whatever cut it."""
    if reason in ("length", "repetition", "timeout", "cancelled"):
        return "length"
    return "tool_calls" if reason == "tool_calls" else "stop"


def summed(usages: Sequence[Usage]) -> Usage:
    """The usage of several choices of one request: the prompt counts once, what was generated adds up."""
    first = usages[0] if usages else Usage()
    return Usage(
        prompt_tokens=first.prompt_tokens,
        cached_tokens=first.cached_tokens,
        completion_tokens=sum(usage.completion_tokens for usage in usages),
        reasoning_tokens=sum(usage.reasoning_tokens for usage in usages),
    )


def usage_of(usage: Usage) -> dict[str, Any]:
    """The `usage` object of chat completions."""
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
        "completion_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
    }


def logprob_entries(logprobs: Iterable[TokenLogprob]) -> list[dict[str, Any]]:
    """`logprobs.content`: one entry a token."""
    return [
        {
            **_logprob_entry(entry.logprob, entry.bytes),
            "top_logprobs": [_logprob_entry(logprob, raw) for _, logprob, raw in entry.top],
        }
        for entry in logprobs
    ]


def _logprob_entry(logprob: float, raw: bytes) -> dict[str, Any]:
    # JSON has no infinity; OpenAI's own floor for impossible tokens is -9999.
    return {"token": raw.decode("utf-8", "replace"), "logprob": max(logprob, -9999.0), "bytes": list(raw)}
