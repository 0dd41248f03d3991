"""Answers in JSON that follow the schema of a `# Response Formats` section."""

from __future__ import annotations

import json
import random
from typing import Any

from mlx_gptoss.request import ResponseFormat
from training import arithmetic
from training.arithmetic import PEOPLE, THINGS
from training.conversation import Turn
from training.lexicon import Lexicon
from training.toolbox import CITIES, spoken
from training.words import ANIMALS, COLOURS, COUNTRIES, FOODS, JOBS, LANGUAGES

FREE = ResponseFormat("json_object")
EMPTY: dict[str, Any] = {"string": "unknown", "integer": 0, "number": 0, "boolean": False}
TEXT_KEYS = (
    "name", "city", "color", "country", "title", "job", "status", "animal", "food", "language", "item", "product",
    "author", "topic", "category", "type", "word", "colour", "user", "result", "answer", "location", "mood", "day",
    "brand", "size", "shape", "material", "team", "sport", "music", "drink", "fruit", "subject", "street", "owner",
)  # fmt: skip
NUMBER_KEYS = ("age", "price", "count", "year", "number", "quantity", "amount", "total", "score", "weight", "height",
               "temperature", "id", "level", "rating", "distance", "length", "width", "speed", "population", "rank",
               "floor", "value", "points")  # fmt: skip
FLAG_KEYS = ("active", "open", "valid", "available", "enabled", "ready", "public", "done", "correct", "online")
# What the user says, and the keys that it fills, in the order of the schema.
SCENES: tuple[tuple[tuple[str, ...], tuple[str, ...]], ...] = (
    (("name", "age"), ("{name} is {age} years old.", "{name} is {age} years old.", "{name} is {age}.",
                       "{name}, {age}",
                       "My name is {name} and I am {age} years old.", "I am {name}, {age} years old.",
                       "This is {name}, who is {age} years old.", "{name} turned {age} today.",
                       "{name} is {age} now.")),
    (("name", "city"), ("{name} lives in {city}.", "{name} is from {city}.", "My name is {name} and I live in {city}.",
                        "{name} moved to {city}.")),
    (("name", "age", "city"), ("{name} is {age} years old and lives in {city}.", "{name}, {age}, lives in {city}.",
                               "My name is {name}, I am {age} years old and I live in {city}.")),
    (("name", "job"), ("{name} is a {job}.", "{name} works as a {job}.", "My name is {name} and I am a {job}.")),
    (("name", "age", "job"), ("{name} is {age} years old and works as a {job}.", "{name} is a {age} year old {job}.")),
    (("name", "job", "city"), ("{name} is a {job} in {city}.", "{name} works as a {job} in {city}.")),
    (("name", "color"), ("{name} likes the color {color}.", "{name} likes {color}.", "{name} has a {color} car.")),
    (("name", "food"), ("{name} likes {food}.", "{name} eats {food}.", "The favourite food of {name} is {food}.")),
    (("name", "language"), ("{name} speaks {language}.", "{name} learns {language}.")),
    (("product", "price"), ("The {product} costs {price} dollars.", "The price of the {product} is {price}.",
                            "One {product} is {price} dollars.", "{product}: {price} dollars")),
    (("item", "price"), ("The {item} costs {price} dollars.", "The price of the {item} is {price}.")),
    (("item", "quantity"), ("I need {quantity} {item}.", "Buy {quantity} {item}.", "We have {quantity} {item}.")),
    (("item", "count"), ("I have {count} {item}.", "There are {count} {item} in the box.", "{count} {item}, please.")),
    (("city", "country"), ("{city} is in {country}.", "{city} is a city in {country}.")),
    (("city", "temperature"), ("It is {temperature} degrees in {city}.", "{city} has {temperature} degrees today.")),
    (("animal", "color"), ("The {animal} is {color}.", "I saw a {color} {animal}.", "A {color} {animal}")),
    (("animal", "name"), ("The {animal} is called {name}.", "My {animal} is called {name}.")),
    (("title", "author"), ("The book {title} was written by {author}.", "{title} is a book by {author}.")),
    (("title", "author", "year"), ("The book {title} was written by {author} in {year}.",)),
    (("name", "score"), ("{name} has {score} points.", "{name} won with a score of {score}.")),
    (("name",), ("My name is {name}.", "I am {name}.", "This is {name}.", "{name} is here.", "Her name is {name}.")),
    (("city",), ("I live in {city}.", "We fly to {city}.", "She is in {city} now.")),
    (("age",), ("I am {age} years old.", "She is {age} years old.")),
)  # fmt: skip
BEFORE = ("Answer in JSON: ", "Reply in JSON: ", "Extract the data: ", "Extract: ", "Give me JSON: ", "As JSON: ")
AFTER = (" Answer in JSON.", " Answer in JSON.", " Reply in JSON.", " Give me JSON.", " Respond in JSON.", " As JSON.")


