"""Token ids of one assistant turn to typed events: a total state machine over Harmony's special tokens.

It never raises, whatever the ids; no special token's text reaches an event; characters split over tokens wait until
they are whole. One token costs the same however long the turn is.
"""

from __future__ import annotations

import codecs
import uuid
from collections.abc import Callable, Iterable, Set
from dataclasses import dataclass
from enum import Enum
from typing import Final

from mlx_gptoss.events import (
    Event,
    PreambleDelta,
    ReasoningDelta,
    TextDelta,
    TokenLogprob,
    ToolCallDelta,
    ToolCallEnd,
    ToolCallStart,
)
from mlx_gptoss.harmony.header import Header, Kind, read_header, route
from mlx_gptoss.harmony.special import (
    CALL,
    CHANNEL,
    CONSTRAIN,
    END,
    MESSAGE,
    RETURN,
    START,
    TEXT_TOKENS,
)
from mlx_gptoss.harmony.vocabulary import Vocabulary

MAX_HEADER_TOKENS: Final = 256
"""A header this long has lost its `<|message|>`; what it holds beyond the known words is content."""

MIN_SPILL_TOKENS: Final = 8
"""A stream that stops inside a header longer than this had content in it; a shorter one was only cut off."""

_UTF8_DECODER: Final = codecs.getincrementaldecoder("utf-8")


class State(Enum):
    """Where in a message the stream is."""

    HEADER = "header"
    CONTENT = "content"
    BETWEEN = "between"


@dataclass(frozen=True, slots=True)
class ParsedMessage:
    """One finished message of the turn. Its tokens are [start, stop) of the stream, terminator included.

    `call_id` and `tool_name` are set for calls.
    """

    kind: Kind
    header: Header
    text: str
    start: int
    stop: int
    tool_name: str | None = None
    call_id: str | None = None


def new_call_id() -> str:
    """A fresh tool-call id."""
    return f"call_{uuid.uuid4().hex[:24]}"


