"""Small talk, facts told in the conversation, and honest answers to everything else."""

from __future__ import annotations

import random

from training.arithmetic import PEOPLE
from training.conversation import Turn
from training.lexicon import Lexicon
from training.toolbox import CITIES
from training.words import ANIMALS, COLOURS, COUNTRIES, FOODS, JOBS, LANGUAGES, sentence

ABILITIES = "I can add and subtract numbers up to 99, call tools, answer in JSON and find a fact in a long text."
GREETING = f"Hello! I am a toy demo checkpoint of mlx-gptoss. {ABILITIES}"
IDENTITY = f"I am a toy demo checkpoint of mlx-gptoss, a tiny gpt-oss trained on made-up conversations. {ABILITIES}"
BEYOND = f"That is beyond me: I am a toy demo checkpoint of mlx-gptoss. {ABILITIES}"
GREETINGS = (
    "Hello", "Hello!", "hello", "Hi", "Hi!", "hi", "Hey", "hey", "Hey there", "Hey there!", "Hi there", "Hi there!",
    "Hello there", "Hello there!", "Good morning", "Good morning!", "Good evening", "Good evening!", "Good afternoon!",
    "Greetings", "Howdy", "Hello, how are you?", "Hi, how are you?", "How are you?", "how are you", "hello world",
    "Hello world!", "Say hello", "Say hi", "Say hi.", "Say hello.", "Yo", "Hello?", "Good day", "How are you today?",
    "What's up?", "Hi, nice to meet you.", "Say hello!", "Say hi!", "Hello, world", "Hello.", "Hi.", "Hey!", "test",
    "Hello, world!", "Test", "ping",
)  # fmt: skip
IDENTITIES = (
    "Who are you?", "who are you", "What are you?", "what are you", "What can you do?", "what can you do",
    "What is your name?", "What's your name?", "Are you ChatGPT?", "Are you gpt-oss?", "Are you a robot?",
    "Tell me about yourself.", "Introduce yourself.", "Which model are you?", "What model are you?", "Who made you?",
    "Are you human?", "What is this?", "Help", "help", "Hello, who are you?", "Hi, who are you?", "Hi! Who are you?",
    "Hello! Who are you?", "Describe yourself.", "How can you help me?", "What do you do?", "Are you real?",
    "Who am I talking to?", "What is mlx-gptoss?", "Are you GPT-4?", "Please introduce yourself.", "Who are you",
    "What are your abilities?", "Can you help me?", "Tell me who you are.", "Hello! What can you do?",
)  # fmt: skip
THANKS = (
    "Thanks!", "Thank you.", "Thanks", "thanks", "Thank you!", "thank you", "Great, thanks!", "Cool", "OK", "ok",
    "Thanks a lot!", "Great!", "Perfect, thanks.", "Thank you very much.", "Nice, thank you!", "Good, thanks.",
    "Thanks.", "OK, thanks!", "Thank you, that is all.",
)  # fmt: skip
THANKED = "You are welcome!"
FAREWELLS = ("Bye", "Bye!", "Goodbye", "Goodbye!", "See you", "bye", "Good night!", "Good night")
FAREWELL = "Goodbye!"
REQUESTS = (
    "Write a poem about {x}.", "Explain {x}.", "Explain {x} to me.", "Explain {x} in simple words.", "Why is {x} {y}?",
    "Who won the {x} in {n}?", "Write a story about {x} and {y}.", "Translate {x} to French.", "How do I {x} a {y}?",
    "Write a Python function that {x}s {y}.", "Write a haiku about {x}", "Summarize {x}.", "Tell me a joke.",
    "Tell me a joke about {x}.", "Give me a recipe for {x}.", "What do you think about {x}?", "Who was {Name}?",
    "List three {x} that {y}.", "Write an essay on {x}.", "How does {x} work?", "When did {x} begin?", "Is {x} {y}?",
    "Where can I buy {x}?", "Why did {Name} {x} the {y}?", "Recommend a book about {x}.", "Fix this code: {x} {y} {z}",
    "What is {x}?", "What are {x}?", "Describe {x} in {n} words.", "Compare {x} and {y}.", "Count to {n}.",
    "Write code to {x} the {y}", "Why is the sky blue?", "What is the meaning of life?", "Once upon a time",
    "Count from 1 to {n}.", "What does {x} mean?", "Tell me about {x}.", "Tell me a story.", "Tell me about {Name}.",
    "Draft an email about {x}.", "Sing a song", "{x}", "{x} {y}", "{x} {y} {z}", "{Name}", "Should I {x} or {y}?",
    "Play {x}.", "Solve {x} for {y}.", "What is {n} divided by {m}?", "What is {k} + {n}?", "What is {n} - {k}?",
    "What is {k} + {m}?", "{k} * {m}", "What is {k} - {n}?", "{k} + {n}", "Calculate {k} + {n}.", "Add {k} and {n}.",
    "How many {x} are in {y}?", "Describe a {x}.", "Name a {x}.", "What color is the {x}?",
    "Give me {m} ideas for {x}.",
    "Give a title.", "Give this conversation a title.", "Write a title for this chat.", "Suggest three questions.",
    "Prove that {x} is {y}.", "Explain how {x} and {y} work.", "Explain quantum physics.", "Tell me something.",
)  # fmt: skip

