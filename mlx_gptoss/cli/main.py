"""The `mlx-gptoss` command: its sub-commands, and the one place where errors become one line and an exit code."""

from __future__ import annotations

import difflib
import errno
import importlib
import os
import sys
import traceback
from collections.abc import Mapping
from typing import Any

import click

from mlx_gptoss import __version__
from mlx_gptoss.cli.streams import prepare_streams
from mlx_gptoss.errors import GptOssError

DEBUG_VARIABLE = "MLX_GPTOSS_DEBUG"
EXIT_ERROR = 1
EXIT_INTERRUPTED = 130

# Commands load when they are used: `--help` and completion stay quick, and a command's imports cost only itself.
COMMANDS: Mapping[str, str] = {
    "generate": "mlx_gptoss.cli.generate_cmd:generate",
    "chat": "mlx_gptoss.cli.chat_cmd:chat",
    "serve": "mlx_gptoss.cli.serve_cmd:serve",
    "pull": "mlx_gptoss.cli.pull_cmd:pull",
    "list": "mlx_gptoss.cli.models_cmd:list_models",
    "show": "mlx_gptoss.cli.models_cmd:show",
    "rm": "mlx_gptoss.cli.models_cmd:remove",
    "convert": "mlx_gptoss.cli.convert_cmd:convert",
    "verify": "mlx_gptoss.cli.convert_cmd:verify",
    "export": "mlx_gptoss.cli.convert_cmd:export",
    "doctor": "mlx_gptoss.cli.doctor_cmd:doctor",
    "plan": "mlx_gptoss.cli.plan_cmd:plan",
    "bench": "mlx_gptoss.cli.bench_cmd:bench",
    "completion": "mlx_gptoss.cli.completion_cmd:completion",
}


class LazyGroup(click.Group):
    """A group whose commands are imported on first use."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        target = COMMANDS.get(cmd_name)
        if target is None:
            return None
        module, attribute = target.split(":")
        command = getattr(importlib.import_module(module), attribute)
        return command if isinstance(command, click.Command) else None

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            close = difflib.get_close_matches(args[0], list(COMMANDS), n=1)
            if not close or "Did you mean" in error.message:
                raise
            raise click.UsageError(f"{error.message} Did you mean {close[0]!r}?", ctx) from None


@click.group(
    cls=LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    epilog="Try `mlx-gptoss generate --model demo 'What is 17 + 25?'`: it needs no download.",
)
@click.version_option(__version__, "-V", "--version", prog_name="mlx-gptoss")
def cli() -> None:
    """Run OpenAI's gpt-oss models on Apple Silicon."""


def error_line(error: BaseException) -> str:
    """What to tell a user about an error, on one line."""
    if isinstance(error, GptOssError):
        return str(error)
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return f"no space left on the disk ({error.filename or 'output'}). Free some space and try again."
    if isinstance(error, OSError):
        return f"{error.strerror or error}" + (f" ({error.filename})" if error.filename else "")
    if isinstance(error, MemoryError):
        return "out of memory. Close other programs, or choose a smaller --context."
    return (
        f"unexpected {type(error).__name__}: {' '.join(str(error).split())[:300]}. "
        f"Please report it; {DEBUG_VARIABLE}=1 shows where it happened."
    )


def report(error: BaseException) -> int:
    """Print the one line for an error on stderr and return the exit code for it."""
    if os.environ.get(DEBUG_VARIABLE):
        traceback.print_exception(error)
    try:
        click.echo(f"mlx-gptoss: {error_line(error)}", err=True)
    except OSError:
        return EXIT_ERROR
    return EXIT_ERROR


def settle_stdout() -> None:
    """After an error: what stdout still holds goes out, or nowhere; else the interpreter's last flush raises again and
    its exit code replaces ours."""
    try:
        sys.stdout.flush()
    except (OSError, ValueError):
        silence_stdout()


def silence_stdout() -> None:
    """Let the interpreter's last flush go nowhere."""
    try:
        descriptor = sys.stdout.fileno()
    except (OSError, ValueError):
        return
    os.dup2(os.open(os.devnull, os.O_WRONLY), descriptor)


def main(arguments: list[str] | None = None) -> None:
    """Entry point of the `mlx-gptoss` script; exits the process."""
    prepare_streams()
    options: dict[str, Any] = {"args": arguments, "standalone_mode": False, "prog_name": "mlx-gptoss"}
    try:
        code = cli.main(**options)
        sys.stdout.flush()
        sys.exit(code if isinstance(code, int) else 0)
    except click.exceptions.Abort:
        click.echo("mlx-gptoss: interrupted", err=True)
        sys.exit(EXIT_INTERRUPTED)
    except click.ClickException as error:
        # Usage errors show the command's usage line; they are two lines and exit code 2 by convention.
        error.show()
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        click.echo("mlx-gptoss: interrupted", err=True)
        sys.exit(EXIT_INTERRUPTED)
    except BrokenPipeError:
        # Nobody reads any more: end quietly, with the code that click gives for it.
        silence_stdout()
        sys.exit(EXIT_ERROR)
    except Exception as error:
        code = report(error)
        settle_stdout()
        sys.exit(code)
