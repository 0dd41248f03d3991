"""Items of OpenAI's Responses: input items to messages, and a finished turn to output items."""

from __future__ import annotations

import base64
import json
import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from mlx_gptoss.errors import InvalidRequestError
from mlx_gptoss.events import TokenLogprob
from mlx_gptoss.messages import (
    AssistantMessage,
    DeveloperMessage,
    Message,
    SystemMessage,
    ToolCall,
    ToolMessage,
    UserMessage,
)
from mlx_gptoss.server.wire import openai

# Items of hosted tools: history of another service's tools, which gpt-oss here neither runs nor needs.
_PASSED_OVER = frozenset(
    {"web_search_call", "file_search_call", "computer_call", "computer_call_output", "image_generation_call",
     "code_interpreter_call", "local_shell_call", "local_shell_call_output", "shell_call", "shell_call_output",
     "apply_patch_call", "apply_patch_call_output", "mcp_call", "mcp_list_tools", "mcp_approval_request",
     "mcp_approval_response", "tool_search_call", "tool_search_output", "compaction"}
)  # fmt: skip


def new_id(prefix: str) -> str:
    """An id as the API writes them: `msg_<hex>`."""
    return f"{prefix}_{uuid.uuid4().hex}"


def seal(reasoning: str) -> str:
    """`encrypted_content`: reasoning that a client which keeps nothing else can hand back. Encoded, not secret."""
    return base64.b64encode(json.dumps({"reasoning": reasoning}).encode()).decode()


def unseal(text: str) -> str:
    """The reasoning in `encrypted_content` of ours; another service's is unreadable and counts as none."""
    try:
        value = json.loads(base64.b64decode(text, validate=True))
    except (ValueError, UnicodeDecodeError, RecursionError):
        return ""
    found = value.get("reasoning") if isinstance(value, dict) else None
    return found if isinstance(found, str) else ""


class _Turns:
    """Builds messages from items: neighbouring reasoning, assistant text and calls are one turn."""

    def __init__(self) -> None:
        self.messages: list[Message] = []
        self._reasoning: list[str] = []
        self._text: list[str] = []
        self._calls: list[ToolCall] = []
        self._names: dict[str, str] = {}

    def reasoning(self, text: str) -> None:
        # Reasoning opens a new turn once the last one has said or called something.
        if self._text:
            self.close()
        self._reasoning.append(text)

    def said(self, text: str) -> None:
        if self._calls:
            self.close()
        self._text.append(text)

    def call(self, call: ToolCall) -> None:
        self._calls.append(call)
        self._names[call.id] = call.name

    def result(self, call_id: str, text: str) -> None:
        self.close()
        self.messages.append(ToolMessage(call_id, self._names.get(call_id, ""), text))

    def other(self, message: Message) -> None:
        self.close()
        self.messages.append(message)

    def close(self) -> None:
        if not (self._reasoning or self._text or self._calls):
            return
        text, reasoning = "".join(self._text), "\n".join(self._reasoning)
        self.messages.append(AssistantMessage.said(text, reasoning=reasoning, tool_calls=tuple(self._calls)))
        self._reasoning, self._text, self._calls = [], [], []


def messages_of(
    items: str | Sequence[Mapping[str, Any]], resolve: Callable[[str], Mapping[str, Any] | None]
) -> tuple[Message, ...]:
    """Input items as messages. `resolve` finds a stored item by its id, for `item_reference`."""
    if isinstance(items, str):
        return (UserMessage(items),)
    turns = _Turns()
    for index, item in enumerate(items):
        _add(turns, item, f"input.{index}", resolve)
    turns.close()
    return tuple(turns.messages)


