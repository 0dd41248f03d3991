"""What the model wrote, remembered for clients that send only a part of it back.

Most clients return an assistant turn as its visible text or its tool calls. The reasoning that belongs to a tool
call, and the exact tokens that keep the prefix cache valid, are therefore kept here and put back into the history.
"""

from __future__ import annotations

import hashlib
import json
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import replace

from mlx_gptoss.messages import AssistantMessage, Message, ToolCall, ToolMessage


def _call_text(call: ToolCall) -> str:
    """A call without its id, its JSON written in one way: some clients drop ids, some re-write arguments."""
    try:
        arguments = json.dumps(json.loads(call.arguments), sort_keys=True)
    except (ValueError, RecursionError):
        arguments = call.arguments
    return f"{call.name}({arguments})"


def _visible(message: Message) -> bytes:
    """A message as far as every client echoes it."""
    if not isinstance(message, AssistantMessage):
        return f"{type(message).__name__}\0{message.text}\0".encode("utf-8", "surrogatepass")
    calls = "\1".join(_call_text(call) for call in message.tool_calls)
    # Text beside calls is a preamble, which some clients drop: the calls identify the turn.
    said = "" if calls else message.text
    return f"assistant\0{said}\0{calls}\0".encode("utf-8", "surrogatepass")


def _weight(message: AssistantMessage | None) -> int:
    return len(message.token_ids or ()) if message is not None else 0


class TurnStore:
    """Finished turns by tool-call id, and by the conversation so far; the least recently used go first.

    `capacity` bounds the entries and `max_tokens` the tokens that they keep.
    """

    def __init__(self, capacity: int = 4096, max_tokens: int = 4_000_000) -> None:
        self._capacity = capacity
        self._max_tokens = max_tokens
        self._tokens = 0
        self._turns: OrderedDict[bytes | str, AssistantMessage] = OrderedDict()

    def __len__(self) -> int:
        return len(self._turns)

    def remember(self, history: Sequence[Message], message: AssistantMessage) -> None:
        """Keep one finished turn that answered `history`."""
        if message.token_ids is None:
            return
        state = hashlib.blake2b(digest_size=16)
        for earlier in (*history, message):
            state.update(_visible(earlier))
        keys: list[bytes | str] = [state.digest(), *(call.id for call in message.tool_calls)]
        for key in keys:
            self._tokens -= _weight(self._turns.pop(key, None))
            self._turns[key] = message
            self._tokens += _weight(message)
        while self._turns and (len(self._turns) > self._capacity or self._tokens > self._max_tokens):
            self._tokens -= _weight(self._turns.popitem(last=False)[1])

    def restore(self, messages: Sequence[Message]) -> tuple[Message, ...]:
        """The conversation with reasoning and exact tokens put back where they are known.

        A turn that the client changed (other text, other arguments) stays as the client sent it; what the client
        says about reasoning wins over what is remembered.
        """
        state = hashlib.blake2b(digest_size=16)
        restored = []
        for message in messages:
            state.update(_visible(message))
            restored.append(self._restored(message, state.digest()))
        return tuple(restored)

    def _restored(self, message: Message, digest: bytes) -> Message:
        if isinstance(message, ToolMessage):
            return message if message.name else replace(message, name=self._call_name(message.call_id))
        if not isinstance(message, AssistantMessage) or message.token_ids is not None:
            return message
        keys: list[bytes | str] = [*(call.id for call in message.tool_calls[:1]), digest]
        for key in keys:
            known = self._turns.get(key)
            if known is not None and _visible(known) == _visible(message):
                self._turns.move_to_end(key)
                same = message.reasoning in ("", known.reasoning)
                return known if same else replace(known, reasoning=message.reasoning, token_ids=None)
        return message

    def _call_name(self, call_id: str) -> str:
        known = self._turns.get(call_id)
        return next((call.name for call in known.tool_calls if call.id == call_id), "") if known is not None else ""