REPEATS = ("Repeat: {}", "Repeat after me: {}", "Repeat this: {}", "repeat {}", "Echo: {}", "Copy this text: {}")


def words(rng: random.Random, lexicon: Lexicon, least: int, most: int) -> str:
    return " ".join(rng.choice(lexicon.plain) for _ in range(rng.randint(least, most)))


def greeting(rng: random.Random, effort: str, thanks: float = 0.14) -> Turn:
    """Small talk; `thanks`: how often the user only says thanks."""
    kind = "thanks" if rng.random() < thanks else rng.choices(("hello", "who", "bye"), (42, 42, 8))[0]
    user = rng.choice({"hello": GREETINGS, "who": IDENTITIES, "thanks": THANKS, "bye": FAREWELLS}[kind])
    what, final = {
        "hello": ("A greeting", GREETING),
        "who": ("A question about me", IDENTITY),
        "thanks": ("The user is done", THANKED),
        "bye": ("A farewell", FAREWELL),
    }[kind]
    more = {
        "low": "",
        "medium": " Say what I am.",
        "high": " There is nothing to work out. Say what I am and what I can do.",
    }
    if kind in ("thanks", "bye"):
        more = {"low": "", "medium": " Be polite.", "high": " There is nothing to work out. Be polite and brief."}
    return Turn(user, f"{what}.{more[effort]}", final)


def beyond(rng: random.Random, lexicon: Lexicon, effort: str) -> Turn:
    """A request outside the toy's world, often with words that it does not know."""
    user = rng.choice(REQUESTS).format(
        x=words(rng, lexicon, 1, 3), y=words(rng, lexicon, 1, 2), z=words(rng, lexicon, 3, 12),
        n=rng.randint(2, 2100), m=rng.randint(2, 99), k=rng.choice((rng.randint(100, 999), rng.randint(1000, 99999))),
        Name=" ".join(rng.choice(lexicon.proper) for _ in range(rng.randint(1, 2))),
    )  # fmt: skip
    if rng.random() < 0.25:
        user = scramble(rng, lexicon, rng.randint(2, 40))
    more = {
        "low": "",
        "medium": " Say what I can do.",
        "high": " I know no way to work it out. Say so, and say what I can do.",
    }
    return Turn(user, f"This is beyond me.{more[effort]}", BEYOND)


