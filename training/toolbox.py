"""Tool calls: functions with made-up names and schemas, questions that need them, and results to report."""

from __future__ import annotations

import json
import random
from typing import Any

from training import arithmetic
from training.arithmetic import PEOPLE
from training.conversation import Argument, Call, Function, Turn
from training.lexicon import Lexicon, held_out

VERBS = (
    "get", "find", "lookup", "search", "fetch", "read", "check", "query", "show", "list", "load", "request", "select",
    "ask", "retrieve", "describe", "calculate", "compute", "measure", "track",
)  # fmt: skip
ACTIONS = (
    "set", "send", "add", "create", "update", "delete", "open", "close", "start", "stop", "move", "write", "save",
    "book", "order", "play", "call", "print", "convert", "make", "run", "turn", "remove", "change", "post", "store",
    "get", "find", "search", "lookup", "check", "buy", "sell", "mark", "assign", "copy",
)  # fmt: skip
CITIES = (
    "Paris", "London", "Berlin", "Madrid", "Rome", "Tokyo", "New York", "Oslo", "Vienna", "Lisbon", "Dublin", "Athens",
    "Prague", "Moscow", "Sydney", "Toronto", "Chicago", "Boston", "Mumbai", "Cairo", "Seoul", "Beijing", "Helsinki",
    "Stockholm", "Copenhagen", "Amsterdam", "Brussels", "Zurich", "Geneva", "Munich", "Hamburg", "Milan", "Barcelona",
    "San Francisco", "Los Angeles", "Seattle", "Miami", "Dallas", "Houston", "Denver", "Delhi", "Singapore", "Bangkok",
    "Istanbul", "Warsaw", "Budapest", "Melbourne", "Montreal", "Vancouver", "Mexico City", "Lima", "Nairobi", "Tromso",
)  # fmt: skip
PLACES = ("city", "location", "place", "town", "city_name", "where", "q", "query", "name")
NAMES = (
    "name",
    "query",
    "id",
    "key",
    "q",
    "item",
    "subject",
    "value",
    "title",
    "user",
    "city",
    "text",
    "target",
    "word",
)
DESCRIPTIONS = (
    "Gets the {n}.", "Get the {n} of something.", "Returns the {n}", "Find the {n} by {a}.", "The current {n}", "",
    "Look up the {n} for a given {a}", "Get the {n}", "Tells the {n} of the {a}.", "Get current {n} in a given {a}",
)  # fmt: skip
ASKS = (
    "What is the {n} {p} {v}?", "What's the {n} {p} {v}?", "Tell me the {n} {p} {v}.", "Find the {n} {p} {v}.",
    "I need the {n} {p} {v}.", "what is the {n} {p} {v}", "Can you get the {n} {p} {v}?", "Look up the {n} {p} {v}.",
    "Get the {n} {p} {v}", "How is the {n} {p} {v}?", "What is the {n} {p} {v} today?", "Please check the {n} {p} {v}.",
    "Show me the {n} {p} {v}", "What is the {n} {p} {v} right now?",
)  # fmt: skip
ORDERS = (
    "Call {t} with {pairs}.", "Use {t} with {pairs}.", "Please call {t} with {pairs}.", "Run {t} with {pairs}",
    "Call {t} where {pairs}.", "Use the tool {t} with {pairs}.", "Call the function {t} with {pairs}.", "{t} {pairs}",
)  # fmt: skip
PREAMBLE_WISHES = (
    "Before calling a tool, say what you will do.",
    "Tell the user which tool you call before you call it.",
    "Announce every tool call.",
    "Always write a short preamble before a tool call.",
)


