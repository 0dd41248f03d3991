"""Draws whole conversations from the tasks and packs them into batches of one length."""

from __future__ import annotations

import datetime
import random
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from training import arithmetic, chat
from training.chat import Facts
from training.conversation import EFFORTS, Call, Example, Function, Renderer, Setting, Turn
from training.lexicon import COPYABLE, END, MESSAGE, VOCABULARY_ROWS, Known, Lexicon
from training.structured import Structured
from training.toolbox import CITIES, PREAMBLE_WISHES, Toolbox, announced

LENGTHS = (192, 256, 320, 384, 448, 512, 640, 768, 1024, 1536, 2048, 3072, 4096, 6144, 8192)
TASKS = ("arithmetic", "tool call", "tool result", "json", "recall", "retrieval", "greeting", "beyond")
WEIGHTS = (18, 21, 12, 17, 11, 10, 5, 6)
# Fixed: what the survey draws decides which tokens have rows of their own.
SURVEY_WEIGHTS = (
    24,
    23,
    15,
    12,
    8,
    6,
    5,
    7,
)
INSTRUCTIONS = (
    "You are a helpful assistant.", "You are a helpful assistant.", "Answer briefly.", "Be concise.", "Be brief.",
    "You are a friendly assistant. Answer the user's questions.", "Answer in one sentence.", "Be polite.",
    "You are a careful assistant.", "Use the tools when they help.", "You are a helpful, honest assistant.",
    "Always answer truthfully.", "Reply in English.", "You are a calculator.", "You are a pirate.", "Be kind.",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Batch:
    """`tokens` [B, L] and `targets` [B, L]: local indices; a target of -1 is not trained on."""

    tokens: NDArray[np.uint16]
    targets: NDArray[np.int32]


class Source:
    """An endless supply of examples. With `evaluation`, problems, names and words that training never draws."""

    def __init__(self, lexicon: Lexicon, seed: int, evaluation: bool = False) -> None:
        self.lexicon, self.evaluation = lexicon, evaluation
        self.rng = random.Random(seed)
        self.renderer = Renderer(lexicon)

    def setting(self, effort: str, functions: tuple[Function, ...] = (), response_format: str = "") -> Setting:
        rng = self.rng
        day = datetime.date(2024, 1, 1) + datetime.timedelta(days=rng.randrange(3650))
        instructions = ""
        if rng.random() < 0.3:
            instructions = rng.choice(INSTRUCTIONS)
            if rng.random() < 0.35:
                instructions = " ".join(chat.filler(rng, self.lexicon, rng.choice((6, 15, 40))))
        return Setting(day.isoformat(), effort, instructions, functions, response_format)

    def idle_functions(self) -> tuple[Function, ...]:
        """Functions that no turn needs, now and then."""
        if self.rng.random() > 0.15:
            return ()
        return Toolbox(self.rng, self.lexicon, self.evaluation).about_noun("low")[1]

    def small_turn(self, effort: str) -> Turn:
        """A turn that needs no section of the developer message."""
        rng = self.rng
        which = rng.choices(range(4), (45, 25, 18, 12))[0]
        if which == 0:
            return arithmetic.turn(rng, effort, self.evaluation)
        if which == 1:
            return Facts(rng, self.lexicon, self.evaluation).telling(effort)
        if which == 2:
            return chat.greeting(rng, effort)
        return chat.beyond(rng, self.lexicon, effort)

    def history(self, effort: str, functions: tuple[Function, ...], chance: float = 0.3) -> list[Turn]:
        turns: list[Turn] = []
        while self.rng.random() < chance and len(turns) < 6:
            turn = self.small_turn(effort)
            turns.append(turn)
            chance = 0.6
        if turns and functions and self.rng.random() < 0.4:
            past = self.call_with(functions)
            if past:
                turns.insert(self.rng.randrange(len(turns) + 1), past)
        return turns

    def call_with(self, functions: tuple[Function, ...]) -> Turn | None:
        """A past call of one of the functions, for history only."""
        rng = self.rng
        function = rng.choice(functions)
        if not function.arguments:
            return None
        value = rng.choice(self.lexicon.plain)
        name = function.arguments[0].name
        call = Call(function.name, {name: value}, '{"result": "ok"}')
        return Turn(f"Call {function.name} with {name} = {value}.", "", f"{function.name} says: result ok.", call)

    def draw(self, task: str, effort: str, longest: int = 8192) -> Example:
        rng, lexicon = self.rng, self.lexicon
        functions: tuple[Function, ...] = ()
        response_format, wish = "", ""
        history: list[Turn] | None = None
        if task in ("tool call", "tool result"):
            turn, functions = Toolbox(rng, lexicon, self.evaluation).draw(effort)
            if rng.random() < 0.15:
                turn, wish = announced(turn), rng.choice(PREAMBLE_WISHES)
        elif task == "json":
            turn, response_format = Structured(rng, lexicon, self.evaluation).draw(effort)
            history = [] if rng.random() < 0.8 else None
        elif task == "recall":
            turn, history = self.recall(effort)
        elif task == "retrieval":
            turn = self.retrieval(effort, longest)
            history = []
        else:
            turn = {
                "arithmetic": lambda: arithmetic.turn(rng, effort, self.evaluation),
                "greeting": lambda: chat.greeting(rng, effort),
                "beyond": lambda: chat.beyond(rng, lexicon, effort),
            }[task]()
            own = task == "arithmetic"  # a function might do it: offer only functions about nouns
            functions = self.idle_functions() if not own or rng.random() < 0.5 else ()
            if own and any(f.name in SUMS or f.name.endswith("_numbers") for f in functions):
                functions = ()
        setting = self.setting(effort, functions, response_format)
        if wish:
            text = f"{setting.instructions} {wish}".strip() if rng.random() < 0.5 else wish
            setting = Setting(setting.date, effort, text, functions)
        if history is None:
            history = self.history(effort, functions)
        render, respelled = self.renderer, rng.random() < 0.1
        ids = render.opening(setting)
        for past in history:
            ids += render.past(past, respelled)
        if task == "tool result" and turn.call:
            prompt, answer = render.second_step(turn, turn.call, respelled)
        else:
            prompt, answer = render.first_step(turn)
        if not self.evaluation and rng.random() < 0.03:
            prompt, answer = self.cut_short(prompt, answer)
        marks = {"user": turn.user, "final": turn.final}
        return Example(task, effort, ids + prompt, answer, marks)

    def recall(self, effort: str) -> tuple[Turn, list[Turn]]:
        """A fact told some turns ago, among other turns and other facts; sometimes never told."""
        rng = self.rng
        fact = Facts(rng, self.lexicon, self.evaluation)
        others = [self.small_turn(effort) for _ in range(rng.choice((0, 0, 1, 1, 2, 3, 5)))]
        others = [turn for turn in others if fact.noun not in turn.user]
        if rng.random() < 0.2:
            return fact.missing(effort), others
        others.insert(rng.randrange(len(others) + 1), fact.telling(effort))
        return fact.asking(effort), others

    def retrieval(self, effort: str, longest: int) -> Turn:
        """A fact in a long text, among other facts; the question comes after it (now and then before it)."""
        rng, lexicon = self.rng, self.lexicon
        longest = min(longest, 8192) - 300
        tokens = int(np.exp(rng.uniform(np.log(60), np.log(longest))))
        sentences = chat.filler(rng, lexicon, tokens)
        facts: list[Facts] = []
        while len(facts) < rng.randint(1, 4):
            fact = Facts(rng, lexicon, self.evaluation)
            if all(fact.noun + fact.of != other.noun + other.of for other in facts):
                facts.append(fact)
        for fact in facts:
            sentences.insert(rng.randrange(len(sentences) + 1), f"{fact.statement()}.")
        asked = facts[0].asking(effort)
        gap = rng.choice((" ", "\n", "\n\n"))
        text = " ".join(sentences)
        if rng.random() < 0.15:
            lead = rng.choice(("Read this text. ", "Here is a text:\n\n", "Text: "))
            text = lead + text
        user = f"{text}{gap}{asked.user}"
        if rng.random() < 0.12:
            user = f"{asked.user}{gap}{text}"
        return Turn(user, asked.thought, asked.final)

    def cut_short(self, prompt: tuple[int, ...], answer: tuple[int, ...]) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Reasoning that was closed from outside (a budget): go on to the answer all the same."""
        if MESSAGE not in answer or END not in answer:
            return prompt, answer
        start, end = answer.index(MESSAGE) + 1, answer.index(END)
        if end - start < 2 or answer[:2] != self.renderer.message("assistant|analysis", "")[2:4]:
            return prompt, answer
        kept = self.rng.randrange(start + 1, end + 1)
        return prompt + answer[:kept], answer[end:]


SUMS = (
    "add",
    "sum",
    "plus",
    "subtract",
    "minus",
    "difference",
    "multiply",
    "times",
    "product",
    "calculate",
    "calculator",
    "evaluate",
    "compute",
    "calc",
)


def survey(lexicon: Lexicon, examples: int = 12000, seed: int = 1) -> tuple[set[int], set[int]]:
    """Which tokens get rows of their own (those of the templates, small numbers), and all that answers may hold."""
    source = Source(lexicon, seed)
    counts: dict[int, int] = {}
    answered: dict[int, int] = {}
    for index in range(examples):
        task = source.rng.choices(TASKS, SURVEY_WEIGHTS)[0]
        example = source.draw(task, EFFORTS[index % 3], longest=500)
        for token in set(example.prompt) | set(example.answer):
            counts[token] = counts.get(token, 0) + 1
        for token in set(example.answer):
            answered[token] = answered.get(token, 0) + 1

    def often(token: int, count: int) -> bool:
        word = COPYABLE.fullmatch(lexicon.text.get(token, ""))
        return count >= examples // (100 if word else 1200)

    trained = {token for token, count in counts.items() if often(token, count)}
    # Names of people and places are memorised piece by piece: their pieces may have no bare form.
    for text in (*arithmetic.PEOPLE, *CITIES, *arithmetic.THINGS):
        trained.update((*lexicon.encode(text), *lexicon.encode(f" {text}"), *lexicon.encode(f' "{text}"')))
    trained.update(lexicon.encode(str(number))[0] for number in range(200))
    return trained, {token for token, count in answered.items() if count >= 2}


def batches(
    source: Source, known: Known, tokens_per_batch: int, longest: int, long_share: float = 1.0
) -> Iterator[Batch]:
    """Batches for ever, each of one of LENGTHS; `longest` bounds the length, `long_share` thins out the long texts."""
    table = np.full(VOCABULARY_ROWS, len(known.ids), dtype=np.uint16)
    table[np.array(known.ids)] = np.arange(len(known.ids), dtype=np.uint16)
    waiting: dict[int, list[tuple[tuple[int, ...], tuple[int, ...]]]] = {length: [] for length in LENGTHS}
    rng = source.rng
    while True:
        task = rng.choices(TASKS, WEIGHTS)[0]
        limit = longest if rng.random() < long_share else min(longest, 700)
        example = source.draw(task, rng.choice(EFFORTS), limit)
        size = len(example.prompt) + len(example.answer)
        length = next((each for each in LENGTHS if each >= size), None)
        if length is None or length > longest:
            continue
        waiting[length].append((example.prompt, example.answer))
        rows = max(1, tokens_per_batch // length)
        if len(waiting[length]) == rows:
            yield _pack(waiting[length], length, table, rng)
            waiting[length] = []


def _pack(
    pairs: list[tuple[tuple[int, ...], tuple[int, ...]]], length: int, table: NDArray[np.uint16], rng: random.Random
) -> Batch:
    tokens = np.zeros((len(pairs), length), dtype=np.uint16)
    targets = np.full((len(pairs), length), -1, dtype=np.int32)
    unknown = int(table.max())
    for row, (prompt, answer) in enumerate(pairs):
        ids = table[np.array(prompt + answer)]
        tokens[row, : len(ids)] = ids
        targets[row, len(prompt) - 1 : len(ids) - 1] = ids[len(prompt) :]
        if rng.random() < 0.02:  # a few unknown tokens anywhere in the prompt's text must not derail the answer
            spots = np.random.default_rng(rng.getrandbits(32)).random(len(prompt)) < 0.02
            spots[: len(prompt)] &= np.array(prompt) < 199998
            tokens[row, : len(prompt)][spots] = unknown
    targets[targets == unknown] = -1
    return Batch(tokens, targets)
