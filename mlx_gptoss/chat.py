"""Chat: a conversation that remembers what was said, token for token."""

from __future__ import annotations

import dataclasses
import threading
import uuid
from collections.abc import AsyncIterator, Sequence
from typing import Any, TypeAlias

from mlx_gptoss.errors import InvalidRequestError
from mlx_gptoss.events import Event
from mlx_gptoss.llm import GptOss, Progress, as_request
from mlx_gptoss.messages import (
    AssistantMessage,
    DeveloperMessage,
    Message,
    SystemMessage,
    ToolCall,
    ToolMessage,
    UserMessage,
)
from mlx_gptoss.request_check import as_tuple, check_message, check_request
from mlx_gptoss.stream import Completion, Stream

Turn: TypeAlias = str | Message | Sequence[Message]
"""What a turn adds: the user's text, or messages (tool results)."""

_MESSAGES = (SystemMessage, DeveloperMessage, UserMessage, AssistantMessage, ToolMessage)


class Chat:
    """A conversation with a GptOss. Made by `GptOss.chat`; one turn at a time.

    Every answer is remembered with its tokens, so the next turn prefills only what is new. An answer that was cut
    off is remembered as far as its text goes; one that never got to its text is not.
    """

    def __init__(
        self, llm: GptOss, *, system: str | None = None, messages: Sequence[Message] = (), **options: Any
    ) -> None:
        self._llm = llm
        self._options = options
        self._key = f"chat-{uuid.uuid4().hex}"
        self._messages: list[Message] = [] if system is None else [SystemMessage(system)]
        self._messages += messages
        self._lock = threading.Lock()
        check_request(as_request([UserMessage("")], options))  # a bad option is reported here, not at the first turn

    @property
    def messages(self) -> tuple[Message, ...]:
        """The conversation so far."""
        return tuple(self._messages)

    @property
    def pending_calls(self) -> tuple[ToolCall, ...]:
        """Calls of the last answer that have no result yet."""
        answered: set[str] = set()
        for message in reversed(self._messages):
            if isinstance(message, ToolMessage):
                answered.add(message.call_id)
            elif isinstance(message, AssistantMessage):
                return tuple(call for call in message.tool_calls if call.id not in answered)
            else:
                break
        return ()

    def add(self, message: Message) -> None:
        """Appends a message without asking for an answer."""
        check_message(message)
        with self._lock:
            self._messages.append(message)

    def add_tool_result(self, call: ToolCall | str, text: str) -> None:
        """Appends a tool's result, for a call or the id of a pending one."""
        if isinstance(call, str):
            matching = [pending for pending in self.pending_calls if pending.id == call]
            if not matching:
                raise InvalidRequestError("no such call is waiting for a result", param="call_id", got=call)
            call = matching[0]
        self.add(ToolMessage(call.id, call.name, text))

    def reset(self, messages: Sequence[Message] | None = None) -> None:
        """Starts over with `messages`, or with the system prompt that came first."""
        with self._lock:
            for message in messages or ():
                check_message(message)
            if messages is None:
                messages = [m for m in self._messages[:1] if isinstance(m, SystemMessage)]
            self._messages = list(messages)

    def undo(self) -> bool:
        """Forgets the last user message and everything after it; False when there is none."""
        with self._lock:
            places = [i for i, message in enumerate(self._messages) if isinstance(message, UserMessage)]
            if places:
                del self._messages[places[-1] :]
            return bool(places)

    def stream(self, turn: Turn = (), *, on_progress: Progress | None = None, **options: Any) -> Stream:
        """Adds `turn` and streams the answer to the conversation; options go before the chat's own for this turn.

        With nothing to add it answers what is there (after `add_tool_result`). When the request is refused, the
        conversation stays as it was. The answer joins the conversation when the stream has been read to its end or its
        context is left.
        """
        added: list[Message]
        if isinstance(turn, str):
            if not turn.strip():
                raise InvalidRequestError("the message is empty", param="prompt")
            added = [UserMessage(turn)]
        else:
            added = [turn] if isinstance(turn, _MESSAGES) else list(as_tuple(turn, "turn", "text or messages"))
        with self._lock:
            request = as_request([*self._messages, *added], {**self._options, **options})
            stream = self._llm.start(request, cache_key=self._key, on_progress=on_progress, on_done=self._remember)
            self._messages += added
        return stream

    def send(self, turn: Turn = (), **options: Any) -> Completion:
        """Adds `turn` and gives the whole answer. Raises as `GptOss.generate` does."""
        with self.stream(turn, **options) as stream:
            return stream.result()

    async def astream(self, turn: Turn = (), **options: Any) -> AsyncIterator[Event]:
        """As `stream`, for `async for`."""
        async with self.stream(turn, **options) as stream:
            async for event in stream:
                yield event

    async def asend(self, turn: Turn = (), **options: Any) -> Completion:
        """As `send`, without blocking the event loop."""
        return await self.stream(turn, **options).aresult()

    def _remember(self, completion: Completion) -> None:
        message = completion.message
        if completion.finish_reason in ("cancelled", "timeout", "error"):
            if not message.text:
                return
            if message.tool_calls:
                message = dataclasses.replace(message, tool_calls=(), token_ids=None)
        self.add(message)
