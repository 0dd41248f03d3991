"""Generated tokens to events: parsing, log-probabilities with their bytes, stop strings, and how the turn ended."""

from __future__ import annotations

import codecs
from typing import Protocol

from mlx_gptoss.engine import Finished, TokenEvent
from mlx_gptoss.events import Done, Event, FinishReason, TextDelta, TokenLogprob, Usage
from mlx_gptoss.harmony.special import TEXT_TOKENS
from mlx_gptoss.harmony.vocabulary import Vocabulary
from mlx_gptoss.stop_strings import StopStrings


class TokenParser(Protocol):
    """What turns ids into events: HarmonyParser for conversations, PlainText for completions."""

    @property
    def reasoning_tokens(self) -> int: ...

    @property
    def tool_calls(self) -> int: ...

    def feed(self, token_id: int, logprob: TokenLogprob | None = None) -> list[Event]: ...

    def finish(self) -> list[Event]: ...


class PlainText:
    """Every text token is answer text; special tokens are not shown. For prompts that are not Harmony."""

    reasoning_tokens = 0
    tool_calls = 0

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._held: list[TokenLogprob] = []

    def feed(self, token_id: int, logprob: TokenLogprob | None = None) -> list[Event]:
        if not 0 <= token_id < TEXT_TOKENS:
            return []
        if logprob is not None:
            self._held.append(logprob)
        return self._delta(self._decoder.decode(self._vocabulary.token_bytes(token_id)))

    def finish(self) -> list[Event]:
        return self._delta(self._decoder.decode(b"", final=True))

    def _delta(self, text: str) -> list[Event]:
        if not text:
            return []
        held, self._held = tuple(self._held), []
        return [TextDelta(text, held)]


class TurnReader:
    """Reads one generation. `stopped` turns True at a stop string: the rest of the generation is not wanted."""

    def __init__(self, parser: TokenParser, vocabulary: Vocabulary, stops: tuple[str, ...] = ()) -> None:
        self._parser = parser
        self._vocabulary = vocabulary
        self._stops = StopStrings(stops)
        self._token_ids: list[int] = []

    @property
    def stopped(self) -> bool:
        return self._stops.found

    def feed(self, token: TokenEvent) -> list[Event]:
        """The events that one more token completes."""
        if self._stops.found:
            return []
        self._token_ids.append(token.token_id)
        return self._filter(self._parser.feed(token.token_id, self._logprob(token)))

    def finish(self, finished: Finished) -> list[Event]:
        """The last events, `Done` at the very end."""
        events = [] if self._stops.found else [*self._filter(self._parser.finish()), *self._stops.flush()]
        reason: FinishReason = finished.finish_reason
        if self._stops.found and reason != "error":
            reason = "stop"
        elif reason == "stop" and self._parser.tool_calls:
            reason = "tool_calls"
        usage = Usage(
            prompt_tokens=finished.usage.prompt_tokens,
            cached_tokens=finished.usage.cached_tokens,
            completion_tokens=len(self._token_ids),
            reasoning_tokens=self._parser.reasoning_tokens,
        )
        error = str(finished.error) if reason == "error" else None
        events.append(Done(reason, usage, finished.timings, tuple(self._token_ids), error, self._stops.matched))
        return events

    def _filter(self, events: list[Event]) -> list[Event]:
        shown: list[Event] = []
        for event in events:
            if isinstance(event, TextDelta):
                shown += self._stops.feed(event)
                if self._stops.found:
                    break
            else:
                shown += self._stops.flush()
                shown.append(event)
        return shown

    def _logprob(self, token: TokenEvent) -> TokenLogprob | None:
        if token.logprob is None:
            return None
        name = self._vocabulary.token_bytes
        top = tuple((token_id, logprob, name(token_id)) for token_id, logprob in token.top)
        return TokenLogprob(token.token_id, token.logprob, name(token.token_id), top)