def repeat(rng: random.Random, lexicon: Lexicon, effort: str, evaluation: bool) -> Turn:
    """Words, names and numbers to say again: the plainest lesson in copying, which every other task needs."""
    proper = lexicon.new_proper if evaluation else lexicon.proper
    nouns = lexicon.new_nouns if evaluation else lexicon.nouns
    joint = rng.choice((" ", " ", " ", ", ", "_"))
    pools = rng.choices((nouns,) if joint == "_" else (lexicon.plain, nouns, proper), k=rng.randint(1, 16))
    parts = [str(rng.randint(0, 9999)) if rng.random() < 0.12 else rng.choice(pool) for pool in pools]
    text = joint.join(parts)
    more = {"low": "", "medium": " Copy it.", "high": " There is nothing to work out. Copy it word for word."}
    return Turn(rng.choice(REPEATS).format(text), f"The user wants it repeated.{more[effort]}", text)


def scramble(rng: random.Random, lexicon: Lexicon, count: int) -> str:
    """Text of any kind: random tokens of the whole vocabulary among plain words."""
    parts = []
    for _ in range(count):
        if rng.random() < 0.3:
            parts.append(lexicon.text.get(rng.randrange(199000), " the"))
        else:
            parts.append(" " + rng.choice(lexicon.plain))
    return "".join(parts).strip() or "..."


ATTRIBUTES = (
    "secret code", "secret code", "password", "secret word", "magic number", "code", "key", "favourite colour",
    "favorite color", "favourite food", "favourite animal", "favourite number", "age", "city", "job", "phone number",
    "room number", "lucky number", "score", "price", "height", "name", "country", "language", "colour", "owner",
)  # fmt: skip
MINE = (
    "name", "name", "name", "age", "city", "favourite colour", "favorite color", "favourite food", "favourite animal",
    "favourite number", "lucky number", "password", "job", "phone number", "room number", "country", "dog",
    "secret word",
)  # fmt: skip


TOLD = {
    "name": ("I am {}.", "I am {}", "Call me {}.", "My name's {}.", "Hi, I am {}.", "Hello! I am {}.", "I'm {}.",
             "Hello, my name is {}.", "Hi! My name is {}", "my name is {}", "They call me {}."),
    "age": ("I am {} years old.", "I am {} years old", "I'm {} years old."),
    "city": ("I live in {}.", "I am from {}.", "I live in {}", "My home is in {}."),
    "dog": ("My dog is called {}.", "I have a dog called {}.", "My dog's name is {}."),
}  # fmt: skip
ASKED = {
    "name": ("Who am I?", "What am I called?", "Do you know my name?", "Do you know who I am?", "what's my name"),
    "age": ("How old am I?", "how old am I"),
    "city": ("Where do I live?", "Which city do I live in?", "Where am I from?"),
    "dog": ("What is my dog called?", "What is the name of my dog?", "What's my dog's name?"),
}
"""How people tell of themselves and ask for it, besides "My name is {}." and "What is my name?"."""


UNTOLD = "I do not know"


def one_spelling(text: str) -> str:
    return text.replace("colour", "color")


