"""Conversation messages and tools, as every layer above the engine sees them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call the model made. `arguments` is the raw text it wrote: usually JSON, never guaranteed to be."""

    id: str
    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class SystemMessage:
    """What APIs call the system prompt; rendered under `# Instructions` of the developer message."""

    text: str


@dataclass(frozen=True, slots=True)
class DeveloperMessage:
    """Developer instructions; joined with system messages in order."""

    text: str


@dataclass(frozen=True, slots=True)
class UserMessage:
    text: str


@dataclass(frozen=True, slots=True)
class AssistantMessage:
    """One assistant turn: what it thought, said and called.

    `preamble` is commentary without a recipient: text for the user that comes before tool calls.
    `token_ids`, when present, are exactly the tokens the model generated for the turn (stop token included);
    rendering splices them instead of re-rendering the text, so that cached prefixes stay valid.
    """

    text: str = ""
    reasoning: str = ""
    preamble: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    token_ids: tuple[int, ...] | None = None

    @classmethod
    def said(cls, text: str, *, reasoning: str = "", tool_calls: tuple[ToolCall, ...] = ()) -> AssistantMessage:
        """A turn as APIs send it, with one text: beside calls that was said before them, so it is the preamble."""
        if tool_calls:
            return cls(preamble=text, reasoning=reasoning, tool_calls=tool_calls)
        return cls(text=text, reasoning=reasoning)


@dataclass(frozen=True, slots=True)
class ToolMessage:
    """The result of one tool call. `name` is the tool's bare name (`get_weather`, `browser.search`, `python`)."""

    call_id: str
    name: str
    text: str


Message: TypeAlias = SystemMessage | DeveloperMessage | UserMessage | AssistantMessage | ToolMessage


@dataclass(frozen=True, slots=True)
class Tool:
    """A function the model may call. `parameters` is a JSON Schema object, or None for no arguments.

    `strict` asks that arguments be constrained to the schema token by token.
    """

    name: str
    description: str = ""
    parameters: Mapping[str, Any] | None = None
    strict: bool = False
