"""A GptOss whose model says what a test wrote down."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from mlx_gptoss.engine import Engine, EngineOptions
from mlx_gptoss.harmony.special import CALL, CHANNEL, CONSTRAIN, END, MESSAGE, RETURN, START
from mlx_gptoss.harmony.vocabulary import load_vocabulary
from mlx_gptoss.llm import GptOss
from tests.unit.fake_model import ScriptedModel

SPECIALS = {
    "<|return|>": RETURN,
    "<|call|>": CALL,
    "<|channel|>": CHANNEL,
    "<|constrain|>": CONSTRAIN,
    "<|end|>": END,
    "<|message|>": MESSAGE,
    "<|start|>": START,
}


def harmony_ids(text: str) -> list[int]:
    """Token ids of text in which the names of special tokens mean the tokens."""
    ids: list[int] = []
    for part in re.split(r"(<\|\w+\|>)", text):
        if part in SPECIALS:
            ids.append(SPECIALS[part])
        elif part:
            ids += load_vocabulary().encode(part)
    return ids


class Answers:
    """A script: the n-th different prompt is answered with text n (the last text from then on).

    Where something forced the model off its text, it goes on with the text's last message."""

    def __init__(self, texts: Sequence[str]) -> None:
        self._turns = [harmony_ids(text) for text in texts]
        self._prompts: dict[tuple[int, ...], int] = {}

    def __call__(self, prompt: list[int], generated: list[int]) -> int:
        number = self._prompts.setdefault(tuple(prompt), len(self._prompts))
        turn = self._turns[min(number, len(self._turns) - 1)]
        if generated == turn[: len(generated)]:
            return turn[len(generated)] if len(generated) < len(turn) else RETURN
        place = len(generated) - 1 - generated[::-1].index(MESSAGE) if MESSAGE in generated else 0
        last = len(turn) - turn[::-1].index(MESSAGE)
        return turn[min(last + len(generated) - 1 - place, len(turn) - 1)]


@contextmanager
def scripted(*texts: str, **options: Any) -> Iterator[tuple[GptOss, ScriptedModel]]:
    model = ScriptedModel(Answers(texts))
    with GptOss(Engine(lambda: model, EngineOptions(**options)), name="scripted") as llm:
        yield llm, model
