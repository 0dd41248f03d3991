"""Tables that are never cut: a narrow terminal wraps their lines, a pipe gets them whole."""

from __future__ import annotations

import re
import shutil
from typing import Any

from rich.console import Console

_ROOM = 400
"""Columns that the widest of our tables does not need."""
_PADDING = re.compile(r" +((?:\x1b\[[0-9;]*m)*)$", re.MULTILINE)


class _Ragged(Console):
    """A console whose lines end with their last letter; rich fills a table's last column up with spaces."""

    def print(self, *objects: Any, **options: Any) -> None:
        with self.capture() as captured:
            super().print(*objects, **options)
        self.file.write(_PADDING.sub(r"\1", captured.get()))
        self.file.flush()


def wide_console() -> Console:
    """A console on stdout that shortens nothing to the terminal's width and ends no line with spaces."""
    return _Ragged(width=max(shutil.get_terminal_size().columns, _ROOM))