def _add(
    turns: _Turns, item: Mapping[str, Any], param: str, resolve: Callable[[str], Mapping[str, Any] | None]
) -> None:
    kind = item.get("type") or "message"
    if kind == "item_reference":
        found = resolve(str(item.get("id")))
        if found is None:
            raise InvalidRequestError("no such item is stored", param=f"{param}.id", got=repr(item.get("id"))[:80])
        _add(turns, found, param, lambda _: None)
    elif kind == "message":
        _add_message(turns, item, param)
    elif kind == "reasoning":
        parts = item.get("content") or item.get("summary")
        sealed = item.get("encrypted_content")
        text = openai.text_of(parts, f"{param}.content")
        turns.reasoning(text or (unseal(sealed) if isinstance(sealed, str) else ""))
    elif kind in ("function_call", "custom_tool_call"):
        name, call_id = item.get("name"), item.get("call_id")
        if not isinstance(name, str) or not isinstance(call_id, str):
            raise InvalidRequestError("a function call needs name and call_id", param=param)
        arguments = item.get("arguments", item.get("input", ""))
        turns.call(ToolCall(call_id, name, arguments if isinstance(arguments, str) else json.dumps(arguments)))
    elif kind in ("function_call_output", "custom_tool_call_output"):
        call_id = item.get("call_id")
        if not isinstance(call_id, str):
            raise InvalidRequestError("a function call output needs call_id", param=f"{param}.call_id")
        turns.result(call_id, openai.text_of(item.get("output"), f"{param}.output"))
    elif not isinstance(kind, str) or kind not in _PASSED_OVER:
        raise InvalidRequestError("unknown input item", param=f"{param}.type", got=repr(kind)[:80])


def _add_message(turns: _Turns, item: Mapping[str, Any], param: str) -> None:
    text = openai.text_of(item.get("content"), f"{param}.content")
    role = item.get("role")
    if role == "assistant":
        turns.said(text)
    elif role == "user":
        turns.other(UserMessage(text))
    elif role == "system":
        turns.other(SystemMessage(text))
    elif role == "developer":
        turns.other(DeveloperMessage(text))
    else:
        raise InvalidRequestError(
            "unknown role", param=f"{param}.role", expected="user, assistant, system or developer", got=repr(role)[:80]
        )


def stored_items(items: str | Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Input items as the input_items list shows them: every one with a type and an id."""
    if isinstance(items, str):
        items = [{"type": "message", "role": "user", "content": [{"type": "input_text", "text": items}]}]
    listed = []
    for item in items:
        kind = item.get("type") or "message"
        entry = {**item, "type": kind}
        if not isinstance(entry.get("id"), str):  # some clients send null
            entry["id"] = new_id({"message": "msg", "reasoning": "rs"}.get(str(kind), "item"))
        if kind == "message" and isinstance(entry.get("content"), str):
            part = "output_text" if entry.get("role") == "assistant" else "input_text"
            entry["content"] = [{"type": part, "text": entry["content"]}]
        listed.append(entry)
    return listed


# -- output items -----------------------------------------------------------------------------------------------


def reasoning_item(identifier: str, text: str, status: str, sealed: bool) -> dict[str, Any]:
    """A reasoning item; the text is in the open, as gpt-oss's is."""
    content = [{"type": "reasoning_text", "text": text}] if text else []
    item: dict[str, Any] = {"id": identifier, "type": "reasoning", "summary": [], "content": content, "status": status}
    return item | ({"encrypted_content": seal(text)} if sealed else {})


def text_part(text: str, logprobs: Sequence[TokenLogprob] = ()) -> dict[str, Any]:
    """An `output_text` part."""
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": openai.logprob_entries(logprobs)}


def message_item(identifier: str, parts: list[dict[str, Any]], status: str, phase: str | None = None) -> dict[str, Any]:
    """An assistant message item. `phase` tells commentary before calls from the answer."""
    item = {"id": identifier, "type": "message", "role": "assistant", "status": status, "content": parts}
    return item | ({"phase": phase} if phase is not None else {})


def call_item(identifier: str, call_id: str, name: str, arguments: str, status: str) -> dict[str, Any]:
    """A function call item."""
    return {
        "id": identifier,
        "type": "function_call",
        "call_id": call_id,
        "name": name,
        "arguments": arguments,
        "status": status,
    }
