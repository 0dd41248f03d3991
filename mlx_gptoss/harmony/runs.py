"""Cut very long runs of one kind of character, so that encoding takes linear time.

The tokeniser first splits text into words (runs of letters, of white space, of punctuation) and then merges byte pairs
inside each, which is quadratic in the word. Nobody writes words of hundreds of characters, but a prompt can hold a
megabyte of "aaaa". Text whose words stay under `RUN_LIMIT` is never cut, so its tokens are exactly the reference's.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from typing import Final

RUN_LIMIT: Final = 256
"""Longest run, in characters, that is encoded as one piece."""

_LONG_STRETCH: Final = re.compile(rf"\s{{{RUN_LIMIT + 1},}}|\S{{{RUN_LIMIT + 1},}}")
_KINDS: Final = {"L": "l", "M": "m", "N": "n"}
# Marks ("m") count as letters and as punctuation in the vocabulary's word pattern, hence in both classes here.
_LONG_RUN: Final = re.compile(rf"[lm]{{{RUN_LIMIT + 1},}}|[pm]{{{RUN_LIMIT + 1},}}")


def split_long_runs(text: str) -> Iterator[str]:
    """Yield pieces of `text`, in order, whose join is `text` and in which no run is longer than `RUN_LIMIT`."""
    begin = 0
    for cut in _cuts(text):
        yield text[begin:cut]
        begin = cut
    if begin < len(text):
        yield text[begin:]


def _kind(char: str) -> str:
    category = unicodedata.category(char)
    # The tokeniser may know newer characters than this Python does: an unassigned one may be of any kind.
    return "m" if category == "Cn" else _KINDS.get(category[0], "p")


def _cuts(text: str) -> Iterator[int]:
    for stretch in _LONG_STRETCH.finditer(text):
        start, end = stretch.span()
        if text[start].isspace():
            yield from range(start + RUN_LIMIT, end, RUN_LIMIT)
            continue
        kinds = "".join(_kind(char) for char in stretch.group())
        for run in _LONG_RUN.finditer(kinds):
            yield from range(start + run.start() + RUN_LIMIT, start + run.end(), RUN_LIMIT)
