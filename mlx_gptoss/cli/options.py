"""Options that several commands share, and the request they add up to."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, cast

import click

from mlx_gptoss.errors import InvalidRequestError, SchemaError
from mlx_gptoss.request import ResponseFormat, SamplingParams

Command = TypeVar("Command", bound=Callable[..., Any])

_MODEL_HELP = "A folder, demo, 20b, 120b or a hub id. Default: $MLX_GPTOSS_MODEL, else the model last pulled."

GENERATION: tuple[Callable[[Any], Any], ...] = (
    click.option("-m", "--model", default=None, help=_MODEL_HELP),
    click.option("-e", "--effort", type=click.Choice(["low", "medium", "high"]), default="medium", show_default=True,
                 help="How much to reason."),
    click.option("-s", "--system", default=None, help="Instructions that go before the conversation."),
    click.option("-n", "--max-tokens", type=click.IntRange(min=1), default=None,
                 help="Stop after this many tokens, reasoning included. Default: up to the end of the context."),
    click.option("-t", "--temperature", type=float, default=1.0, show_default=True, help="0 is greedy."),
    click.option("--top-p", type=float, default=1.0, show_default=True),
    click.option("--top-k", type=click.IntRange(min=0), default=0, help="0 is off."),
    click.option("--min-p", type=float, default=0.0, help="0 is off."),
    click.option("--seed", type=int, default=None, help="Same seed, same answer."),
    click.option("-c", "--context", type=click.IntRange(min=16), default=None,
                 help="Longest conversation in tokens. Default: the model's, as far as memory allows."),
    click.option("--hide-reasoning", is_flag=True, help="Show the answer only."),
    click.option("--stats", is_flag=True, help="Print speed and memory on stderr at the end."),
    click.option("--backend", type=click.Choice(["auto", "stock", "metal", "cuda"]), default="auto", show_default=True,
                 help="Which kernels run the model."),
)  # fmt: skip


def generation_options(command: Command) -> Command:
    """Add the options of `GENERATION` to a command, in that order."""
    for option in reversed(GENERATION):
        command = option(command)
    return command


def sampling_from(options: dict[str, Any]) -> SamplingParams:
    """The sampling parameters in a command's options. Raises InvalidRequestError on one out of range."""
    names = ("temperature", "top_p", "top_k", "min_p", "seed")
    return SamplingParams(**{name: options[name] for name in names})


def read_stdin() -> str:
    """All of standard input as UTF-8. Raises InvalidRequestError that names the first bad byte."""
    return decode_utf8(sys.stdin.buffer.read(), "standard input")


def read_text(path: str) -> str:
    """A text file, or standard input for `-`, as UTF-8."""
    return read_stdin() if path == "-" else decode_utf8(Path(path).expanduser().read_bytes(), path)


def check_writable(path: Path) -> None:
    """Raises InvalidRequestError unless a file can be written there: said before the work, not after it."""
    folder = path.expanduser().absolute().parent
    if path.is_dir() or not folder.is_dir() or not os.access(path if path.exists() else folder, os.W_OK):
        raise InvalidRequestError("cannot write there", expected="a file in a writable folder", got=str(path))


def argument_text(argument: str) -> str:
    """An argument as the UTF-8 that it was typed in, also where the locale has another idea of it."""
    if argument.isascii() or not any("\ud800" <= letter <= "\udfff" for letter in argument):
        return argument
    return decode_utf8(os.fsencode(argument), "an argument")


def decode_utf8(data: bytes, where: str) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InvalidRequestError(
            "the text is not UTF-8",
            got=f"byte 0x{data[error.start]:02x} at offset {error.start}",
            where=where,
            hint="Convert it with `iconv -t UTF-8`.",
        ) from error


def response_format_from(schema: str | None) -> ResponseFormat:
    """`--schema`: a file with a JSON Schema, the schema itself, or the word json for any JSON object."""
    if schema is None:
        return ResponseFormat()
    if schema == "json":
        return ResponseFormat(kind="json_object")
    if not schema.strip():
        raise SchemaError("--schema is empty", expected="a file, a JSON Schema, or the word json")
    inline = schema.lstrip().startswith("{")
    text = schema if inline else read_text(schema)
    try:
        value = json.loads(text)
    except ValueError as error:
        raise SchemaError("--schema is not JSON", got=str(error), where="option" if inline else schema) from error
    if not isinstance(value, dict):
        raise SchemaError("--schema is not a JSON object", got=type(value).__name__)
    return ResponseFormat(kind="json_schema", schema=cast("dict[str, Any]", value))