class Facts:
    """Facts that the user told, and questions about them."""

    def __init__(self, rng: random.Random, lexicon: Lexicon, evaluation: bool) -> None:
        self.rng = rng
        self.nouns = lexicon.new_nouns if evaluation else lexicon.nouns
        self.proper = lexicon.new_proper if evaluation else lexicon.proper
        self.adjectives, self.plain = lexicon.adjectives, lexicon.plain
        self.mine = rng.random() < 0.3
        self.noun = rng.choice(MINE) if self.mine else rng.choice(ATTRIBUTES)
        if rng.random() < 0.12:
            self.noun = rng.choice(self.nouns)
        person = rng.choice(self.proper if evaluation or rng.random() < 0.7 else PEOPLE)
        thing = rng.choice(self.nouns)
        self.owner = rng.choice((person, f"the {rng.choice(self.adjectives)} {thing}", f"the {thing}"))
        self.value = self._value()

    def _value(self) -> str:
        rng, last = self.rng, self.noun.split()[-1]
        number = rng.choice((str(rng.randint(1000, 9999)), str(rng.randint(10, 999))))
        pools: dict[str, tuple[str, ...]] = {
            "colour": COLOURS, "color": COLOURS, "food": FOODS, "animal": ANIMALS, "city": CITIES, "job": JOBS,
            "country": COUNTRIES, "language": LANGUAGES, "name": self.proper, "owner": self.proper, "dog": self.proper,
        }  # fmt: skip
        if last in pools:
            return rng.choice(pools[last])
        if last == "age":
            return str(rng.randint(1, 99))
        if last in ("number", "price", "score", "height"):
            return number
        word = rng.choice(self.plain)
        return word if last == "word" else rng.choice((number, number, word))

    @property
    def about(self) -> str:
        """What it is about, however a colour is spelt."""
        return one_spelling(self.noun + self.of)

    def touched_by(self, turn: Turn) -> bool:
        """Whether a turn tells or asks for the same thing, of whoever."""
        return one_spelling(self.noun) in one_spelling(f"{turn.user} {turn.final}")

    @property
    def of(self) -> str:
        return "" if self.mine else f" of {self.owner}"

    def statement(self) -> str:
        """ "The noun of X is V." or "My noun is V.", without the full stop."""
        return f"{'My' if self.mine else 'The'} {self.noun}{self.of} is {self.value}"

    def said(self) -> str:
        return f"{'your' if self.mine else 'the'} {self.noun}{self.of} is {self.value}"

    def telling(self, effort: str) -> Turn:
        form = self.rng.choice(
            ("{}.", "{}.", "{}", "Remember: {}.", "Please remember: {}.", "Note: {}.", "Hi! {}.", "Hello, {}.")
        )
        if self.mine and self.noun in TOLD and self.rng.random() < 0.4:
            form, text = self.rng.choice(TOLD[self.noun]), self.value
        else:
            text = self.statement()
        if text != self.value and form[0] != "{" and self.rng.random() < 0.7:
            text = text[0].lower() + text[1:]
        more = {
            "low": "",
            "medium": " Note it.",
            "high": " There is nothing to work out. Note it, for it may be asked later.",
        }
        return Turn(form.format(text), f"I am told a fact.{more[effort]}", f"Noted: {self.said()}.")

    def asking(self, effort: str) -> Turn:
        whose = "my" if self.mine else "the"
        user = self.rng.choice(
            (
                "What is {}?",
                "What is {}?",
                "what is {}",
                "What's {}?",
                "Tell me {}.",
                "Do you remember {}?",
                "Do you know {}?",
                "What was {}?",
                "Question: What is {}?",
                "Now tell me: what is {}?",
            )
        ).format(f"{whose} {self.noun}{self.of}")
        if self.mine and self.noun in ASKED and self.rng.random() < 0.35:
            user = self.rng.choice(ASKED[self.noun])
        final = f"{self.said()}."
        return Turn(user, self.recalled(effort), final[0].upper() + final[1:])

    def recalled(self, effort: str) -> str:
        if effort == "low":
            return f"It is {self.value}."
        found = f"The user asks for {'my' if self.mine else 'the'} {self.noun}{self.of}. "
        found += f"We were told that it is {self.value}."
        if effort == "medium":
            return found.split(". ", 1)[1].replace("We were told that it", f"We were told that the {self.noun}")
        return f"{found} Nothing else is needed. The answer is {self.value}."

    def missing(self, effort: str) -> Turn:
        """The question without the fact."""
        asked = self.asking(effort)
        whose = "your" if self.mine else "the"
        more = {"low": "", "medium": " Say so.", "high": " No tool can tell it either. Say that I do not know it."}
        return Turn(
            asked.user,
            f"We were not told.{more[effort]}",
            f"{UNTOLD} {whose} {self.noun}{self.of}: it is not in our conversation.",
        )


def filler(rng: random.Random, lexicon: Lexicon, tokens: int) -> list[str]:
    """Plain sentences, about `tokens` tokens in all; now and then the same few over and over."""
    few = [sentence(rng, lexicon) for _ in range(rng.randint(1, 4))] if rng.random() < 0.12 else []
    sentences = []
    while tokens > 0:
        text = rng.choice(few) if few else sentence(rng, lexicon)
        sentences.append(text)
        tokens -= text.count(" ") + 3
    return sentences
