"""`mlx-gptoss completion`: shell completion scripts."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

from mlx_gptoss.errors import GptOssError


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print the completion script for SHELL.

    For zsh: `mlx-gptoss completion zsh > ~/.zfunc/_mlx-gptoss`; for bash: `eval "$(mlx-gptoss completion bash)"`.
    """
    from mlx_gptoss.cli.main import cli

    factory = get_completion_class(shell)
    if factory is None:
        raise GptOssError(f"no completion for {shell}", expected="bash, zsh or fish")
    click.echo(factory(cli, {}, "mlx-gptoss", "_MLX_GPTOSS_COMPLETE").source())
