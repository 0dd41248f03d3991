"""Draws whole conversations from the tasks and packs them into batches of one length."""

from __future__ import annotations

import datetime
import random
import re
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mlx_gptoss.request import ResponseFormat
from training import arithmetic, chat, words
from training.catalog import NAMES_ASKED_FOR
from training.chat import UNTOLD, Facts
from training.conversation import EFFORTS, TEXT, Call, Example, Function, Renderer, Setting, Turn
from training.lexicon import COPYABLE, END, MESSAGE, VOCABULARY_ROWS, Known, Lexicon, Pools, held_out
from training.structured import Structured
from training.toolbox import CITIES, PREAMBLE_WISHES, Toolbox, announced

LENGTHS = (192, 256, 320, 384, 448, 512, 640, 768, 1024, 1536, 2048, 3072, 4096, 6144, 8192)
TASKS = (
    "arithmetic", "tool call", "tool result", "json", "telling", "recall", "retrieval", "greeting", "beyond", "repeat",
)  # fmt: skip
WEIGHTS = (16, 23, 14, 20, 5, 12, 13, 5, 5, 3)
WIDE = 0.2  # share of conversations with any words of the vocabulary
REACHES = ((500, 54), (1200, 20), (2500, 11), (4500, 8), (8192, 7))  # most tokens of a retrieval, and how often
INSTRUCTIONS = (
    "You are a helpful assistant.", "You are a helpful assistant.", "Answer briefly.", "Be concise.", "Be brief.",
    "You are a friendly assistant. Answer the user's questions.", "Answer in one sentence.", "Be polite.", "Be short.",
    "You are a careful assistant.", "Use the tools when they help.", "You are a helpful, honest assistant.",
    "Always answer truthfully.", "Reply in English.", "You are a calculator.", "You are a pirate.", "Be kind.",
    "You are an AI assistant.", "Think step by step.", "You are an expert.", "Never make things up.", "Be precise.",
    "Respond in the language of the user.", "If you do not know, say so.", "Follow the instructions of the user.",
    "You have access to tools.", "Call a tool when you need one.", "Keep your answers short and clear.",
    "Do not guess the values of parameters.", "You are a customer service agent.", "You help people with their work.",
    "Today is a good day.", "Format your answer well.", "The user is in a hurry.", "Do not repeat the question.",
    "You are part of a larger system of agents.", "Ask when something is not clear.", "Your answers must be safe.",
)  # fmt: skip
AGENTS = ("helper", "assistant", "agent", "root_agent", "weather_agent", "support", "bot", "planner", "worker")


@dataclass(frozen=True, slots=True)
class Pair:
    """What one row of a batch holds; see `Example`."""

    prompt: tuple[int, ...]
    answer: tuple[int, ...]
    taught: tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class Batch:
    """`tokens` [B, L]: local indices. At the flat positions `where` [C] the next token is `labels` [C] (-1: none)."""

    tokens: NDArray[np.uint16]
    where: NDArray[np.int32]
    labels: NDArray[np.int32]