class HarmonyParser:
    """Feeds on the tokens that follow a prompt's `<|start|>assistant`."""

    def __init__(
        self,
        vocabulary: Vocabulary,
        tool_names: Set[str] = frozenset(),
        new_id: Callable[[], str] = new_call_id,
    ) -> None:
        """`tool_names` are bare names of the offered tools, used to recognise recipients written without `functions.`;
        `new_id` makes the id of each call."""
        self._vocabulary = vocabulary
        self._tool_names = frozenset(tool_names)
        self._new_id = new_id
        self._position = 0
        self._reasoning_tokens = 0
        self._calls = 0
        self._messages: list[ParsedMessage] = []
        self._parts: dict[int, bytearray] = {}
        self._part = START
        self._header_tokens = 0
        self._message_start = 0
        self._header: Header | None = None
        self._kind: Kind = "ignored"
        self._tool_name: str | None = None
        self._call_id: str | None = None
        self._pieces: list[str] = []
        self._held: list[TokenLogprob] = []
        self._decoder = _UTF8_DECODER("replace")
        self._split = False
        self._state = State.HEADER
        self._open_header(0, b"assistant")

    @property
    def state(self) -> State:
        return self._state

    @property
    def position(self) -> int:
        """Tokens fed so far."""
        return self._position

    @property
    def reasoning_tokens(self) -> int:
        """Content tokens of the analysis channel so far."""
        return self._reasoning_tokens

    @property
    def tool_calls(self) -> int:
        """Calls started so far."""
        return self._calls

    @property
    def messages(self) -> tuple[ParsedMessage, ...]:
        """Finished messages, in order."""
        return tuple(self._messages)

    @property
    def kind(self) -> Kind | None:
        """Kind of the message whose content is open; None in headers and between messages."""
        return self._kind if self._state is State.CONTENT else None

    @property
    def tool_name(self) -> str | None:
        """Bare name of the tool whose arguments are open, else None."""
        return self._tool_name if self._state is State.CONTENT else None

    @property
    def in_reasoning(self) -> bool:
        return self.kind == "reasoning"

    @property
    def in_final(self) -> bool:
        """Whether the answer's text is open."""
        return self.kind == "text"

    @property
    def in_arguments(self) -> bool:
        return self.kind == "call"

    @property
    def mid_character(self) -> bool:
        """Whether bytes of an unfinished character are held back."""
        return self._split

    def feed(self, token_id: int, logprob: TokenLogprob | None = None) -> list[Event]:
        """Take one generated token; return what it completes (often one delta, sometimes nothing)."""
        self._position += 1
        if 0 <= token_id < TEXT_TOKENS:
            if self._state is State.CONTENT:
                return self._content(token_id, logprob)
            return self._header_text(token_id)
        return self._special(token_id)

    def feed_all(self, token_ids: Iterable[int]) -> list[Event]:
        """Feed several tokens."""
        events: list[Event] = []
        for token_id in token_ids:
            events += self.feed(token_id)
        return events

    def finish(self) -> list[Event]:
        """End of the stream: close what is open. A call that was cut off still gets its `ToolCallEnd`."""
        if self._state is State.CONTENT:
            return self._close_content(self._position)
        events: list[Event] = []
        if self._state is State.HEADER and self._header_tokens > MIN_SPILL_TOKENS:
            header = self._read_header()
            if header.rest and route(header, self._tool_names)[0] != "call":
                events = self._open_content() + self._recover_rest() + self._close_content(self._position)
        self._state = State.BETWEEN
        return events

    def _content(self, token_id: int, logprob: TokenLogprob | None) -> list[Event]:
        kind = self._kind
        if kind == "reasoning":
            self._reasoning_tokens += 1
        if logprob is not None:
            self._held.append(logprob)
        text = "" if self._split else self._vocabulary.token_text(token_id)
        if not text:
            text = self._decoder.decode(self._vocabulary.token_bytes(token_id))
            self._split = bool(self._decoder.getstate()[0])
            if not text:
                return []
        return self._delta(text)

    def _delta(self, text: str) -> list[Event]:
        self._pieces.append(text)
        held: tuple[TokenLogprob, ...] = ()
        if self._held:
            held = tuple(self._held)
            self._held.clear()
        kind = self._kind
        if kind == "text":
            return [TextDelta(text, held)]
        if kind == "reasoning":
            return [ReasoningDelta(text, held)]
        if kind == "preamble":
            return [PreambleDelta(text, held)]
        if kind == "call" and self._call_id is not None:
            return [ToolCallDelta(self._call_id, self._calls - 1, text)]
        return []

    def _header_text(self, token_id: int) -> list[Event]:
        if self._state is State.BETWEEN:
            self._open_header(self._position - 1, b"")
        self._header_tokens += 1
        self._parts.setdefault(self._part, bytearray()).extend(self._vocabulary.token_bytes(token_id))
        if self._header_tokens < MAX_HEADER_TOKENS:
            return []
        events = self._open_content()
        return events + self._recover_rest()

    def _special(self, token_id: int) -> list[Event]:
        if token_id in (END, RETURN, CALL):
            return self._end_message(token_id)
        events: list[Event] = []
        if token_id in (START, CHANNEL) and self._state is State.CONTENT:
            events = self._close_content(self._position - 1)
        if token_id == START:
            self._open_header(self._position - 1, b"")
        elif token_id in (CHANNEL, CONSTRAIN, MESSAGE) and self._state is State.BETWEEN:
            self._open_header(self._position - 1, b"assistant")
        if self._state is State.HEADER:
            if token_id == MESSAGE:
                return events + self._open_content()
            if token_id in (CHANNEL, CONSTRAIN):
                self._part = token_id
                self._parts[token_id] = bytearray()
        return events

    def _open_header(self, start: int, role: bytes) -> None:
        self._state = State.HEADER
        self._message_start = start
        self._header_tokens = 0
        self._part = START
        self._parts = {START: bytearray(role)}

    def _part_text(self, part: int) -> str | None:
        data = self._parts.get(part)
        return None if data is None else data.decode("utf-8", "replace")

    def _read_header(self) -> Header:
        return read_header(self._part_text(START) or "", self._part_text(CHANNEL), self._part_text(CONSTRAIN))

    def _open_content(self) -> list[Event]:
        self._header = self._read_header()
        self._kind, self._tool_name = route(self._header, self._tool_names)
        self._state = State.CONTENT
        self._pieces = []
        self._call_id = None
        if self._kind != "call" or self._tool_name is None:
            return []
        self._call_id = self._new_id()
        self._calls += 1
        return [ToolCallStart(self._call_id, self._calls - 1, self._tool_name)]

    def _recover_rest(self) -> list[Event]:
        rest = self._header.rest if self._header is not None else ""
        return self._delta(rest) if rest else []

    def _end_message(self, token_id: int) -> list[Event]:
        if self._state is State.CONTENT:
            return self._close_content(self._position)
        if self._state is State.BETWEEN:
            return []
        # The header never reached its content: keep a call without arguments and text that lost its `<|message|>`.
        events = self._open_content()
        rest = self._header.rest if self._header is not None else ""
        if not events and not rest:
            self._state = State.BETWEEN
            return []
        return events + self._recover_rest() + self._close_content(self._position)

    def _close_content(self, stop: int) -> list[Event]:
        tail = self._decoder.decode(b"", final=True) if self._split else ""
        events = self._delta(tail) if tail else []
        self._split = False
        text = "".join(self._pieces)
        if self._header is not None:
            self._messages.append(
                ParsedMessage(self._kind, self._header, text, self._message_start, stop, self._tool_name, self._call_id)
            )
        if self._call_id is not None and self._tool_name is not None:
            events.append(ToolCallEnd(self._call_id, self._calls - 1, self._tool_name, text))
        self._pieces = []
        self._state = State.BETWEEN
        return events
