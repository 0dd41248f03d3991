"""Which messages a prompt holds: Harmony's rules for past reasoning, and turns spliced token by token.

After a `final`, earlier analysis is dropped; analysis since the last `final` (a tool loop in progress) is kept.
Built-in tools are called on the analysis channel, so their past calls and results go with the reasoning.
A turn that comes with its generated tokens is spliced from them, never rendered again, so that what the cache holds
stays valid up to the first message that the rules remove.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Sequence, Set
from dataclasses import dataclass
from typing import Final

from mlx_gptoss.harmony.header import Kind
from mlx_gptoss.harmony.parser import HarmonyParser, ParsedMessage
from mlx_gptoss.harmony.special import CALL, CHANNEL, CONSTRAIN, END, MESSAGE, RETURN, START, VOCABULARY_SIZE
from mlx_gptoss.harmony.vocabulary import Vocabulary
from mlx_gptoss.messages import AssistantMessage, Message, ToolMessage, UserMessage

_UNSAFE_NAME: Final = re.compile(r"[\s<>|]+")


@dataclass(frozen=True, slots=True)
class Piece:
    """One message of the prompt as tokens. `stale_after_final` marks analysis; `is_final` marks an answer."""

    tokens: tuple[int, ...]
    stale_after_final: bool = False
    is_final: bool = False


class HistoryWriter:
    """Turns conversation messages into pieces. `functions` are the offered tools' bare names."""

    def __init__(self, vocabulary: Vocabulary, functions: Set[str], builtin_tools: Iterable[str]) -> None:
        self._vocabulary = vocabulary
        self._functions = frozenset(functions)
        self._builtin_tools = frozenset(builtin_tools)
        self._assistant = (START, *vocabulary.encode_cached("assistant"))
        self._call_channels: dict[str, str] = {}

    def pieces(self, messages: Sequence[Message]) -> list[Piece]:
        """All pieces of `messages` in order, nothing dropped yet; system and developer messages keep their place."""
        pieces: list[Piece] = []
        for message in messages:
            if isinstance(message, AssistantMessage):
                spliced = None if message.token_ids is None else self._splice(message, message.token_ids)
                pieces += self._write(message) if spliced is None else spliced
            elif isinstance(message, ToolMessage):
                pieces.append(self._tool_result(message))
            elif isinstance(message, UserMessage):
                pieces.append(self.message("user", message.text))
            else:
                pieces.append(self.message("developer", f"# Instructions\n\n{message.text}"))
        return pieces

    def message(
        self,
        role: str,
        text: str,
        *,
        recipient: str = "",
        channel: str = "",
        content_type: str = "",
        constrain: str = "",
    ) -> Piece:
        """One rendered message; every text in it is encoded as plain text. A recipient of the assistant ends it with
        `<|call|>`."""
        encode = self._vocabulary.encode_cached
        tokens = [START, *encode(role)]
        if recipient:
            tokens += encode(f" to={recipient}")
        if channel:
            tokens += [CHANNEL, *encode(channel)]
        if constrain:
            tokens += [*encode(" "), CONSTRAIN, *encode(constrain)]
        elif content_type:
            tokens += encode(f" {content_type}")
        is_call = bool(recipient) and role == "assistant"
        tokens += [MESSAGE, *encode(text), CALL if is_call else END]
        return Piece(
            tuple(tokens),
            stale_after_final=channel == "analysis",
            is_final=channel == "final" and not is_call,
        )

    def _write(self, message: AssistantMessage) -> list[Piece]:
        pieces = []
        if message.reasoning:
            pieces.append(self.message("assistant", message.reasoning, channel="analysis"))
        if message.preamble:
            pieces.append(self.message("assistant", message.preamble, channel="commentary"))
        if message.text:
            channel = "commentary" if message.tool_calls else "final"
            pieces.append(self.message("assistant", message.text, channel=channel))
        for call in message.tool_calls:
            recipient, is_builtin = self._recipient(call.name)
            channel = "analysis" if is_builtin else "commentary"
            self._call_channels[call.id] = channel
            pieces.append(
                self.message(
                    "assistant",
                    call.arguments,
                    recipient=recipient,
                    channel=channel,
                    content_type="code" if is_builtin else "",
                    constrain="" if is_builtin else "json",
                )
            )
        return pieces or [self.message("assistant", "", channel="final")]

    def _tool_result(self, message: ToolMessage) -> Piece:
        author, is_builtin = self._recipient(message.name)
        channel = self._call_channels.get(message.call_id, "analysis" if is_builtin else "commentary")
        return self.message(author, message.text, recipient="assistant", channel=channel)

    def _recipient(self, name: str) -> tuple[str, bool]:
        """Harmony's name for a tool, and whether it is built in."""
        safe = _UNSAFE_NAME.sub("_", name).removeprefix("functions.") or "unknown"
        if safe not in self._functions and safe.partition(".")[0] in self._builtin_tools:
            return safe, True
        return f"functions.{safe}", False

    def _splice(self, message: AssistantMessage, token_ids: Sequence[int]) -> list[Piece] | None:
        """The turn's own tokens, cut at its message boundaries; None when they hold no message at all."""
        if any(not 0 <= token_id < VOCABULARY_SIZE for token_id in token_ids):
            return None
        parsed = _messages_in(self._vocabulary, self._functions | self._builtin_tools, tuple(token_ids))
        if not parsed:
            return None
        calls = iter(message.tool_calls)
        pieces = []
        for index, one in enumerate(parsed):
            # Stray tokens between two messages stay with the first, so that nothing dropped means nothing changed.
            start = 0 if index == 0 else one.start
            stop = parsed[index + 1].start if index + 1 < len(parsed) else one.stop
            tokens = list(token_ids[start:stop])
            if tokens[-1] == RETURN:
                tokens[-1] = END
            elif index + 1 == len(parsed) and tokens[-1] not in (END, CALL):
                tokens.append(END)
            if index == 0:
                tokens[:0] = self._assistant
            if one.kind == "call":
                call = next(calls, None)
                if call is not None:
                    self._call_channels[call.id] = one.header.channel or "commentary"
            pieces.append(Piece(tuple(tokens), _is_stale(one.kind, one.header.channel), one.kind == "text"))
        return pieces

    def assemble(self, pieces: Sequence[Piece]) -> list[Piece]:
        """Drop the analysis that comes before the last answer, and give back its `<|start|>assistant` to a message that
        had leaned on a dropped one."""
        last_final = max((index for index, piece in enumerate(pieces) if piece.is_final), default=-1)
        kept: list[Piece] = []
        dropped_before = False
        for index, piece in enumerate(pieces):
            if piece.stale_after_final and index < last_final:
                dropped_before = True
                continue
            if dropped_before and piece.tokens[0] != START:
                piece = Piece(self._assistant + piece.tokens, piece.stale_after_final, piece.is_final)
            dropped_before = False
            kept.append(piece)
        return kept


@functools.lru_cache(maxsize=256)
def _messages_in(
    vocabulary: Vocabulary, tool_names: frozenset[str], token_ids: tuple[int, ...]
) -> tuple[ParsedMessage, ...]:
    """The messages of a generated turn; remembered, because every later prompt of the conversation asks again."""
    parser = HarmonyParser(vocabulary, tool_names, new_id=str)
    parser.feed_all(token_ids)
    parser.finish()
    return parser.messages


def _is_stale(kind: Kind, channel: str | None) -> bool:
    return kind == "reasoning" or (kind == "call" and channel == "analysis")