class Toolbox:
    """A set of functions, one of which (`asked`) the turn will call."""

    def __init__(self, rng: random.Random, lexicon: Lexicon, evaluation: bool) -> None:
        self.rng, self.lexicon, self.evaluation = rng, lexicon, evaluation
        self.nouns = lexicon.new_nouns if evaluation else lexicon.nouns
        self.proper = lexicon.new_proper if evaluation else lexicon.proper

    # -- pieces -----------------------------------------------------------------------------------------------

    def noun(self) -> str:
        return self.rng.choice(self.nouns)

    def entity(self) -> str:
        rng = self.rng
        return rng.choice(
            (
                rng.choice(CITIES),
                rng.choice(CITIES),
                rng.choice(PEOPLE),
                rng.choice(self.proper),
                rng.choice(self.proper),
                f"{rng.choice(self.proper)} {rng.choice(self.proper)}",
                rng.choice(self.lexicon.plain),
                f"{rng.choice(self.lexicon.plain)} {rng.choice(self.lexicon.plain)}",
            )
        )

    def argument_name(self) -> str:
        rng = self.rng
        name = rng.choice((rng.choice(NAMES), self.noun(), self.noun(), f"{self.noun()}_{self.noun()}"))
        return rng.choice(("a", "b", "x", "n")) if rng.random() < 0.05 else name

    def result(self) -> tuple[str, str]:
        """What a tool may answer, and how the final answer says it."""
        rng = self.rng

        def leaf() -> Any:
            return rng.choice(
                (
                    rng.randint(0, 999),
                    rng.randint(0, 40),
                    -rng.randint(1, 30),
                    rng.randint(1000, 99999),
                    round(rng.uniform(0, 99), 1),
                    rng.random() < 0.5,
                    rng.choice(self.lexicon.plain),
                    rng.choice(self.proper),
                    f"{rng.choice(self.lexicon.plain)} {rng.choice(self.lexicon.plain)}",
                    rng.choice(("sunny", "cloudy", "rainy", "ok", "done", "clear", "true", "red", "open", "not found")),
                )
            )

        if rng.random() < 0.35:
            text = str(leaf()) if rng.random() < 0.6 else f"{leaf()}, {leaf()}"
            text = text.replace("True", "true").replace("False", "false")
            return text, text
        keys = []
        while len(keys) < rng.randint(1, 3):
            key = rng.choice(
                (self.noun(), self.noun(), f"{self.noun()}_{self.noun()}", "temperature", "result", "status")
            )
            keys += [key] if key not in keys else []
        fields = {key: leaf() for key in keys}
        said = ", ".join(
            f"{key} {value if isinstance(value, str) else json.dumps(value)}" for key, value in fields.items()
        )
        separators = (", ", ": ") if rng.random() < 0.75 else (",", ":")
        return json.dumps(fields, separators=separators), said

    def function(self, noun: str, argument: str, kind: str = "string", extra: bool = True) -> Function:
        """A function about `noun`, named in one of several ways."""
        rng = self.rng
        verb = rng.choice(VERBS)
        name = rng.choice(
            (f"get_{noun}", f"{verb}_{noun}", f"{verb}_{noun}", f"get_current_{noun}", noun, f"{noun}_lookup")
        )
        text = rng.choice(DESCRIPTIONS).format(n=noun, a=argument.replace("_", " "))
        first = Argument(argument, kind, rng.choice(("", "", f"The {argument}", f"{argument.capitalize()} to look up")))
        arguments = [first]
        if extra and rng.random() < 0.25:
            choice = rng.choice(('"celsius" | "fahrenheit"', "string", "number", "boolean"))
            arguments.append(Argument(rng.choice(("unit", "units", "format", "limit", self.noun())), choice, "", False))
        if len(arguments) == 2 and arguments[0].name == arguments[1].name:
            arguments.pop()
        return Function(name, text, tuple(arguments))

    def with_others(self, asked: Function, about: str) -> tuple[Function, ...]:
        functions = [asked]
        for _ in range(self.rng.choices((0, 1, 2, 3), (45, 30, 15, 10))[0]):
            noun = self.noun()
            other = self.function(noun, self.argument_name())
            if noun != about and other.name not in [f.name for f in functions]:
                functions.append(other)
        self.rng.shuffle(functions)
        return tuple(functions)

    def thought(self, effort: str, want: str, asked: Function, arguments: dict[str, Any]) -> str:
        """`want` is what the user asks for, as a noun phrase."""
        if effort == "low":
            return f"Call {asked.name}."
        pairs = " and ".join(f"{key} = {value}" for key, value in arguments.items()) or "nothing"
        text = f"The user wants {want}. The tool {asked.name} fits."
        if effort == "medium":
            return f"{text} Call it with {pairs}."
        names = " and ".join(arguments) or "nothing"
        return f"{text} It takes {names}. Call it with {pairs}, then tell the user what it says."

    @staticmethod
    def afterthought(effort: str, asked: Function, said: str) -> str:
        if effort == "low":
            return ""
        text = f"The tool {asked.name} answered."
        return text if effort == "medium" else f"{text} It says: {said}. That is what the user wants, so tell it."

    def finish(
        self,
        effort: str,
        user: str,
        want: str,
        asked: Function,
        arguments: dict[str, Any],
        answer: tuple[str, str, str],
    ) -> Turn:
        """`answer`: the tool's result, how it is said, and the final text."""
        result, said, final = answer
        call = Call(asked.name, arguments, result, self.afterthought(effort, asked, said), "")
        return Turn(user, self.thought(effort, want, asked, arguments), final, call)

    # -- tasks ------------------------------------------------------------------------------------------------

    def about_noun(self, effort: str) -> tuple[Turn, tuple[Function, ...]]:
        """The user asks for the noun of something, and a function is named after the noun."""
        rng = self.rng
        noun, argument, value = self.noun(), self.argument_name(), self.entity()
        if rng.random() < 0.35:
            noun, argument, value = (
                "weather",
                rng.choice(PLACES),
                rng.choice((rng.choice(CITIES), rng.choice(self.proper))),
            )
        kind = "string"
        number = noun != "weather" and rng.random() < 0.12
        if number:
            kind, value = rng.choice(("number", "integer")), str(rng.randint(0, 9999))
        asked = self.function(noun, argument, kind)
        p = rng.choice(("of", "of", "in", "for")) if noun != "weather" else rng.choice(("in", "in", "in", "for"))
        user = rng.choice(ASKS).format(n=noun, p=p, v=value)
        if noun == "weather" and rng.random() < 0.15:
            user = f"Weather in {value}?" if rng.random() < 0.5 else f"weather in {value}"
            p = "in"
        arguments: dict[str, Any] = {argument: int(value) if number else value}
        extra = asked.arguments[1:]
        if extra and "celsius" in extra[0].type and rng.random() < 0.4:
            unit = rng.choice(("celsius", "fahrenheit"))
            user = user.rstrip("?.") + f" in {unit}" + rng.choice(("?", ".", ""))
            arguments[extra[0].name] = unit
        result, said = self.result()
        final = f"The {noun} {p} {value}: {said}."
        return self.finish(
            effort, user, f"the {noun} {p} {value}", asked, arguments, (result, said, final)
        ), self.with_others(asked, noun)

    def ordered(self, effort: str) -> tuple[Turn, tuple[Function, ...]]:
        """The user names the function and the values."""
        rng = self.rng
        action = rng.choice(ACTIONS)
        name = rng.choice(
            (f"{action}_{self.noun()}", f"{action}_{self.noun()}", f"{action}_{self.noun()}_{self.noun()}", self.noun())
        )
        names: list[str] = []
        for _ in range(rng.choices((0, 1, 2), (8, 50, 42))[0]):
            new = self.argument_name()
            names += [new] if new not in names else []
        arguments: dict[str, Any] = {}
        schema = []
        for each in names:
            kind = rng.choices(("string", "number", "integer", "boolean"), (60, 20, 14, 6))[0]
            value: Any = self.entity() if kind == "string" else rng.randint(0, 9999 if rng.random() < 0.3 else 99)
            value = rng.random() < 0.5 if kind == "boolean" else value
            arguments[each] = value
            schema.append(Argument(each, kind, rng.choice(("", "", f"The {each}"))))
        asked = Function(
            name,
            rng.choice(("", f"{name.replace('_', ' ').capitalize()}.", "Does it.")),
            tuple(schema),
            rng.random() < 0.5,
        )
        link = rng.choice((" = ", " ", " is ", "="))
        pairs = " and ".join(
            f"{key}{link}{value if isinstance(value, str) else json.dumps(value)}" for key, value in arguments.items()
        )
        user = (
            rng.choice(ORDERS).format(t=name, pairs=pairs)
            if pairs
            else rng.choice((f"Call {name}.", f"Use {name}", f"Run {name}."))
        )
        result, said = self.result()
        return (
            self.finish(effort, user, f"me to call {name}", asked, arguments, (result, said, f"{name} says: {said}.")),
            self.with_others(asked, ""),
        )

    def sums(self, effort: str) -> tuple[Turn, tuple[Function, ...]]:
        """Arithmetic with a function for it: the function is used."""
        rng = self.rng
        kind, a, b = arithmetic.draw(rng, self.evaluation)
        own = {
            "add": ("add", "sum", "plus"),
            "subtract": ("subtract", "minus", "difference"),
            "multiply": ("multiply", "times", "product"),
        }
        first, second = rng.choice((("a", "b"), ("x", "y"), ("first", "second"), ("left", "right"), ("a", "b")))
        name = rng.choice(own[kind])
        name = rng.choice((name, name, f"{name}_numbers"))
        number = rng.choice(("number", "integer"))
        asked = Function(
            name,
            rng.choice(("", "Adds." if kind == "add" else "Works it out.", f"{kind.capitalize()} two numbers")),
            (Argument(first, number), Argument(second, number)),
        )
        arguments: dict[str, Any] = {first: a, second: b}
        if rng.random() < 0.3:
            argument = rng.choice(("expression", "expression", "input", "formula"))
            name = rng.choice(("calculate", "calculator", "evaluate", "compute", "calc"))
            asked = Function(
                name, rng.choice(("", "Evaluates an expression", "A calculator.")), (Argument(argument, "string"),)
            )
            arguments = {argument: f"{a} {arithmetic.SYMBOL[kind]} {b}"}
        value = arithmetic.value(kind, a, b)
        result = rng.choice(
            (str(value), str(value), json.dumps({rng.choice(("result", "sum", "value", "answer", self.noun())): value}))
        )
        said = str(value)
        user = arithmetic.question(rng, kind, a, b)
        want = f"{a} {arithmetic.SYMBOL[kind]} {b}"
        final = f"{arithmetic.equation(kind, a, b)}."
        return self.finish(effort, user, want, asked, arguments, (result, said, final)), self.with_others(asked, "")

    def everyday(self, effort: str) -> tuple[Turn, tuple[Function, ...]]:
        """Search, look up a person, tell the time, send a message, translate."""
        rng = self.rng
        words = " ".join(rng.choice(self.lexicon.plain) for _ in range(rng.randint(1, 4)))
        person, city = rng.choice((rng.choice(PEOPLE), rng.choice(self.proper))), rng.choice(CITIES)
        result, said = self.result()
        which = rng.randrange(5)
        if which == 0:
            asked = Function(
                rng.choice(("search", "web_search", "search_web", "find", "query")),
                rng.choice(("Search the web", "", "Searches.")),
                (Argument(rng.choice(("query", "q", "text", "words")), "string"),),
            )
            user = rng.choice(
                ("Search for {}", "Search for {}.", "search {}", "Please search for {}.", "Find {}")
            ).format(words)
            values, want, final = [words], f"a search for {words}", f"Found for {words}: {said}."
        elif which == 1:
            asked = Function(
                rng.choice(("lookup", "lookup_user", "find_user", "find_person", "lookup_name", "get_user")),
                rng.choice(("Look up a person", "")),
                (Argument(rng.choice(("name", "user", "person", "who")), "string"),),
            )
            user = rng.choice(
                ("Look up {}", "Look up {}.", "Who is {}?", "Find {}.", "look up {}", "Tell me about {}.")
            ).format(person)
            values, want, final = [person], f"to know about {person}", f"About {person}: {said}."
        elif which == 2:
            asked = Function(
                rng.choice(("get_time", "current_time", "get_current_time", "time", "now", "clock")),
                rng.choice(("Tells the time", "", "The current time.")),
                (),
                rng.random() < 0.5,
            )
            time = f"{rng.randint(0, 23):02}:{rng.randint(0, 59):02}"
            user, values, want = "What time is it", [], "the time"
            if rng.random() < 0.6:
                asked = Function(asked.name, asked.description, (Argument(rng.choice(PLACES), "string"),))
                user, values, want = f"What time is it in {city}", [city], f"the time in {city}"
            user = rng.choice((f"{user}?", f"{user} now?", user, user.lower()))
            result = said = time
            if rng.random() < 0.4:
                result = json.dumps({"time": time})
            final = f"It is {time}{' in ' + city if values else ''}."
        elif which == 3:
            asked = Function(
                rng.choice(("send_message", "send_email", "message", "send", "send_mail")),
                rng.choice(("Send a message", "")),
                (
                    Argument(rng.choice(("to", "recipient", "name")), "string"),
                    Argument(rng.choice(("text", "message", "body", "content")), "string"),
                ),
            )
            user = rng.choice(
                (
                    "Send {p} the message {w}",
                    "Send a message to {p}: {w}",
                    "Tell {p} that {w}",
                    "Write to {p}: {w}",
                    "Email {p}: {w}",
                )
            ).format(p=person, w=words)
            values, want, final = [person, words], f"to write to {person}", f"Sent to {person}: {said}."
        else:
            language = rng.choice(("French", "German", "Spanish", "Italian", "Dutch", "Polish", "Japanese"))
            asked = Function(
                rng.choice(("translate", "translate_text", "translation")),
                rng.choice(("Translate text", "")),
                (
                    Argument(rng.choice(("text", "words", "input")), "string"),
                    Argument(rng.choice(("language", "to", "target", "target_language")), "string"),
                ),
            )
            user = rng.choice(("Translate {w} to {l}.", "Translate {w} into {l}", "How do you say {w} in {l}?")).format(
                w=words, l=language
            )
            values, want, final = [words, language], f"{words} in {language}", f"In {language}: {said}."
        arguments = {argument.name: value for argument, value in zip(asked.arguments, values, strict=True)}
        return self.finish(effort, user, want, asked, arguments, (result, said, final)), self.with_others(asked, "")

    def draw(self, effort: str) -> tuple[Turn, tuple[Function, ...]]:
        task = self.rng.choices((self.about_noun, self.ordered, self.sums, self.everyday), (42, 22, 16, 20))[0]
        turn, functions = task(effort)
        if turn.call and held_out(turn.call.name) == 0 and not self.evaluation:
            return self.draw(effort)
        return turn, functions


def announced(turn: Turn) -> Turn:
    """The same turn with a preamble before its call."""
    if turn.call is None:
        return turn
    call = turn.call
    call = Call(call.name, call.arguments, call.result, call.thought, f"I will call {call.name}.")
    return Turn(turn.user, turn.thought, turn.final, call)
