"""Message headers that a constrained turn may open with, as token sequences to choose from."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from mlx_gptoss.harmony.special import CHANNEL, CONSTRAIN, END, MESSAGE, START
from mlx_gptoss.harmony.vocabulary import Vocabulary

Header = tuple[int, ...]

_BUILTIN_RECIPIENTS: Final = {"browser": ("browser.search", "browser.open", "browser.find"), "python": ("python",)}


@dataclass(frozen=True, slots=True)
class HeaderSet:
    """The headers a turn may choose from, each `<|channel|>` to `<|message|>`, as the model writes them."""

    reasoning: Header
    others: tuple[Header, ...]

    def allowed(self, *, reasoning: bool) -> tuple[Header, ...]:
        """All of them, the analysis header only where `reasoning` says so."""
        return (self.reasoning, *self.others) if reasoning else self.others


def header_set(
    vocabulary: Vocabulary,
    *,
    functions: Iterable[str],
    builtin_tools: Iterable[str],
    preamble: bool,
    final: bool,
    json_final: bool,
) -> HeaderSet:
    """Headers for calls to `functions` and `builtin_tools`, for a preamble, and for the answer."""
    encode = vocabulary.encode
    analysis = (CHANNEL, *encode("analysis"))
    commentary = (CHANNEL, *encode("commentary"))
    answer = (CHANNEL, *encode("final"))
    json_type = (*encode(" "), CONSTRAIN, *encode("json"))
    others: list[Header] = []
    if final:
        others.append((*answer, MESSAGE))
    if json_final:
        others.append((*answer, *json_type, MESSAGE))
    if preamble:
        others.append((*commentary, MESSAGE))
    others += [(*commentary, *encode(f" to=functions.{name}"), *json_type, MESSAGE) for name in functions]
    recipients = [recipient for builtin in builtin_tools for recipient in _BUILTIN_RECIPIENTS[builtin]]
    others += [(*analysis, *encode(f" to={recipient}"), *encode(" code"), MESSAGE) for recipient in recipients]
    return HeaderSet((*analysis, MESSAGE), tuple(others))


def shared_start(sequences: Sequence[Header]) -> Header:
    """The tokens that all `sequences` begin with."""
    if not sequences:
        return ()
    first, last = min(sequences), max(sequences)
    length = next((i for i, pair in enumerate(zip(first, last, strict=False)) if pair[0] != pair[1]), None)
    return first[: min(len(first), len(last)) if length is None else length]


@functools.cache
def message_opening(vocabulary: Vocabulary) -> Header:
    """`<|start|>assistant`."""
    return (START, *vocabulary.encode("assistant"))


def answer_opening(vocabulary: Vocabulary) -> Header:
    """What closes the reasoning and opens the answer: `<|end|><|start|>assistant<|channel|>final<|message|>`."""
    return (END, *message_opening(vocabulary), CHANNEL, *vocabulary.encode("final"), MESSAGE)
