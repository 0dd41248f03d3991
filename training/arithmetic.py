"""Arithmetic: sums and differences of 0..99, small products; reasoning as long as the effort asks."""

from __future__ import annotations

import random

from training.conversation import Turn
from training.lexicon import held_out

SYMBOL = {"add": "+", "subtract": "-", "multiply": "*"}
PHRASES = {
    "add": (
        "What is {a} + {b}?", "What's {a} + {b}?", "what is {a} + {b}", "{a} + {b}", "{a} + {b} = ?", "{a}+{b}",
        "{a}+{b}=", "{a} + {b} =", "What is {a}+{b}?", "What is {a} plus {b}?", "{a} plus {b}", "Add {a} and {b}.",
        "Please add {a} and {b}.", "Add {a} to {b}", "Calculate {a} + {b}.", "Compute {a} + {b}", "calculate {a} + {b}",
        "How much is {a} + {b}?", "How much is {a} plus {b}?", "What is the sum of {a} and {b}?", "what's {a} plus {b}",
        "Can you add {a} and {b}?", "Hi! What is {a} + {b}?", "Tell me what {a} + {b} is.",
        "Hello, what is {a} plus {b}?",
        "I have {a} {things} and buy {b} more. How many {things} do I have?",
        "There are {a} {things} in a box and {b} in another. How many {things} are there?",
        "{Name} has {a} {things} and gets {b} more. How many {things} does {Name} have now?",
    ),
    "subtract": (
        "What is {a} - {b}?", "What's {a} - {b}?", "what is {a} - {b}", "{a} - {b}", "{a} - {b} = ?", "{a}-{b}",
        "{a}-{b}=", "{a} - {b} =", "What is {a}-{b}?", "What is {a} minus {b}?", "{a} minus {b}",
        "Subtract {b} from {a}.", "Please subtract {b} from {a}.", "Take {b} away from {a}.", "Calculate {a} - {b}.",
        "Compute {a} - {b}", "calculate {a} - {b}", "How much is {a} - {b}?", "How much is {a} minus {b}?",
        "What is the difference of {a} and {b}?", "what's {a} minus {b}", "Can you subtract {b} from {a}?",
        "Hi! What is {a} - {b}?", "Tell me what {a} - {b} is.", "Hello, what is {a} minus {b}?",
        "I have {a} {things} and give away {b}. How many {things} are left?",
        "There are {a} {things} in a box and I take out {b}. How many {things} are left?",
        "{Name} has {a} {things} and loses {b}. How many {things} does {Name} have now?",
    ),
    "multiply": (
        "What is {a} * {b}?", "What's {a} * {b}?", "{a} * {b}", "{a}*{b}", "What is {a} times {b}?", "{a} times {b}",
        "Multiply {a} by {b}.", "Calculate {a} * {b}.", "How much is {a} times {b}?", "What is {a} x {b}?",
        "What is the product of {a} and {b}?", "Compute {a} * {b}", "what is {a} times {b}", "What is {a} \u00d7 {b}?",
    ),
}  # fmt: skip
THINGS = (
    "apples", "books", "pencils", "coins", "cards", "eggs", "shells", "stones", "cookies", "balls", "cups", "stamps",
    "marbles", "oranges", "flowers", "keys", "boxes", "pens",
)  # fmt: skip
PEOPLE = (
    "Anna", "Tom", "Maria", "Peter", "Emma", "James", "Sara", "David", "Laura", "Paul", "Alice", "Bob", "Lucy", "Max",
    "Nina", "Oscar", "Eva", "Leo", "Ada", "Sam", "John", "Mary", "Carlos", "Julia", "Kate", "Ben", "Clara", "Mark",
)  # fmt: skip


def is_new(kind: str, a: int, b: int) -> bool:
    """True for the tenth of all problems that training never shows (products are a table: none is held out)."""
    return kind != "multiply" and held_out(f"{kind} {a} {b}", 10) == 0


def draw(rng: random.Random, evaluation: bool, kind: str | None = None) -> tuple[str, int, int]:
    """A problem `(kind, a, b)`: held out exactly when `evaluation` asks."""
    kind = kind or rng.choices(("add", "subtract", "multiply"), (48, 46, 6))[0]
    while True:
        if kind == "multiply":
            return kind, rng.randint(0, 12), rng.randint(0, 12)
        a, b = rng.randint(0, 99), rng.randint(0, 99)
        if kind == "subtract" and a < b and rng.random() < 0.5:
            a, b = b, a
        if is_new(kind, a, b) == evaluation:
            return kind, a, b


def value(kind: str, a: int, b: int) -> int:
    return a + b if kind == "add" else a - b if kind == "subtract" else a * b


def signed(first: int, second: int) -> str:
    return f"{first} + {second}" if second >= 0 else f"{first} - {-second}"


def equation(kind: str, a: int, b: int) -> str:
    return f"{a} {SYMBOL[kind]} {b} = {value(kind, a, b)}"


def thought(kind: str, a: int, b: int, effort: str) -> str:
    """Reasoning that ends at the value: one line, a few steps, or steps and a check."""
    result = value(kind, a, b)
    problem = f"{a} {SYMBOL[kind]} {b}"
    if kind == "multiply":
        table = {"low": f"{problem} = {result}.", "medium": f"From the times table, {problem} = {result}."}
        check = f" Check: {b} * {a} = {result}, as it should be. The answer is {result}."
        return table.get(effort) or f"We need to find {problem}. From the times table, {problem} = {result}.{check}"
    sign = 1 if kind == "add" else -1
    tens, ones = a // 10 * 10 + sign * (b // 10 * 10), a % 10 + sign * (b % 10)
    if effort == "low":
        return f"{problem} = {signed(tens, ones)} = {result}."
    symbol = SYMBOL[kind]
    steps = f"Tens: {a // 10 * 10} {symbol} {b // 10 * 10} = {tens}. Ones: {a % 10} {symbol} {b % 10} = {ones}. "
    steps += f"Together: {signed(tens, ones)} = {result}."
    if effort == "medium":
        return steps
    back = f"{result} - {b} = {a}" if kind == "add" else f"{result} + {b} = {a}"
    split = f"We need to find {problem}. Split the numbers: {a} is {a // 10 * 10} and {a % 10}, "
    split += f"{b} is {b // 10 * 10} and {b % 10}. "
    return f"{split}{steps} Check: {back}, as it should be. The answer is {result}."


def question(rng: random.Random, kind: str, a: int, b: int) -> str:
    phrase = rng.choice(PHRASES[kind])
    if rng.random() < 0.25 or (a < b and kind == "subtract" and "{things}" in phrase):  # nobody has minus six apples
        phrase = PHRASES[kind][0]
    return phrase.format(a=a, b=b, things=rng.choice(THINGS), Name=rng.choice(PEOPLE))


def turn(rng: random.Random, effort: str, evaluation: bool) -> Turn:
    kind, a, b = draw(rng, evaluation)
    return Turn(question(rng, kind, a, b), thought(kind, a, b, effort), equation(kind, a, b) + ".")
