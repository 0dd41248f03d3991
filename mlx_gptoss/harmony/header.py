"""What a message header says, read leniently: role, channel, recipients, content type, left-over words."""

from __future__ import annotations

import re
from collections.abc import Set
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

CHANNELS: Final = ("analysis", "commentary", "final")

Kind: TypeAlias = Literal["reasoning", "preamble", "text", "call", "ignored"]
"""Where a message's content goes. "ignored" is a message the model wrote in someone else's name."""

_RECIPIENT: Final = re.compile(r"\bto=\s*(\S*)")
_NOT_TOOLS: Final = frozenset({"", "assistant", "user", "all"})
_OTHER_ROLES: Final = frozenset({"user", "system", "developer", "tool"})
_CONTENT_TYPE: Final = re.compile(r"(json|code|text)\b\s*(.*)", re.DOTALL)
_FUNCTIONS: Final = "functions."


@dataclass(frozen=True, slots=True)
class Header:
    """A header as read. `recipients` keeps every `to=` in order of trust: channel part, constrain part, role part.

    `rest` is what follows the known words; in a header that never reached its content, that is content.
    """

    role: str
    channel: str | None
    recipients: tuple[str, ...]
    content_type: str | None
    rest: str


def read_header(role_part: str, channel_part: str | None, constrain_part: str | None) -> Header:
    """Read the text between `<|start|>`, `<|channel|>`, `<|constrain|>` and `<|message|>`. Never raises."""
    recipients: list[str] = []
    for part in (channel_part, constrain_part, role_part):
        recipients += _RECIPIENT.findall(part or "")
    role, role_rest = _read_role(_RECIPIENT.sub(" ", role_part).strip())
    if channel_part is None:
        channel, rest = _read_channel(role_rest) if role_rest.lower().startswith(CHANNELS) else (None, role_rest)
    else:
        channel, rest = _read_channel(_RECIPIENT.sub(" ", channel_part).strip())
    content_type = None
    if constrain_part is not None:
        content_type, _, after = _RECIPIENT.sub(" ", constrain_part).strip().partition(" ")
        rest = f"{rest} {after}".strip()
    else:
        named = _CONTENT_TYPE.match(rest)
        if named:
            content_type, rest = named.groups()
    return Header(role, channel, tuple(recipients), content_type or None, rest)


def _read_role(text: str) -> tuple[str, str]:
    if text.startswith("assistant") or not text:
        return "assistant", text.removeprefix("assistant").strip()
    word, _, rest = text.partition(" ")
    if word in _OTHER_ROLES or "." in word or word == "python":
        return word, rest.strip()
    return "assistant", text


def _read_channel(text: str) -> tuple[str | None, str]:
    lowered = text.lower()
    for name in CHANNELS:
        if lowered.startswith(name):
            return name, text[len(name) :].strip()
    word, _, rest = text.partition(" ")
    return word or None, rest.strip()


def route(header: Header, tool_names: Set[str]) -> tuple[Kind, str | None]:
    """Where the message goes, and the tool's bare name when that is a call.

    A recipient decides before the channel does; `final` with a recipient that is no tool is text.
    """
    if header.role != "assistant":
        return "ignored", None
    candidates = [name for name in map(_clean, header.recipients) if name not in _NOT_TOOLS]
    resolved = [(_tool_name(name, tool_names), name) for name in candidates]
    for tool, _ in resolved:
        if tool in tool_names:
            return "call", tool
    for tool, name in resolved:
        if tool and (header.channel != "final" or name.startswith(_FUNCTIONS)):
            return "call", tool
    if header.channel == "analysis":
        return "reasoning", None
    if header.channel == "commentary":
        return "preamble", None
    return "text", None


def _clean(recipient: str) -> str:
    return recipient.strip("\"'`,;:")


def _tool_name(recipient: str, tool_names: Set[str]) -> str | None:
    """Bare name of the tool that `recipient` means, known or not; None when it names nothing."""
    if recipient in ("functions", _FUNCTIONS):
        return next(iter(tool_names)) if len(tool_names) == 1 else None
    name = recipient.removeprefix(_FUNCTIONS)
    if name in tool_names:
        return name
    for suffix in ("json", "code"):
        if name.removesuffix(suffix) in tool_names:
            return name.removesuffix(suffix)
    last = name.rpartition(".")[2]
    return last if last in tool_names else name
