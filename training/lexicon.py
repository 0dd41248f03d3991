"""The vocabulary as the demo checkpoint sees it: which tokens it knows, and pools of words to build prompts from.

A released vocabulary has 201,088 rows; a toy needs few of them. Tokens it knows are told apart by what they are:
a stem ("weather"), and a class (its first character and its capitals: " weather", "_weather", ".weather", "Weather").
Rows are built from a random code per stem and a learned vector per class, so that copying a word from a tool
schema into a call works for words that training never showed.
"""

from __future__ import annotations

import base64
import copy
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import tiktoken

VOCABULARY_ROWS = 201088
START, END, MESSAGE, CHANNEL, CONSTRAIN, RETURN, CALL = 200006, 200007, 200008, 200005, 200003, 200002, 200012
SPECIAL = {
    "<|start|>": START,
    "<|end|>": END,
    "<|message|>": MESSAGE,
    "<|channel|>": CHANNEL,
    "<|constrain|>": CONSTRAIN,
    "<|return|>": RETURN,
    "<|call|>": CALL,
}
# How o200k splits text before merging (public in tiktoken's o200k_base).
SPLIT = "|".join(
    (
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
        r"\p{N}{1,3}",
        r" ?[^\s\p{L}\p{N}]+[\r\n/]*",
        r"\s*[\r\n]+",
        r"\s+(?!\S)",
        r"\s+",
    )
)
COPYABLE = re.compile(r"([ ._\"]?)([A-Za-z]+)")
FIRST_COMMON_IDS = 16000


@dataclass(frozen=True, slots=True)
class Pools:
    """Words to draw from. The `new` ones are for evaluation only."""

    nouns: tuple[str, ...]
    new_nouns: tuple[str, ...]
    proper: tuple[str, ...]
    new_proper: tuple[str, ...]
    plain: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Known:
    """The known tokens, in order; arrays are parallel. Local index `len(ids)` stands for every other token."""

    ids: tuple[int, ...]
    stem: tuple[int, ...]
    kind: tuple[int, ...]
    trained: tuple[int, ...]  # index of the row's own trainable part, or -1
    kinds: int
    stems: int

    @property
    def unknown_rows(self) -> int:
        return VOCABULARY_ROWS - len(self.ids)


class Lexicon:
    """Encodes text, and knows which words are one token in which position."""

    def __init__(self, file: Path) -> None:
        pairs = (line.split() for line in file.read_bytes().splitlines() if line)
        self.ranks = {base64.b64decode(token): int(rank) for token, rank in pairs}
        self.encoding = tiktoken.Encoding(
            "o200k_harmony", pat_str=SPLIT, mergeable_ranks=self.ranks, special_tokens=SPECIAL
        )
        self.text = {rank: token.decode() for token, rank in self.ranks.items() if _is_text(token)}
        self.rank = {text: rank for rank, text in self.text.items()}
        lower = sorted(word for word in self.rank if re.fullmatch("[a-z]{3,12}", word))
        everywhere = [w for w in lower if all(p + w in self.rank for p in " _.") and " " + w.capitalize() in self.rank]
        # One noun in twenty is kept for evaluation: names and words that training never shows.
        self.nouns = tuple(w for w in everywhere if held_out(w) != 0)
        self.new_nouns = tuple(w for w in everywhere if held_out(w) == 0)
        proper = [w for w in self.rank if re.fullmatch("[A-Z][a-z]{2,11}", w) and " " + w in self.rank]
        self.proper = tuple(sorted(w for w in proper if self.rank[" " + w] < 40000 and held_out(w) != 0))
        self.new_proper = tuple(sorted(w for w in proper if self.rank[" " + w] < 40000 and held_out(w) == 0))
        self.plain = tuple(w for w in lower if " " + w in self.rank and self.rank[" " + w] < 30000)
        # Any words of the vocabulary: what is copied now and then in training, so that unusual names still work.
        self.wide = Pools(self.nouns, self.new_nouns, self.proper, self.new_proper, self.plain)
        self.common_nouns: tuple[str, ...] = self.plain
        self.adjectives: tuple[str, ...] = self.plain
        self.encode = lru_cache(maxsize=1 << 16)(self._encode)

    def drawing(self, pools: Pools) -> Lexicon:
        """The same vocabulary, drawing words from `pools`."""
        other = copy.copy(self)
        other.nouns, other.new_nouns, other.proper = pools.nouns, pools.new_nouns, pools.proper
        other.new_proper, other.plain = pools.new_proper, pools.plain
        return other

    def _encode(self, text: str) -> tuple[int, ...]:
        """Token ids of `text`; names of special tokens in it are plain text."""
        return tuple(self.encoding.encode_ordinary(text))

    def decode(self, ids: list[int]) -> str:
        return self.encoding.decode(ids)

    def known(self, trained_ids: set[int], answered: set[int]) -> Known:
        """The known tokens: those given, the words of the wide pools, numbers, and common words."""
        wide = self.wide
        copyable = {rank for text, rank in self.rank.items() if rank < FIRST_COMMON_IDS and COPYABLE.fullmatch(text)}
        for word in (*wide.nouns, *wide.new_nouns):
            copyable.update(self.rank[p + word] for p in ("", " ", "_", "."))
            copyable.add(self.rank[" " + word.capitalize()])
        for word in (*wide.proper, *wide.new_proper, *wide.plain):
            copyable.update((self.rank[word], self.rank[" " + word]))
        copyable.update(rank for text, rank in self.rank.items() if re.fullmatch("[0-9]{1,3}", text))
        return self.table(sorted(copyable | trained_ids | answered), trained_ids)

    def table(self, ids: Sequence[int], trained_ids: set[int]) -> Known:
        """Stem, class and trainable row of each of `ids`; `trained_ids` have rows of their own.

        The order counts: it decides which code a stem gets, so tokens that a later run adds go to the end.
        """
        stems: dict[str, int] = {}
        kinds: dict[str, int] = {"other": 0, "number": 1}
        stem, kind = [], []
        for token in ids:
            text = self.text.get(token, f"<{token}>")
            match = COPYABLE.fullmatch(text)
            if match and (match[2].islower() or match[2].istitle()):
                name, style = match[2].lower(), match[1] + ("A" if match[2].istitle() else "a")
            else:
                name, style = f"={text}", "number" if text.isdigit() else "other"
            stem.append(stems.setdefault(name, len(stems)))
            kind.append(kinds.setdefault(style, len(kinds)))
        order = {token: index for index, token in enumerate(token for token in ids if token in trained_ids)}
        trained = tuple(order.get(token, -1) for token in ids)
        return Known(tuple(ids), tuple(stem), tuple(kind), trained, len(kinds), len(stems))


def held_out(text: str, parts: int = 20) -> int:
    """A stable hash of `text` into `parts`; part 0 is never used in training."""
    value = 2166136261
    for byte in text.encode():
        value = (value ^ byte) * 16777619 % 2**32
    return (value >> 8) % parts


def _is_text(token: bytes) -> bool:
    try:
        token.decode()
    except UnicodeDecodeError:
        return False
    return True
