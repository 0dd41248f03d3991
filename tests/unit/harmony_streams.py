"""Builders for Harmony token streams: ids from marked-up text, and hypothesis strategies for well-formed turns."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from hypothesis import strategies as st

from mlx_gptoss.harmony.special import CALL, CHANNEL, CONSTRAIN, END, MESSAGE, RETURN, START
from mlx_gptoss.harmony.vocabulary import load_vocabulary

SPECIALS = {
    "<|start|>": START,
    "<|end|>": END,
    "<|message|>": MESSAGE,
    "<|channel|>": CHANNEL,
    "<|constrain|>": CONSTRAIN,
    "<|return|>": RETURN,
    "<|call|>": CALL,
}


def marked(text: str) -> list[int]:
    """Token ids of `text`, in which the special tokens' text forms stand for the special tokens."""
    ids: list[int] = []
    for part in re.split(f"({'|'.join(map(re.escape, SPECIALS))})", text):
        if part in SPECIALS:
            ids.append(SPECIALS[part])
        elif part:
            ids += load_vocabulary().encode(part)
    return ids


@dataclass(frozen=True)
class Turn:
    """One message of a turn, as the model would write it."""

    kind: Literal["reasoning", "preamble", "text", "call"]
    content: str
    tool: str = ""
    recipient_in_role: bool = False
    constrained: bool = True

    def tokens(self, first: bool) -> list[int]:
        header = "" if first else "<|start|>assistant"
        to = f" to=functions.{self.tool}" if self.kind == "call" else ""
        if self.recipient_in_role:
            header += to
            to = ""
        channel = {"reasoning": "analysis", "text": "final"}.get(self.kind, "commentary")
        header += f"<|channel|>{channel}{to}"
        if self.kind == "call":
            header += " <|constrain|>json" if self.constrained else " json"
        end = {"call": CALL, "text": RETURN}.get(self.kind, END)
        return [*marked(header), MESSAGE, *load_vocabulary().encode(self.content), end]


def stream(turns: Sequence[Turn]) -> list[int]:
    return [token for index, turn in enumerate(turns) for token in turn.tokens(index == 0)]


contents = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
tool_names = st.sampled_from(["get_weather", "f", "lookup-item", "a.b"])
turns = st.one_of(
    st.builds(Turn, st.sampled_from(["reasoning", "preamble", "text"]), contents),
    st.builds(Turn, st.just("call"), contents, tool_names, st.booleans(), st.booleans()),
)
turn_lists = st.lists(turns, min_size=1, max_size=5)
