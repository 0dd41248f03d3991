"""What the model wrote, remembered for clients that send only a part of it back.

Most clients return an assistant turn as its visible text or its tool calls. The reasoning that belongs to a tool
call, and the exact tokens that keep the prefix cache valid, are therefore kept here and put back into the history.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, replace

from mlx_gptoss.messages import AssistantMessage, Message, ToolMessage


@dataclass(frozen=True, slots=True)
class _Turn:
    message: AssistantMessage


def _digest(history: Sequence[Message], text: str) -> bytes:
    """A key for a turn: what came before it, as far as clients echo it, and its visible text."""
    state = hashlib.blake2b(digest_size=16)
    for message in history:
        name = type(message).__name__
        calls = "|".join(call.id for call in message.tool_calls) if isinstance(message, AssistantMessage) else ""
        state.update(f"{name}\0{message.text}\0{calls}\0".encode("utf-8", "surrogatepass"))
    state.update(text.encode("utf-8", "surrogatepass"))
    return state.digest()


class TurnStore:
    """Finished turns by tool-call id, and by conversation so far; the least recently used go first."""

    def __init__(self, capacity: int = 4096) -> None:
        self._capacity = capacity
        self._turns: OrderedDict[bytes | str, _Turn] = OrderedDict()

    def __len__(self) -> int:
        return len(self._turns)

    def remember(self, history: Sequence[Message], message: AssistantMessage) -> None:
        """Keep one finished turn that answered `history`."""
        if message.token_ids is None:
            return
        turn = _Turn(message)
        keys: list[bytes | str] = [call.id for call in message.tool_calls] or [_digest(history, message.text)]
        for key in keys:
            self._turns[key] = turn
            self._turns.move_to_end(key)
        while len(self._turns) > self._capacity:
            self._turns.popitem(last=False)

    def restore(self, messages: Sequence[Message]) -> tuple[Message, ...]:
        """The conversation with reasoning and exact tokens put back where they are known.

        A turn that the client changed (other text, other arguments) stays as the client sent it; what the client
        says about reasoning wins over what is remembered.
        """
        restored: list[Message] = []
        for message in messages:
            restored.append(self._restore_one(restored, message))
        return tuple(restored)

    def _restore_one(self, before: Sequence[Message], message: Message) -> Message:
        if isinstance(message, ToolMessage) and not message.name:
            known = self._turns.get(message.call_id)
            names = [call.name for call in known.message.tool_calls if call.id == message.call_id] if known else []
            return replace(message, name=names[0]) if names else message
        if not isinstance(message, AssistantMessage) or message.token_ids is not None:
            return message
        key = message.tool_calls[0].id if message.tool_calls else _digest(before, message.text)
        turn = self._turns.get(key)
        if turn is None:
            return message
        self._turns.move_to_end(key)
        known_calls = [(call.id, call.name, call.arguments) for call in turn.message.tool_calls]
        same_calls = known_calls == [(call.id, call.name, call.arguments) for call in message.tool_calls]
        same_text = message.text in (
            "",
            turn.message.text,
            turn.message.preamble,
            turn.message.preamble + turn.message.text,
        )
        same_reasoning = message.reasoning in ("", turn.message.reasoning)
        if same_calls and same_text and same_reasoning:
            return turn.message
        return replace(message, reasoning=message.reasoning or turn.message.reasoning)
