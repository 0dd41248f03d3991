"""One conversation in the terminal: lines in, answers out, /commands, and tools that run between turns."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import cast, get_args

import click

from mlx_gptoss.chat import Chat
from mlx_gptoss.cli.terminal import Printer, printable, show_all, stats_line
from mlx_gptoss.errors import GptOssError, InvalidRequestError
from mlx_gptoss.events import Done
from mlx_gptoss.messages import (
    AssistantMessage,
    DeveloperMessage,
    Message,
    SystemMessage,
    ToolCall,
    ToolMessage,
    UserMessage,
)
from mlx_gptoss.names import as_folder
from mlx_gptoss.registry import write_json
from mlx_gptoss.request import Effort
from mlx_gptoss.request_check import check_message
from mlx_gptoss.tools import ToolBox

# A model that keeps calling tools without answering is stopped after this many rounds.
MAX_TOOL_ROUNDS = 16
_KINDS: Mapping[str, type[Message]] = {
    "system": SystemMessage,
    "developer": DeveloperMessage,
    "user": UserMessage,
    "assistant": AssistantMessage,
    "tool": ToolMessage,
}


class Leave(Exception):  # noqa: N818  # a request of the user, not an error
    """The user asked to leave."""


class ChatSession:
    """Handles the lines a user types."""

    def __init__(
        self,
        chat: Chat,
        tools: ToolBox,
        *,
        effort: Effort = "medium",
        hide_reasoning: bool = False,
        stats: bool = False,
    ) -> None:
        self.chat = chat
        self.tools = tools
        self.effort: Effort = effort
        self.hide_reasoning = hide_reasoning
        self.stats = stats
        self.last: Done | None = None

    def handle(self, line: str) -> None:
        """A message or a /command. Raises Leave at the end, GptOssError for what cannot be done."""
        text = line.strip()
        if not text:
            return
        if text.startswith("/") and not text.startswith("//"):
            self._command(text[1:])
        else:
            # Two slashes send a message that begins with one.
            self.ask(text.removeprefix("/"))

    def ask(self, text: str) -> None:
        """Send a message, print the answer, and run tools until the model has answered."""
        self._answer(text)
        for _ in range(MAX_TOOL_ROUNDS):
            pending = self.chat.pending_calls
            if not pending:
                return
            for call in pending:
                result = self.tools.run(call)
                click.secho(f"<- {printable(result.text)}", dim=True, err=True)
                self.chat.add(result)
            self._answer(())
        raise GptOssError(f"the model called tools {MAX_TOOL_ROUNDS} times without answering")

    def _answer(self, turn: str | tuple[Message, ...]) -> None:
        printer = Printer(hide_reasoning=self.hide_reasoning)
        with self.chat.stream(turn, effort=self.effort, on_progress=printer.prompt_read) as stream:
            self.last = show_all(stream, printer)
        if self.last is not None and self.last.error is not None:
            raise GptOssError(self.last.error)
        if self.stats and self.last is not None:
            click.secho(stats_line(self.last), dim=True, err=True)

    # -- commands -----------------------------------------------------------------------------------------------

    def _command(self, text: str) -> None:
        name, _, rest = text.partition(" ")
        entry = COMMANDS.get(name)
        if entry is None:
            raise InvalidRequestError(f"no command /{name}", hint="/help lists them; // sends a text with a slash.")
        entry[0](self, rest.strip())

    def help(self, _: str) -> None:
        """this list"""
        for name, (command, usage) in COMMANDS.items():
            click.echo(f"  {('/' + name + ' ' + usage):<24}{command.__doc__}", err=True)

    def leave(self, _: str) -> None:
        """leave (also Ctrl-D)"""
        raise Leave

    def clear(self, _: str) -> None:
        """forget the conversation"""
        self.chat.reset()

    def undo(self, _: str) -> None:
        """forget the last message and its answer"""
        if not self.chat.undo():
            raise InvalidRequestError("there is nothing to undo")

    def retry(self, _: str) -> None:
        """answer the last message again"""
        asked = [message for message in self.chat.messages if isinstance(message, UserMessage)]
        if not asked:
            raise InvalidRequestError("there is nothing to answer again")
        self.chat.undo()
        self.ask(asked[-1].text)

    def set_effort(self, level: str) -> None:
        """reason low, medium or high"""
        if level not in get_args(Effort):
            raise InvalidRequestError("not an effort", expected="low, medium or high", got=repr(level))
        self.effort = cast("Effort", level)

    def set_system(self, text: str) -> None:
        """start over with these instructions"""
        self.chat.reset([SystemMessage(text)] if text else [])

    def show_reasoning(self, _: str) -> None:
        """show or hide the reasoning"""
        self.hide_reasoning = not self.hide_reasoning
        click.echo("reasoning is " + ("hidden" if self.hide_reasoning else "shown"), err=True)

    def show_stats(self, _: str) -> None:
        """speed and memory of the last answer"""
        if self.last is None:
            raise InvalidRequestError("there is no answer yet")
        click.echo(stats_line(self.last), err=True)

    def list_tools(self, _: str) -> None:
        """the tools the model may call"""
        for tool in self.tools.tools:
            click.echo(f"  {tool.name}: {tool.description.splitlines()[0] if tool.description else ''}", err=True)
        if not self.tools:
            click.echo("  none; start with --tool", err=True)

    def history(self, _: str) -> None:
        """the conversation so far"""
        for message in self.chat.messages:
            role = type(message).__name__.removesuffix("Message").lower()
            click.echo(f"{role}: {printable(message.text)}", err=True)
            for call in message.tool_calls if isinstance(message, AssistantMessage) else ():
                click.echo(f"  -> {call.name}({printable(call.arguments)})", err=True)

    def save(self, path: str) -> None:
        """write the conversation to a file"""
        if not path:
            raise InvalidRequestError("/save needs a file name")
        # A link stays one, and a device (a terminal, /dev/null) is not replaced by a file.
        target = Path(os.path.realpath(as_folder(path)))
        if target.exists() and not target.is_file():
            raise InvalidRequestError("cannot save", expected="a file, or a name that is free", where=path)
        try:
            write_json(target, {"messages": [_record(message) for message in self.chat.messages]})
        except OSError as error:
            raise InvalidRequestError("cannot save", got=error.strerror or str(error), where=path) from error
        click.echo(f"saved {path}", err=True)

    def open(self, path: str) -> None:
        """go on with a saved conversation"""
        if not path:
            raise InvalidRequestError("/open needs a file name")
        self.chat.reset(read_conversation(as_folder(path)))


def _record(message: Message) -> dict[str, object]:
    role = type(message).__name__.removesuffix("Message").lower()
    return {"role": role, **asdict(message)}


def read_conversation(path: Path) -> list[Message]:
    """A conversation that `/save` wrote. Raises InvalidRequestError for anything else."""
    try:
        records = json.loads(path.read_text(encoding="utf-8"))["messages"]
        messages = []
        for record in records:
            values = dict(record)
            kind = _KINDS[values.pop("role")]
            if kind is AssistantMessage:
                values["tool_calls"] = tuple(ToolCall(**call) for call in values["tool_calls"])
                values["token_ids"] = tuple(values["token_ids"]) if values["token_ids"] is not None else None
            messages.append(kind(**values))
            check_message(messages[-1])
    except OSError as error:
        raise InvalidRequestError("cannot read the conversation", got=error.strerror, where=str(path)) from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, GptOssError) as error:
        raise InvalidRequestError("not a saved conversation", got=str(error)[:120], where=str(path)) from error
    return messages


COMMANDS: Mapping[str, tuple[Callable[[ChatSession, str], None], str]] = {
    "help": (ChatSession.help, ""),
    "effort": (ChatSession.set_effort, "LEVEL"),
    "system": (ChatSession.set_system, "TEXT"),
    "reasoning": (ChatSession.show_reasoning, ""),
    "tools": (ChatSession.list_tools, ""),
    "history": (ChatSession.history, ""),
    "stats": (ChatSession.show_stats, ""),
    "retry": (ChatSession.retry, ""),
    "undo": (ChatSession.undo, ""),
    "clear": (ChatSession.clear, ""),
    "save": (ChatSession.save, "FILE"),
    "open": (ChatSession.open, "FILE"),
    "exit": (ChatSession.leave, ""),
}