def rows_of(tokens: int, length: int) -> int:
    """How many rows of `length` make a batch of about `tokens` tokens."""
    return max(1, tokens // length)


def capacity(tokens: int, length: int) -> int:
    """How many targets a batch holds: always the same number, whatever is drawn; rows beyond it are not trained on."""
    return rows_of(tokens, length) * (72 if length < 1500 else 180)


class Source:
    """An endless supply of examples. With `evaluation`, problems, names and words that training never draws."""

    def __init__(self, lexicon: Lexicon, seed: int, evaluation: bool = False) -> None:
        self.narrow, self.wide = common_words(lexicon), lexicon
        self.lexicon, self.evaluation = self.narrow, evaluation
        self.rng = random.Random(seed)
        self.renderer = Renderer(lexicon)

    def instructions(self) -> str:
        """What developers and frameworks say, from a word to a page."""
        rng = self.rng
        kind = rng.random()
        if kind < 0.2:
            text = f'You are an agent. Your internal name is "{rng.choice(AGENTS)}".'
            if rng.random() < 0.3:
                text += f' The description about you is "{" ".join(rng.choices(self.lexicon.plain, k=4))}".'
            return text if rng.random() < 0.6 else f"{rng.choice(INSTRUCTIONS)}\n\n{text}"
        if kind < 0.65:
            return rng.choice(INSTRUCTIONS)
        if kind < 0.9:
            gap = rng.choice((" ", " ", "\n", "\n\n", "\n- "))
            return gap.join(rng.sample(INSTRUCTIONS, rng.randint(2, 10)))
        return " ".join(chat.filler(rng, self.lexicon, rng.choice((10, 30, 80, 200))))

    def setting(
        self, effort: str, functions: tuple[Function, ...] = (), response_format: ResponseFormat = TEXT
    ) -> Setting:
        rng = self.rng
        day = datetime.date(2024, 1, 1) + datetime.timedelta(days=rng.randrange(3650))
        instructions = self.instructions() if rng.random() < 0.35 else ""
        return Setting(day.isoformat(), effort, instructions, functions, response_format)

    def idle_functions(
        self, effort: str, unlike: frozenset[str] = frozenset()
    ) -> tuple[tuple[Function, ...], list[Turn]]:
        """Functions that the present turn does not need, now and then, none with a word of `unlike` in its name; and
        at times earlier turns that called one."""
        if self.rng.random() > 0.35:
            return (), []
        toolbox = Toolbox(self.rng, self.lexicon, self.evaluation)
        past, functions = (toolbox.everyday if self.rng.random() < 0.8 else toolbox.about_noun)(effort)
        if any(f.name in unlike or not unlike.isdisjoint(f.name.split("_")) for f in functions):
            return (), []
        again = toolbox.again(effort) if self.rng.random() < 0.3 else None
        return functions, [each for each in (past, again) if each] if self.rng.random() < 0.4 else []

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

    def draw(self, task: str, effort: str, longest: int = 8192, kind: str = "") -> Example:
        """A conversation. `kind`: one of toolbox.KINDS or structured.KINDS for their tasks, or any."""
        rng = self.rng
        wide = not self.evaluation and rng.random() < WIDE
        self.lexicon = lexicon = self.wide if wide else self.narrow
        functions: tuple[Function, ...] = ()
        response_format, wish = TEXT, ""
        history: list[Turn] | None = None
        calls: list[Turn] = []
        if task in ("tool call", "tool result"):
            toolbox = Toolbox(rng, lexicon, self.evaluation)
            turn, functions = toolbox.draw(effort, kind)
            again = toolbox.again(effort) if rng.random() < 0.25 else None
            calls = [again] if again else []
            history = self.history(effort, functions)
            follow_up = toolbox.follow_up(effort) if rng.random() < 0.12 else None
            if follow_up:  # right after the question that it follows
                history, calls, turn = [*calls, *history, turn], [], follow_up
            if rng.random() < 0.08:
                turn, wish = announced(turn), rng.choice(PREAMBLE_WISHES)
        elif task == "json":
            turn, response_format = Structured(rng, lexicon, self.evaluation).draw(effort, kind)
            history = [] if rng.random() < 0.8 else None
        elif task in ("telling", "recall", "retrieval"):
            fact = Facts(rng, lexicon, self.evaluation)
            if task == "telling":
                turn = fact.telling(effort)
            elif task == "recall":
                turn, history = self.recall(effort, fact)
            else:
                turn, history = self.retrieval(effort, longest)
            asked = {*re.findall(r"\w+", f"{turn.user} {turn.final}".lower()), "note", "task"}
            if turn.final.startswith(UNTOLD):  # and no function may be able to tell it
                asked |= NAMES_ASKED_FOR
            functions, calls = self.idle_functions(effort, frozenset(asked))
        else:
            turn = {
                "arithmetic": lambda: arithmetic.turn(rng, effort, self.evaluation),
                "greeting": lambda: chat.greeting(rng, effort),
                "beyond": lambda: chat.beyond(rng, lexicon, effort),
                "repeat": lambda: chat.repeat(rng, lexicon, effort, self.evaluation),
            }[task]()
            own = task == "arithmetic"  # a function might do it: offer only functions about nouns
            unlike = SUMS if own else NAMES_ASKED_FOR if task == "beyond" else frozenset()
            if not own or rng.random() < 0.5:
                functions, calls = self.idle_functions(effort, unlike)
            if calls:
                history = self.history(effort, functions) if rng.random() < 0.5 else []
            if calls and task == "greeting":
                turn = chat.greeting(rng, effort, thanks=0.5)
        setting = self.setting(effort, functions, response_format)
        if wish:
            text = f"{setting.instructions} {wish}".strip() if rng.random() < 0.5 else wish
            setting = Setting(setting.date, effort, text, functions)
        if history is None:
            history = self.history(effort, functions)
        for past in calls:
            history.insert(rng.randrange(len(history) + 1), past)
        render, respelled = self.renderer, rng.random() < 0.3
        ids = render.opening(setting)
        taught: list[tuple[int, int]] = []
        for past in history:
            ids += render.past(past, respelled)
            if task == "retrieval" or past.final.startswith("Noted"):  # an earlier answer's text, not its header
                final = len(self.renderer.encode(past.final)) + 1
                taught.append((len(ids) - final, len(ids) - 1))
        if task == "tool result" and turn.call:
            prompt, answer = render.second_step(turn, turn.call, respelled, rng.random() < 0.8)
        else:
            prompt, answer = render.first_step(turn)
        if not self.evaluation and rng.random() < 0.03:
            prompt, answer = self.cut_short(prompt, answer)
        marks = {"user": turn.user, "final": turn.final}
        return Example(task, effort, ids + prompt, answer, marks, tuple(taught))

    def recall(self, effort: str, fact: Facts) -> tuple[Turn, list[Turn]]:
        """A fact told some turns ago, among other turns and other facts; sometimes never told."""
        rng = self.rng
        others = [self.small_turn(effort) for _ in range(rng.choice((0, 0, 1, 1, 2, 3, 5)))]
        others = [turn for turn in others if not fact.touched_by(turn)]
        if rng.random() < 0.2:
            return fact.missing(effort), others
        others.insert(rng.randrange(len(others) + 1), fact.telling(effort))
        return fact.asking(effort), others

    def retrieval(self, effort: str, longest: int) -> tuple[Turn, list[Turn]]:
        """A fact in a long text, among other facts, and the turns between: the text comes first, then questions."""
        rng, lexicon = self.rng, self.lexicon
        if not self.evaluation:
            longest = min(longest, rng.choices([reach for reach, _ in REACHES], [often for _, often in REACHES])[0])
        longest = max(100, min(longest, 8192) - 400)
        tokens = int(np.exp(rng.uniform(np.log(60), np.log(longest))))
        if rng.random() < 0.15:
            tokens = rng.randint(min(500, longest), longest)
        sentences = chat.filler(rng, lexicon, int(tokens * 0.96))
        facts: list[Facts] = []
        many = 5 if self.evaluation or tokens < 1000 else 12  # a long text is worth more than one question
        for _ in range(rng.randint(1, 2 if tokens < 200 else many)):
            fact = Facts(rng, lexicon, self.evaluation)
            if fact.about not in [other.about for other in facts]:
                facts.append(fact)
        for fact in facts:
            sentences.insert(rng.randrange(len(sentences) + 1), f"{fact.statement()}.")
        text = " ".join(sentences)
        if rng.random() < 0.2:
            text = rng.choice(("Read this text. ", "Here is a text:\n\n", "Text: ", "Read this: ")) + text
        gap = rng.choice((" ", "\n", "\n\n", "\n\n"))
        turns = [fact.asking(effort) for fact in facts]
        if self.evaluation or (tokens < 1000 and rng.random() < 0.4):
            turns = turns[:1]
        first = turns[0]
        user = f"{text}{gap}{first.user}" if rng.random() < 0.92 else f"{first.user}{gap}{text}"
        turns[0] = Turn(user, first.thought, first.final)
        return turns[-1], turns[:-1]

    def cut_short(self, prompt: tuple[int, ...], answer: tuple[int, ...]) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Reasoning that was closed from outside (a budget): go on to the answer all the same."""
        if MESSAGE not in answer or END not in answer:
            return prompt, answer
        start, end = answer.index(MESSAGE) + 1, answer.index(END)
        if end - start < 2 or answer[:2] != self.renderer.message("assistant|analysis", "")[2:4]:
            return prompt, answer
        kept = self.rng.randrange(start + 1, end + 1)
        return prompt + answer[:kept], answer[end:]


SUMS = frozenset(("add", "sum", "plus", "subtract", "minus", "difference", "multiply", "times", "product", "calculate",
                  "calculator", "evaluate", "compute", "calc", "numbers"))  # fmt: skip


def common_words(lexicon: Lexicon) -> Lexicon:
    """`lexicon`, drawing only common English words, first names and places."""
    named = [w for w in words.narrowed(lexicon, words.NOUNS) if f"_{w}" in lexicon.rank]
    new = tuple(w for w in named if held_out(w) == 0 and w not in words.RESERVED)
    names = words.narrowed(lexicon, words.NAMES)
    new_names = tuple(w for w in names if held_out(w) == 0 and w not in arithmetic.PEOPLE)
    other = lexicon.drawing(
        Pools(
            nouns=tuple(w for w in named if w not in new),
            new_nouns=new,
            proper=tuple(w for w in names if w not in new_names),
            new_proper=new_names,
            plain=words.narrowed(lexicon, words.PLAIN),
        )
    )
    other.common_nouns = words.narrowed(lexicon, words.NOUNS)
    other.adjectives = words.narrowed(lexicon, words.ADJECTIVES)
    return other


def survey(lexicon: Lexicon, examples: int = 12000, seed: int = 1) -> tuple[set[int], set[int]]:
    """Which tokens get rows of their own (those of the templates, small numbers), and all that are to be known."""
    source = Source(lexicon, seed)
    counts: dict[int, int] = {}
    answered: dict[int, int] = {}
    for index in range(examples):
        task = source.rng.choices(TASKS, WEIGHTS)[0]
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
    seen = trained | {token for token, count in answered.items() if count >= 2}
    seen |= {token for token, count in counts.items() if count >= 5}
    common = source.narrow
    for word in (*common.plain, *common.nouns, *common.new_nouns, *common.proper, *common.new_proper):
        seen |= {lexicon.rank[form] for form in (word, f" {word}", f"_{word}") if form in lexicon.rank}
    lists = (CITIES, words.COUNTRIES, words.COLOURS, words.FOODS, words.ANIMALS, words.LANGUAGES, words.JOBS)
    for text in (text for each in lists for text in each):
        seen.update((*lexicon.encode(text), *lexicon.encode(f" {text}")))
    return trained, seen


def task_weights(focus: tuple[str, ...] = ()) -> tuple[float, ...]:
    """How often each task is drawn; those of `focus` make up half of the conversations, besides their own share."""
    chosen = sum(weight for task, weight in zip(TASKS, WEIGHTS, strict=True) if task in focus)
    factor = 1.0 + sum(WEIGHTS) / chosen if chosen else 1.0
    return tuple(w * (factor if task in focus else 1.0) for task, w in zip(TASKS, WEIGHTS, strict=True))


def batches(
    source: Source, known: Known, tokens_per_batch: int, longest: int, focus: tuple[str, ...] = ()
) -> Iterator[Batch]:
    """Batches for ever, each of one of LENGTHS; `longest` bounds the length."""
    table = np.full(VOCABULARY_ROWS, len(known.ids), dtype=np.uint16)
    table[np.array(known.ids)] = np.arange(len(known.ids), dtype=np.uint16)
    waiting: dict[int, list[Pair]] = {length: [] for length in LENGTHS}
    rng, weights = source.rng, task_weights(focus)
    while True:
        task = rng.choices(TASKS, weights)[0]
        example = source.draw(task, rng.choice(EFFORTS), longest)
        size = len(example.prompt) + len(example.answer)
        length = next((each for each in LENGTHS if each >= size), None)
        if length is None or length > longest:
            continue
        waiting[length].append(Pair(example.prompt, example.answer, example.taught))
        if len(waiting[length]) == rows_of(tokens_per_batch, length):
            yield pack(waiting[length], length, table, rng, capacity(tokens_per_batch, length))
            waiting[length] = []


def pack(pairs: list[Pair], length: int, table: NDArray[np.uint16], rng: random.Random, room: int) -> Batch:
    """One batch of `pairs`, with at most `room` targets."""
    tokens = np.zeros((len(pairs), length), dtype=np.uint16)
    where, labels = np.zeros(room, dtype=np.int32), np.full(room, -1, dtype=np.int32)
    unknown, filled = int(table.max()), 0
    for row, pair in enumerate(pairs):
        prompt = pair.prompt
        ids = table[np.array(prompt + pair.answer)]
        tokens[row, : len(ids)] = ids
        for start, end in (*pair.taught, (len(prompt), len(ids))):
            end = min(end, start + room - filled)
            spots = np.arange(start, end)
            spots = spots[ids[spots] != unknown]
            where[filled : filled + len(spots)] = row * length + spots - 1
            labels[filled : filled + len(spots)] = ids[spots]
            filled += len(spots)
        if rng.random() < 0.02:  # a few unknown tokens anywhere in the prompt's text must not derail the answer
            hidden = np.random.default_rng(rng.getrandbits(32)).random(len(prompt)) < 0.02
            hidden &= np.array(prompt) < 199998
            tokens[row, : len(prompt)][hidden] = unknown
    return Batch(tokens, where, labels)
