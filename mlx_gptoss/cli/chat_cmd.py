"""`mlx-gptoss chat`: a conversation in the terminal."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from typing import Any

import click

from mlx_gptoss.cli.chat_session import ChatSession, Leave
from mlx_gptoss.cli.loading import load
from mlx_gptoss.cli.main import error_line
from mlx_gptoss.cli.options import argument_text, generation_options, sampling_from
from mlx_gptoss.errors import InvalidRequestError
from mlx_gptoss.registry import home_folder
from mlx_gptoss.tools import FunctionTool, ToolBox
from mlx_gptoss.tools.builtin import BUILTIN


def tool_box(names: tuple[str, ...]) -> ToolBox:
    """The tools named with `--tool`: built-in ones by name, others as file.py:function or module:function."""
    return ToolBox(FunctionTool.of(BUILTIN[name]) if name in BUILTIN else FunctionTool.load(name) for name in names)


def _history_file() -> str | None:
    """Where lines are remembered, for their writer's eyes only; None where nothing can be written."""
    path = home_folder() / "chat-history"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600))
        path.chmod(0o600)
    except OSError:
        return None
    return str(path)


def lines_from_terminal() -> Iterator[str]:
    """Lines with history, editing and completion of commands; ends at Ctrl-D."""
    from prompt_toolkit import PromptSession
    from prompt_toolkit.completion import WordCompleter
    from prompt_toolkit.history import FileHistory, InMemoryHistory

    from mlx_gptoss.cli.chat_session import COMMANDS

    history = _history_file()
    session: PromptSession[str] = PromptSession(
        history=InMemoryHistory() if history is None else FileHistory(history),
        completer=WordCompleter([f"/{name}" for name in COMMANDS], sentence=True),
        complete_while_typing=False,
    )
    while True:
        try:
            yield session.prompt("> ")
        except KeyboardInterrupt:
            continue
        except EOFError:
            return


def lines_from_pipe() -> Iterator[str]:
    """Lines of standard input; each is one message."""
    for raw in sys.stdin.buffer:
        try:
            yield raw.decode("utf-8").rstrip("\r\n")
        except UnicodeDecodeError as error:
            raise InvalidRequestError("a line is not UTF-8", got=str(error), where="standard input") from error


@click.command()
@click.option("--tool", "tools", multiple=True, metavar="NAME",
              help="calculate, current_time, file.py:function or module:function. Repeatable.")  # fmt: skip
@generation_options
def chat(tools: tuple[str, ...], **options: Any) -> None:
    """Talk with a model. /help lists commands; Ctrl-C stops an answer, Ctrl-D leaves."""
    box = tool_box(tools)
    with load(options["model"], context=options["context"], backend=options["backend"]) as llm:
        conversation = llm.chat(
            argument_text(options["system"]) if options["system"] else None,
            effort=options["effort"],
            tools=box.tools,
            sampling=sampling_from(options),
            max_tokens=options["max_tokens"],
        )
        interactive = sys.stdin.isatty() and sys.stdout.isatty()
        session = ChatSession(
            conversation,
            box,
            effort=options["effort"],
            hide_reasoning=options["hide_reasoning"],
            stats=options["stats"],
        )
        if interactive:
            click.secho(f"{llm.name or 'model'}: /help for commands, Ctrl-D to leave.", dim=True, err=True)
        _loop(session, lines_from_terminal() if interactive else lines_from_pipe(), interactive=interactive)


def _loop(session: ChatSession, lines: Iterator[str], *, interactive: bool) -> None:
    for line in lines:
        try:
            session.handle(line)
        except Leave:
            return
        except KeyboardInterrupt:
            if not interactive:
                raise
            click.secho("\n(stopped)", dim=True, err=True)
        except Exception as error:
            # One bad turn must not end a conversation that somebody is in.
            if not interactive or isinstance(error, BrokenPipeError):
                raise
            click.secho(error_line(error), fg="red", err=True)
