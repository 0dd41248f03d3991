"""How a stream of events looks in a terminal and in a pipe."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from typing import IO

import click

from mlx_gptoss.events import Done, Event, PreambleDelta, ReasoningDelta, TextDelta, ToolCallEnd
from mlx_gptoss.stream import Completion

LONG_PROMPT = 1000
"""Tokens from which on reading a prompt is worth a word."""
_ERASE = "\r\x1b[2K"
_CUT_OFF: Mapping[str, str] = {
    "length": "cut off: --max-tokens or the context is used up",
    "repetition": "stopped: the model was repeating itself",
    "timeout": "stopped: out of time",
}
# All but tab and line feed; those from 128 on say the same to some terminals as an escape and a letter do.
_CONTROL = dict.fromkeys((*range(9), *range(11, 32), *range(127, 160)))


def printable(text: str) -> str:
    """Text without control characters: what a model writes must not drive the user's terminal."""
    return text.translate(_CONTROL)


class Printer:
    """Prints events as they come: the answer on stdout; reasoning, preambles and calls dimmed on stderr.

    With stdout piped, stdout therefore carries the answer alone.
    """

    def __init__(self, *, hide_reasoning: bool = False, out: IO[str] | None = None, err: IO[str] | None = None) -> None:
        self.hide_reasoning = hide_reasoning
        self.out = out if out is not None else sys.stdout
        self.err = err if err is not None else sys.stderr
        self._open: str | None = None
        self._reading = False
        self._read = False
        self._same_terminal = self.out.isatty() and self.err.isatty()

    def prompt_read(self, done: int, total: int) -> None:
        """Show how much of a long prompt has been read, on a line of a terminal that goes when the answer begins. The
        engine's thread may call this."""
        if not self._read and self.err.isatty() and total >= LONG_PROMPT and 0 < done < total:
            self._reading = True
            click.secho(f"\rprompt {100 * done // total}%", dim=True, nl=False, file=self.err)
            self.err.flush()

    def _forget_progress(self) -> None:
        self._read = True
        if self._reading:
            self._reading = False
            click.echo(_ERASE, nl=False, file=self.err)

    def _section(self, name: str) -> None:
        self._forget_progress()
        if self._open is not None and self._open != name:
            stream = self.out if self._open == "text" else self.err
            click.echo("", file=stream)
            if self._same_terminal and name == "text":
                click.echo("", file=self.err)
        self._open = name

    def _dim(self, text: str) -> None:
        click.secho(printable(text), dim=True, nl=False, file=self.err)
        self.err.flush()

    def show(self, event: Event) -> None:
        """Print one event. Raises BrokenPipeError when nobody reads stdout any more."""
        if isinstance(event, ReasoningDelta):
            if not self.hide_reasoning:
                self._section("reasoning")
                self._dim(event.text)
        elif isinstance(event, PreambleDelta):
            self._section("preamble")
            click.echo(printable(event.text), nl=False, file=self.err)
        elif isinstance(event, ToolCallEnd):
            self._section("call")
            self._dim(f"-> {event.name}({event.arguments})")
        elif isinstance(event, TextDelta):
            self._section("text")
            # A pipe gets the model's bytes as they are; a terminal is protected.
            click.echo(printable(event.text) if self.out.isatty() else event.text, nl=False, file=self.out)
            self.out.flush()

    def finish(self) -> None:
        """End the last line."""
        self._forget_progress()
        if self._open is not None:
            click.echo("", file=self.out if self._open == "text" else self.err)
            self._open = None


def show_all(events: Iterable[Event], printer: Printer) -> Done | None:
    """Print every event; the closing one comes back."""
    done: Done | None = None
    try:
        for event in events:
            if isinstance(event, Done):
                done = event
            else:
                printer.show(event)
    finally:
        printer.finish()
    if done is not None and done.finish_reason in _CUT_OFF:
        click.secho(f"({_CUT_OFF[done.finish_reason]})", dim=True, file=printer.err)
    return done


def stats_line(done: Done) -> str:
    """Tokens, speeds and memory of one generation, on one line."""
    usage, timings = done.usage, done.timings
    parts = [
        f"prompt {usage.prompt_tokens} tokens ({usage.cached_tokens} cached)",
        f"first token {timings.first_token_s:.2f} s",
        f"prefill {timings.prefill_tps:.0f} tok/s",
        f"{usage.completion_tokens} tokens at {timings.decode_tps:.1f} tok/s",
        f"reasoning {usage.reasoning_tokens}",
        f"peak memory {timings.peak_memory_bytes / 1e9:.2f} GB",
        f"finish {done.finish_reason}",
    ]
    return " | ".join(parts)


def completion_json(completion: Completion) -> str:
    """A completion as one JSON object: the shape of `--json`."""
    return json.dumps(
        {
            "text": completion.text,
            "reasoning": completion.reasoning,
            "preamble": completion.preamble,
            "tool_calls": [asdict(call) for call in completion.tool_calls],
            "finish_reason": completion.finish_reason,
            "usage": asdict(completion.usage),
            "timings": asdict(completion.timings),
        },
        ensure_ascii=False,
    )