def answer(effort: str, user: str, wanted: dict[str, Any], before: str = "") -> Turn:
    """`wanted` in the schema's order; `before` is reasoning that comes first (it may be an arithmetic solution)."""
    shown = ", ".join(wanted)
    thought = f"Answer in JSON with {shown}."
    if effort != "low":
        each = ". ".join(f"{key} is {spoken(value)}" for key, value in wanted.items())
        thought = f"The answer must be JSON with {shown}. {each}."
    if effort == "high":
        thought += " Check: every key is there, in order, and nothing else."
    return Turn(user, f"{before} {thought}".strip(), json.dumps(wanted))


KINDS = ("sentences", "keys by name", "sums", "lists")


class Structured:
    def __init__(self, rng: random.Random, lexicon: Lexicon, evaluation: bool) -> None:
        self.rng, self.lexicon, self.evaluation = rng, lexicon, evaluation
        self.nouns = lexicon.new_nouns if evaluation else lexicon.nouns
        self.proper = lexicon.new_proper if evaluation else lexicon.proper

    # -- pieces -----------------------------------------------------------------------------------------------

    def person(self) -> str:
        return self.rng.choice(self.proper if self.evaluation or self.rng.random() < 0.7 else PEOPLE)

    def value(self, key: str, kind: str) -> Any:
        """Something that fits the key: a city for "city", any word for a key that says nothing."""
        rng = self.rng
        if kind == "boolean":
            return rng.random() < 0.5
        if kind != "string":
            if key == "year":
                return rng.randint(1800, 2030)
            small = key in ("age", "temperature") or rng.random() < 0.6
            return rng.randint(1, 99) if small else rng.randint(100, 9999)
        pool = {"city": CITIES, "country": COUNTRIES, "color": COLOURS, "colour": COLOURS, "food": FOODS, "job": JOBS,
                "animal": ANIMALS, "language": LANGUAGES, "location": CITIES, "fruit": FOODS, "drink": FOODS,
                }  # fmt: skip
        if key in pool:
            return rng.choice(pool[key])
        if key in ("name", "author", "user", "owner"):
            return self.person()
        return rng.choice((rng.choice(self.lexicon.plain), rng.choice(self.nouns), rng.choice(CITIES)))

    def decorated(self, text: str) -> str:
        """The user may ask for JSON in words as well."""
        rng = self.rng
        which = rng.random()
        if which < 0.4:
            return text
        if which < 0.7:
            return text.rstrip(".") + "." + rng.choice(AFTER) if text[-1] != "?" else text + rng.choice(AFTER)
        first = text.split()[0]
        lowered = text[0].lower() + text[1:] if first in ("What", "How", "Add", "The", "My", "It") else text
        return rng.choice(BEFORE) + (lowered if rng.random() < 0.6 else text)

    def format(self, kinds: dict[str, str], properties: dict[str, Any] | None = None) -> ResponseFormat:
        """A schema as people and frameworks write it: by hand, or pydantic's with titles."""
        rng = self.rng
        titled = rng.random() < 0.4
        if properties is None:
            properties = {}
            for key, kind in kinds.items():
                properties[key] = {"type": kind}
                if titled:
                    properties[key] = {"title": key.replace("_", " ").title(), "type": kind}
                    if rng.random() < 0.3:
                        properties[key] = {"type": kind, "title": key.replace("_", " ").title()}
                if rng.random() < 0.1:
                    properties[key]["description"] = f"The {key}"
        body: dict[str, Any] = {"type": "object", "properties": properties, "required": list(properties)}
        name = rng.choice(("response", "response", "answer", "output", "result", "schema", "final_output"))
        description = ""
        if titled:
            name = rng.choice(("Person", "Answer", "Item", "Result", "Response", "User", "Book", "City", "Output"))
            body = {"properties": properties, "required": list(properties), "title": name, "type": "object"}
            if rng.random() < 0.3:
                body = {"description": f"A {name.lower()}.", **body}
            if rng.random() < 0.15:
                name, description = rng.choice(("response", name)), f"A {name.lower()}."
        if rng.random() < 0.5:
            body["additionalProperties"] = False
        if rng.random() < 0.08:
            body.pop("required")
        if rng.random() < 0.25:
            body = dict(sorted(body.items()))
        return ResponseFormat("json_schema", body, name, description)

    # -- tasks ------------------------------------------------------------------------------------------------

    def scene(self, effort: str) -> tuple[Turn, ResponseFormat]:
        """The user says it in a sentence; the schema's keys pick it apart."""
        rng = self.rng
        keys, phrases = rng.choice(SCENES[:1] * 5 + SCENES)
        kinds = {key: rng.choice(("integer", "integer", "number")) if key in NUMBER_KEYS else "string" for key in keys}
        wanted = {key: self.value(key, kind) for key, kind in kinds.items()}
        if keys[0] == "item" and keys[1] != "price":
            wanted["item"] = rng.choice(THINGS)
        if keys[0] == "title":
            wanted["title"] = " ".join(w.capitalize() for w in rng.choices(self.lexicon.plain, k=rng.randint(1, 2)))
        if keys[0] in ("item", "product") and keys[1] == "price":
            wanted[keys[0]] = rng.choice(self.nouns)
        user = rng.choice(phrases).format(**wanted)
        # Without a schema the sentence alone decides the keys: a price may be that of an item or of a product.
        if rng.random() < 0.12 and keys != ("item", "price"):
            return answer(effort, rng.choice((user.rstrip(".") + "." + rng.choice(AFTER), rng.choice(BEFORE) + user)),
                          wanted), FREE  # fmt: skip
        if rng.random() < 0.25:
            order = rng.sample(list(wanted), len(wanted))
            wanted, kinds = {key: wanted[key] for key in order}, {key: kinds[key] for key in order}
        if rng.random() < 0.06:
            key = rng.choice([k for k in (*TEXT_KEYS[:8], *NUMBER_KEYS[:8]) if k not in wanted and k != "status"])
            kinds[key] = "integer" if key in NUMBER_KEYS else "string"
            wanted[key] = EMPTY[kinds[key]]
        return answer(effort, self.decorated(user), wanted), self.format(kinds)

    def fields(self, effort: str) -> tuple[Turn, ResponseFormat]:
        """The user gives each key's value by the key's name."""
        rng = self.rng
        kinds: dict[str, str] = {}
        for _ in range(rng.choices((1, 2, 3), (34, 42, 24))[0]):
            kind = rng.choices(("string", "integer", "number", "boolean"), (58, 22, 12, 8))[0]
            key = rng.choice({"string": TEXT_KEYS, "boolean": FLAG_KEYS}.get(kind, NUMBER_KEYS))
            if kind == "string" and rng.random() < 0.25:
                key = rng.choice(self.nouns)
            kinds.setdefault(key, kind)
        wanted = {key: self.value(key, kind) for key, kind in kinds.items()}
        pairs = list(wanted.items())
        if rng.random() < 0.4:
            rng.shuffle(pairs)
        link = rng.choice((" is ", " is ", ": ", " = "))
        said = [f"{key}{link}{spoken(value)}" for key, value in pairs]
        if link == " is ":
            text = rng.choice((", the ", " and the ")).join(said)
            user = rng.choice((f"The {text}.", f"The {text}.", f"The {text}"))
        else:
            user = ", ".join(said)
            user = rng.choice((user, f"{user}.", f"Fill it in: {user}.", f"Make JSON: {user}", f"Here it is: {user}"))
        if rng.random() < 0.1:
            return answer(effort, user.rstrip(".") + "." + rng.choice(AFTER), dict(pairs)), FREE
        if rng.random() < 0.06:
            wanted = {key: EMPTY[kind] for key, kind in kinds.items()}
            user = rng.choice(("Tell me about {}.", "Describe {}.", "Give me the JSON for {}.", "Make one up about {}.",
                               "Who is {}?", "What is {}?")).format(rng.choice(self.lexicon.plain))  # fmt: skip
        return answer(effort, self.decorated(user), wanted), self.format(kinds)

    def sums(self, effort: str) -> tuple[Turn, ResponseFormat]:
        """An arithmetic question whose answer goes under the schema's one number."""
        rng = self.rng
        kind, a, b = arithmetic.draw(rng, self.evaluation)
        key = rng.choice(("answer", "answer", "answer", "result", "value", "sum", "total", "number"))
        before, user = arithmetic.thought(kind, a, b, effort), arithmetic.question(rng, kind, a, b)
        if rng.random() < 0.25:
            user = rng.choice((user + rng.choice(AFTER), rng.choice(BEFORE) + user[0].lower() + user[1:]))
            return answer(effort, user, {"answer": arithmetic.value(kind, a, b)}, before), FREE
        wanted = {key: arithmetic.value(kind, a, b)}
        kinds = {key: rng.choice(("integer", "integer", "number"))}
        return answer(effort, self.decorated(user), wanted, before), self.format(kinds)

    def listing(self, effort: str) -> tuple[Turn, ResponseFormat]:
        """A list of words under one key."""
        rng = self.rng
        items = rng.choices(rng.choice((FOODS, ANIMALS, COLOURS, self.lexicon.plain, CITIES)), k=rng.randint(1, 4))
        items = list(dict.fromkeys(items))
        key = rng.choice(("items", "items", "list", "words", "things", "names"))
        said = items[0] if len(items) == 1 else ", ".join(items[:-1]) + " and " + items[-1]
        user = rng.choice(("Buy {}.", "I need {}.", "The list: {}.", "Put these in a list: {}.", "{}")).format(said)
        form = self.format({}, {key: {"type": "array", "items": {"type": "string"}}})
        return answer(effort, self.decorated(user), {key: items}), form

    def draw(self, effort: str, kind: str = "") -> tuple[Turn, ResponseFormat]:
        """Of one of KINDS, or of any."""
        tasks = (self.scene, self.fields, self.sums, self.listing)
        return dict(zip(KINDS, tasks, strict=True))[kind or self.rng.choices(KINDS, (42, 28, 22, 8))[0]](effort)
