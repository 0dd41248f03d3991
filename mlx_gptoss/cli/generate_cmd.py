"""`mlx-gptoss generate`: one prompt, one streamed answer."""

from __future__ import annotations

import fcntl
import os
import stat
import sys
import termios
from typing import Any

import click

from mlx_gptoss.cli.loading import load
from mlx_gptoss.cli.options import (
    argument_text,
    generation_options,
    read_stdin,
    read_text,
    response_format_from,
    sampling_from,
)
from mlx_gptoss.cli.terminal import Printer, completion_json, show_all, stats_line
from mlx_gptoss.errors import GptOssError, InvalidRequestError
from mlx_gptoss.messages import Message, SystemMessage, UserMessage
from mlx_gptoss.request import ChatRequest


def _stdin_has_data() -> bool:
    """Whether a pipe or file on standard input holds something. Takes none of it and never waits."""
    try:
        status = os.fstat(sys.stdin.fileno())
        if stat.S_ISREG(status.st_mode):
            return status.st_size > os.lseek(sys.stdin.fileno(), 0, os.SEEK_CUR)
        if stat.S_ISFIFO(status.st_mode):
            return any(fcntl.ioctl(sys.stdin.fileno(), termios.FIONREAD, b"\0" * 4))
    except (OSError, ValueError):
        pass
    return False


def gather_prompt(words: tuple[str, ...], files: tuple[str, ...]) -> str:
    """The prompt from arguments, files and stdin: arguments first, then each file. Empty is an error."""
    parts = [argument_text(" ".join(words))] if words and words != ("-",) else []
    parts += [read_text(path) for path in files]
    if words == ("-",) or (not parts and not sys.stdin.isatty()):
        parts.append(read_stdin())
    elif "-" not in files and _stdin_has_data():
        click.secho("standard input is not part of the prompt; -f - adds it", dim=True, err=True)
    prompt = "\n\n".join(part for part in parts if part.strip())
    if not prompt.strip():
        raise InvalidRequestError(
            "the prompt is empty", hint="Give it as an argument, with -f FILE, or on standard input."
        )
    return prompt


@click.command()
@click.argument("prompt", nargs=-1)
@click.option("-f", "--file", "files", multiple=True, metavar="FILE", help="Add a text file (- is stdin). Repeatable.")
@click.option("--schema", default=None, metavar="FILE|JSON", help="Answer in JSON of this JSON Schema; `json` for any.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of streaming.")
@generation_options
def generate(
    prompt: tuple[str, ...], files: tuple[str, ...], schema: str | None, as_json: bool, **options: Any
) -> None:
    """Answer PROMPT (or standard input). The answer goes to stdout, reasoning to stderr."""
    text = gather_prompt(prompt, files)
    messages: list[Message] = [SystemMessage(argument_text(options["system"]))] if options["system"] else []
    request = ChatRequest(
        messages=(*messages, UserMessage(text)),
        effort=options["effort"],
        sampling=sampling_from(options),
        max_tokens=options["max_tokens"],
        response_format=response_format_from(schema),
    )
    with load(options["model"], context=options["context"], backend=options["backend"]) as llm:
        if as_json:
            completion = llm.generate(request)
            click.echo(completion_json(completion))
            return
        printer = Printer(hide_reasoning=options["hide_reasoning"])
        with llm.stream(request, on_progress=printer.prompt_read) as stream:
            done = show_all(stream, printer)
    if done is None:
        return
    if done.error is not None:
        raise GptOssError(done.error)
    if options["stats"]:
        click.secho(stats_line(done), dim=True, err=True)
