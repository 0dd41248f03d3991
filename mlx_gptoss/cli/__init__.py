"""The command line: one file a command, built on the façade and on nothing below it."""

from __future__ import annotations

from mlx_gptoss.cli.main import main

__all__ = ["main"]
