"""Events of a generation to the numbered stream events of OpenAI's Responses."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from mlx_gptoss.events import (
    Done,
    Event,
    PreambleDelta,
    ReasoningDelta,
    TextDelta,
    TokenLogprob,
    ToolCallDelta,
    ToolCallEnd,
    ToolCallStart,
)
from mlx_gptoss.server.wire import openai
from mlx_gptoss.server.wire.response_items import call_item, message_item, new_id, reasoning_item, text_part
from mlx_gptoss.server.wire.responses import ended

_PREFIXES = {"reasoning": "rs", "text": "msg", "preamble": "msg", "call": "fc"}
_LAST = {"completed": "response.completed", "incomplete": "response.incomplete", "failed": "response.failed"}


@dataclass(slots=True)
class _Item:
    kind: str
    id: str
    text: list[str] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    call_id: str = ""
    name: str = ""


@dataclass(slots=True)
class ResponseWriter:
    """Folds events into output items and emits the stream events that describe it, in the published order.

    Non-streaming answers use it too and keep only `output`: one path makes both.
    """

    response: dict[str, Any]
    sealed: bool = False
    output: list[dict[str, Any]] = field(default_factory=list)
    final: dict[str, Any] | None = None
    _sequence: int = 0
    _open: _Item | None = None

    def _emit(self, kind: str, **values: Any) -> dict[str, Any]:
        record = {"type": kind, "sequence_number": self._sequence, **values}
        self._sequence += 1
        return record

    def open(self) -> list[dict[str, Any]]:
        """The first two events."""
        return [
            self._emit("response.created", response=self.response),
            self._emit("response.in_progress", response=self.response),
        ]

    def write(self, event: Event, now: int) -> list[dict[str, Any]]:
        """The stream events for one event; those for `Done` end the response. `now` is Unix seconds."""
        if isinstance(event, ReasoningDelta):
            return [*self._ensure("reasoning"), self._delta("response.reasoning_text.delta", event.text)]
        if isinstance(event, TextDelta | PreambleDelta):
            opening = self._ensure("text" if isinstance(event, TextDelta) else "preamble")
            if self._open is not None:
                self._open.logprobs.extend(event.logprobs)
            entries = openai.logprob_entries(event.logprobs)
            return [*opening, self._delta("response.output_text.delta", event.text, logprobs=entries)]
        if isinstance(event, ToolCallStart):
            return self._begin(_Item("call", new_id("fc"), call_id=event.call_id, name=event.name))
        if isinstance(event, ToolCallDelta) and self._open is not None:
            self._open.text.append(event.arguments)
            where = {"item_id": self._open.id, "output_index": len(self.output), "delta": event.arguments}
            return [self._emit("response.function_call_arguments.delta", **where)]
        if isinstance(event, ToolCallEnd):
            return self._close()
        if isinstance(event, Done):
            return self._finish(event, now)
        return []

    def _ensure(self, kind: str) -> list[dict[str, Any]]:
        if self._open is not None and self._open.kind == kind:
            return []
        return self._begin(_Item(kind, new_id(_PREFIXES[kind])))

    def _begin(self, item: _Item) -> list[dict[str, Any]]:
        records = self._close()
        self._open = item
        records.append(
            self._emit(
                "response.output_item.added", output_index=len(self.output), item=self._item("in_progress", empty=True)
            )
        )
        if item.kind != "call":
            records.append(self._emit("response.content_part.added", **self._place(), part=self._part("")))
        return records

    def _place(self) -> dict[str, Any]:
        identifier = self._open.id if self._open is not None else ""
        return {"item_id": identifier, "output_index": len(self.output), "content_index": 0}

    def _part(self, text: str) -> dict[str, Any]:
        if self._open is not None and self._open.kind == "reasoning":
            return {"type": "reasoning_text", "text": text}
        return text_part(text, self._open.logprobs if self._open is not None and text else ())

    def _delta(self, kind: str, text: str, **values: Any) -> dict[str, Any]:
        if self._open is not None:
            self._open.text.append(text)
        return self._emit(kind, **self._place(), delta=text, **values)

    def _item(self, status: str, *, empty: bool = False) -> dict[str, Any]:
        item = self._open
        if item is None:
            return {}
        text = "" if empty else "".join(item.text)
        if item.kind == "reasoning":
            return reasoning_item(item.id, text, status, self.sealed and not empty)
        if item.kind == "call":
            return call_item(item.id, item.call_id, item.name, text, status)
        parts = [] if empty else [self._part(text)]
        return message_item(item.id, parts, status, "commentary" if item.kind == "preamble" else None)

    def _close(self, status: str = "completed") -> list[dict[str, Any]]:
        item = self._open
        if item is None:
            return []
        text = "".join(item.text)
        records = []
        if item.kind == "call":
            where = {"item_id": item.id, "output_index": len(self.output), "name": item.name, "arguments": text}
            records.append(self._emit("response.function_call_arguments.done", **where))
        else:
            if item.kind == "reasoning":
                records.append(self._emit("response.reasoning_text.done", **self._place(), text=text))
            else:
                entries = openai.logprob_entries(item.logprobs)
                records.append(self._emit("response.output_text.done", **self._place(), text=text, logprobs=entries))
            records.append(self._emit("response.content_part.done", **self._place(), part=self._part(text)))
        finished = self._item(status)
        records.append(self._emit("response.output_item.done", output_index=len(self.output), item=finished))
        self.output.append(finished)
        self._open = None
        return records

    def _finish(self, done: Done, now: int) -> list[dict[str, Any]]:
        cut_short = done.finish_reason not in ("stop", "tool_calls")
        records = self._close("incomplete" if cut_short else "completed")
        self.final = ended(self.response, done, self.output, now)
        kind = _LAST.get(self.final["status"], "response.incomplete")
        return [*records, self._emit(kind, response=self.final)]

    def failed(self, error: Mapping[str, Any]) -> list[dict[str, Any]]:
        """The events of a response that broke off with an error."""
        self.final = {**self.response, "status": "failed", "error": dict(error), "output": self.output}
        return [self._emit("response.failed", response=self.final)]
