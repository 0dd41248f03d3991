"""Tables that are never cut: a narrow terminal wraps their lines, a pipe gets them whole."""

from __future__ import annotations

import shutil

from rich.console import Console

_ROOM = 400
"""Columns that the widest of our tables does not need."""


def wide_console() -> Console:
    """A console on stdout that shortens nothing to the terminal's width."""
    return Console(width=max(shutil.get_terminal_size().columns, _ROOM))
