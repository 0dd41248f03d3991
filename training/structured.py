"""Answers in JSON that follow the schema of a `# Response Formats` section."""

from __future__ import annotations

import json
import random
from typing import Any

from training import arithmetic
from training.conversation import Turn
from training.lexicon import Lexicon
from training.toolbox import CITIES

KEYS = ("name", "age", "city", "color", "country", "price", "title", "year", "count", "job", "size", "status", "email")
FREE = '## response\n\n{"type":"object"}'
EMPTY: dict[str, Any] = {"string": "unknown", "integer": 0, "number": 0, "boolean": False}


def schema_text(rng: random.Random, properties: dict[str, Any], lexicon: Lexicon) -> str:
    """The section's body: a heading, sometimes a description, and the schema as JSON."""
    body: dict[str, Any] = {"type": "object", "properties": properties, "required": list(properties)}
    if rng.random() < 0.5:
        body["additionalProperties"] = False
    if rng.random() < 0.15:
        body.pop("required")
    if rng.random() < 0.3:
        body = {"properties": body.pop("properties"), **body}
    if rng.random() < 0.15:
        body = {"title": rng.choice(lexicon.proper), **body}
    name = rng.choice(("response", "response", "answer", "output", "result", "schema", rng.choice(lexicon.nouns)))
    text = json.dumps(body, separators=(",", ":") if rng.random() < 0.6 else (", ", ": "))
    note = (
        f"// {rng.choice(('The answer', 'Answer in this form.', rng.choice(lexicon.plain)))}\n"
        if rng.random() < 0.2
        else ""
    )
    return f"## {name}\n\n{note}{text}"


def answer(effort: str, user: str, wanted: dict[str, Any], before: str = "") -> Turn:
    """`wanted` in the schema's order; `before` is reasoning that comes first (it may be an arithmetic solution)."""
    shown = ", ".join(wanted)
    thought = f"Answer in JSON with {shown}."
    if effort != "low":
        each = ". ".join(
            f"{key} is {value if isinstance(value, str) else json.dumps(value)}" for key, value in wanted.items()
        )
        thought = f"The answer must be JSON with {shown}. {each}."
    if effort == "high":
        thought += " Check: every key is there, in order, and nothing else."
    return Turn(user, f"{before} {thought}".strip(), json.dumps(wanted))


class Structured:
    def __init__(self, rng: random.Random, lexicon: Lexicon, evaluation: bool) -> None:
        self.rng, self.lexicon, self.evaluation = rng, lexicon, evaluation
        self.nouns = lexicon.new_nouns if evaluation else lexicon.nouns
        self.proper = lexicon.new_proper if evaluation else lexicon.proper

    def key(self) -> str:
        rng = self.rng
        return rng.choice(
            (
                rng.choice(KEYS),
                rng.choice(self.nouns),
                rng.choice(self.nouns),
                f"{rng.choice(self.nouns)}_{rng.choice(self.nouns)}",
            )
        )

    def value(self, kind: str) -> Any:
        rng = self.rng
        if kind == "boolean":
            return rng.random() < 0.5
        if kind != "string":
            return rng.randint(0, 99 if rng.random() < 0.6 else 9999)
        return rng.choice((rng.choice(self.proper), rng.choice(self.lexicon.plain), rng.choice(CITIES)))

    def fields(self, effort: str) -> tuple[Turn, str]:
        """The user gives values for some keys; the rest are unknown."""
        rng = self.rng
        keys: list[str] = []
        for _ in range(rng.choices((1, 2, 3, 4), (25, 35, 30, 10))[0]):
            new = self.key()
            keys += [new] if new not in keys else []
        kinds = {key: rng.choices(("string", "integer", "number", "boolean"), (55, 22, 13, 10))[0] for key in keys}
        share = rng.choice((1.0, 1.0, 0.6, 0.0))
        given = {key: self.value(kind) for key, kind in kinds.items() if rng.random() < share}
        wanted = {key: given.get(key, EMPTY[kind]) for key, kind in kinds.items()}
        spoken = list(given.items())
        rng.shuffle(spoken)
        link = rng.choice((" is ", ": ", " = ", " "))
        said = rng.choice((", ", " and ")).join(
            f"{key.replace('_', rng.choice('_ '))}{link}{value if isinstance(value, str) else json.dumps(value)}"
            for key, value in spoken
        )
        user = rng.choice(
            ("{}", "{}.", "The {}.", "Fill it in: {}.", "Make JSON: {}", "Please answer in JSON. The {}.")
        ).format(said)
        if not spoken:
            user = rng.choice(
                (
                    "Tell me about {}.",
                    "Describe {}.",
                    "Give me the JSON for {}.",
                    "{}",
                    "Make one up about {}.",
                    "Who is {}?",
                    "What is {}?",
                )
            ).format(self.value("string"))
        if spoken and rng.random() < 0.1:
            return answer(effort, user, dict(spoken)), FREE
        return answer(effort, user, wanted), self.schema(kinds)

    def schema(self, kinds: dict[str, str]) -> str:
        properties: dict[str, Any] = {}
        titled = self.rng.random() < 0.15
        for key, kind in kinds.items():
            properties[key] = {"type": kind}
            if titled:
                properties[key] = {"title": key.replace("_", " ").title(), "type": kind}
            if self.rng.random() < 0.12:
                properties[key]["description"] = f"The {key}"
        return schema_text(self.rng, properties, self.lexicon)

    def sums(self, effort: str) -> tuple[Turn, str]:
        """An arithmetic question whose answer goes under the schema's one number."""
        rng = self.rng
        kind, a, b = arithmetic.draw(rng, self.evaluation)
        key = rng.choice(("answer", "answer", "result", "value", "sum", "total", "number"))
        wanted: dict[str, Any] = {key: arithmetic.value(kind, a, b)}
        kinds = {key: rng.choice(("integer", "number"))}
        free = rng.random() < 0.15
        if free:
            wanted = {"answer": arithmetic.value(kind, a, b)}
        before = arithmetic.thought(kind, a, b, effort)
        return answer(effort, arithmetic.question(rng, kind, a, b), wanted, before), FREE if free else self.schema(
            kinds
        )

    def listing(self, effort: str) -> tuple[Turn, str]:
        """A list of words under one key."""
        rng = self.rng
        items = [rng.choice(self.lexicon.plain) for _ in range(rng.randint(1, 5))]
        key = rng.choice(("items", "items", "list", "words", "things", "names"))
        said = items[0] if len(items) == 1 else ", ".join(items[:-1]) + " and " + items[-1]
        user = rng.choice(("Buy {}.", "I need {}.", "The list: {}.", "Put these in a list: {}.", "{}")).format(said)
        schema = schema_text(rng, {key: {"type": "array", "items": {"type": "string"}}}, self.lexicon)
        return answer(effort, user, {key: items}), schema

    def draw(self, effort: str) -> tuple[Turn, str]:
        task = self.rng.choices((self.fields, self.sums, self.listing), (65, 22, 13))[0]
        return task(effort)
