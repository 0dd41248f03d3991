"""Tool calls: functions as frameworks describe them, questions that need them, and results to report."""

from __future__ import annotations

import json
import random
from typing import Any

from training import arithmetic
from training.arithmetic import PEOPLE
from training.catalog import CATALOG, WORDS_IN_NAMES, Entry
from training.conversation import Argument, Call, Function, Turn
from training.lexicon import Lexicon
from training.words import COUNTRIES, FOODS, LANGUAGES

VERBS = ("get", "find", "lookup", "fetch", "check", "show", "read", "query")
ACTIONS = ("set", "create", "update", "delete", "open", "close", "start", "stop", "move", "save", "add", "get", "check",
           "find", "run", "make", "remove", "change")  # fmt: skip
CITIES = (
    "Paris", "London", "Berlin", "Madrid", "Rome", "Tokyo", "New York", "Oslo", "Vienna", "Lisbon", "Dublin", "Athens",
    "Prague", "Moscow", "Sydney", "Toronto", "Chicago", "Boston", "Mumbai", "Cairo", "Seoul", "Beijing", "Helsinki",
    "Stockholm", "Copenhagen", "Amsterdam", "Brussels", "Zurich", "Geneva", "Munich", "Hamburg", "Milan", "Barcelona",
    "San Francisco", "Los Angeles", "Seattle", "Miami", "Dallas", "Houston", "Denver", "Delhi", "Singapore", "Bangkok",
    "Istanbul", "Warsaw", "Budapest", "Melbourne", "Montreal", "Vancouver", "Mexico City", "Lima", "Nairobi", "Tromso",
)  # fmt: skip
PARAMETERS = (
    "name", "query", "id", "key", "item", "value", "title", "user", "city", "text", "location", "count", "date", "time",
    "a", "b", "x", "y", "n", "amount", "limit", "number", "color", "size", "type", "level", "message", "country",
    "category", "format", "mode", "path", "start", "end", "target", "source", "group", "code", "topic", "year",
)  # fmt: skip
NUMERIC = ("id", "count", "a", "b", "x", "y", "n", "amount", "limit", "number", "size", "level", "year", "value")
ASKS = (
    "What is the {n} {p} {v}?", "What's the {n} {p} {v}?", "Tell me the {n} {p} {v}.", "Find the {n} {p} {v}.",
    "I need the {n} {p} {v}.", "what is the {n} {p} {v}", "Can you get the {n} {p} {v}?", "Look up the {n} {p} {v}.",
    "Get the {n} {p} {v}", "Please check the {n} {p} {v}.", "Show me the {n} {p} {v}",
)  # fmt: skip
ORDERS = (
    "Call {t} with {pairs}.", "Use {t} with {pairs}.", "Please call {t} with {pairs}.", "Run {t} with {pairs}",
    "Use the tool {t} with {pairs}.", "Call the function {t} with {pairs}.",
)  # fmt: skip
PREAMBLE_WISHES = (
    "Before calling a tool, say what you will do.",
    "Tell the user which tool you call before you call it.",
    "Announce every tool call.",
    "Always write a short preamble before a tool call.",
)
FOLLOW_UPS = ("And {0}?", "What about {0}?", "How about {0}?", "and {0}?", "what about {0}", "And for {0}?",
              "And what about {0}?", "The same for {0}, please.", "Now {0}.")  # fmt: skip
ELSEWHERE = ("And in {0}?", "And in {0}?", "and in {0}", "And in {0} now?", "In {0}?", "Now in {0}.")
CALCULATOR = "Evaluate an arithmetic expression, for example (3 + 4) * 2.5."  # the runtime's own tool
SKIES = ("sunny", "cloudy", "rainy", "clear", "windy", "snow", "light rain", "warm and dry", "fog", "storm")
DONE = ("done", "ok", "OK", "success", "sent", "booked", "saved", "true", "ready", "confirmed", "on", "off", "open")
ERRORS = ("not found", "timeout", "no connection", "invalid input", "access denied", "try again later", "unknown name")
SIMPLE = {"degrees": "temperature", "money": "price", "number": "value", "time": "time", "date": "date",
          "city": "capital", "done": "status", "text": "text", "words": "translation"}  # fmt: skip


def spoken(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def told(key: str, value: Any) -> str:
    """A field of a result in words; keys that say nothing are left out."""
    return spoken(value) if key in ("result", "report", "answer", "text") else f"{key} {spoken(value)}"


KINDS = ("everyday", "named after a noun", "called by name", "sums")


class Toolbox:
    """A set of functions, one of which (`asked`) the turn will call."""

    def __init__(self, rng: random.Random, lexicon: Lexicon, evaluation: bool) -> None:
        self.rng, self.lexicon, self.evaluation = rng, lexicon, evaluation
        self.nouns = lexicon.new_nouns if evaluation else lexicon.nouns
        self.proper = lexicon.new_proper if evaluation else lexicon.proper
        self.chosen: tuple[Entry, Function] | None = None  # what `everyday` drew

    # -- pieces -----------------------------------------------------------------------------------------------

    def noun(self) -> str:
        return self.rng.choice(self.nouns)

    def subject(self) -> str:
        """What a function may be about that is none of the catalog's."""
        while (noun := self.noun()) in WORDS_IN_NAMES:
            pass
        return noun

    def person(self) -> str:
        return self.rng.choice(self.proper if self.evaluation or self.rng.random() < 0.7 else PEOPLE)

    def words(self, most: int = 4) -> str:
        return " ".join(self.rng.choices(self.lexicon.plain, k=self.rng.randint(1, most)))

    def entity(self) -> str:
        rng = self.rng
        kind = rng.randrange(4)
        return (rng.choice(CITIES), self.person(), rng.choice(self.lexicon.plain), self.noun())[kind]

    def fill(self, kind: str) -> Any:
        rng = self.rng
        if kind == "city":
            return self.person() if rng.random() < 0.04 else rng.choice(CITIES)  # places that it has never seen
        if kind == "number":
            return rng.choice((rng.randint(1, 99), rng.randint(100, 999), rng.randint(1000, 9999)))
        if kind == "small":
            return rng.randint(1, 60)
        if kind == "clock":
            hour = rng.randint(0, 23)
            return rng.choice((f"{hour}:{rng.randrange(0, 60, 5):02}", f"{hour:02}:00", str(rng.randint(1, 12))))
        pool = {"language": LANGUAGES, "food": FOODS, "country": COUNTRIES,
                "currency": ("euros", "dollars", "pounds", "yen", "francs", "USD", "EUR", "GBP")}  # fmt: skip
        if kind in pool:
            return rng.choice(pool[kind])
        return {"name": self.person, "words": self.words, "noun": self.noun, "thing": self.noun}[kind]()

    def schema(self, name: str, kind: str, style: int, **more: Any) -> dict[str, Any]:
        """A property's schema: bare, described, titled (pydantic's way) or both."""
        schema: dict[str, Any] = {"type": kind, **more}
        plain = name.replace("_", " ")
        if style in (2, 3):
            schema = {"title": plain.title(), **schema}
        if style in (1, 3) or (style == 0 and self.rng.random() < 0.1):
            text = (f"The {plain}.", f"The {plain}", f"{plain.capitalize()} to use", f"The {plain} to look up")
            schema["description"] = self.rng.choice(text)
        return schema

    def described(self, text: str, arguments: tuple[Argument, ...]) -> str:
        """Some frameworks pass the whole docstring."""
        if arguments and text and self.rng.random() < 0.1:
            lines = "\n".join(f"    {a.name}: The {a.name.replace('_', ' ')}." for a in arguments)
            return f"{text.rstrip('.')}.\n\nArgs:\n{lines}"
        return "" if self.rng.random() < 0.12 else text

    def from_entry(self, entry: Entry) -> Function:
        rng = self.rng
        style = rng.choices((0, 1, 2, 3), (55, 20, 17, 8))[0]
        arguments: list[Argument] = []
        for slot in entry.slots:
            name = rng.choice([n for n in slot.names if n not in [a.name for a in arguments]])
            kind = "string"
            if slot.kind in ("number", "small"):
                kind = rng.choice(("integer", "integer", "number"))
            arguments.append(Argument(name, self.schema(name, kind, style), rng.random() > 0.04))
        if rng.random() < 0.2:
            optional = self.optional(entry, style)
            if optional.name not in [a.name for a in arguments]:
                arguments.append(optional)
        given = tuple(arguments)
        return Function(rng.choice(entry.names), self.described(rng.choice(entry.descriptions), given), given,
                        rng.random() < 0.6)  # fmt: skip

    def optional(self, entry: Entry, style: int) -> Argument:
        """A parameter that is left out unless the user gives it."""
        rng = self.rng
        if entry.group == "weather":
            more: dict[str, Any] = {"enum": ["celsius", "fahrenheit"]}
            if rng.random() < 0.3:
                more["default"] = "celsius"
            name = rng.choice(("unit", "unit", "units", "format"))
            return Argument(name, self.schema("unit", "string", style, **more), False)
        name, kind = rng.choice((("limit", "integer"), ("count", "integer"), ("verbose", "boolean"),
                                 ("format", "string"), ("language", "string"), ("date", "string"),
                                 ("mode", "string")))  # fmt: skip
        more = {"default": 10 if kind == "integer" else False} if kind != "string" and rng.random() < 0.4 else {}
        return Argument(name, self.schema(name, kind, style, **more), False)

    def about(self, noun: str, argument: str, kind: str = "string") -> Function:
        """A function about `noun`, named in one of several ways."""
        rng = self.rng
        verb = rng.choice(VERBS)
        name = rng.choice((f"get_{noun}", f"{verb}_{noun}", f"{verb}_{noun}", f"get_current_{noun}", f"{noun}_lookup"))
        text = rng.choice((f"Get the {noun}", f"Gets the {noun}.", f"Returns the {noun} of something", f"The {noun}",
                           f"Look up the {noun} by {argument}", f"Find the {noun}."))  # fmt: skip
        arguments = (Argument(argument, self.schema(argument, kind, rng.choices((0, 1, 2, 3), (60, 20, 15, 5))[0])),)
        return Function(name, self.described(text, arguments), arguments)

    def with_others(self, asked: Function, group: str) -> tuple[Function, ...]:
        """`asked` among up to two others that are clearly about something else."""
        rng = self.rng
        functions, groups = [asked], {group, "switch"}
        for _ in range(rng.choices((0, 1, 2), (50, 32, 18))[0]):
            entry: Entry | None = None
            if rng.random() < 0.65:
                entry = rng.choice(CATALOG)
                other = self.from_entry(entry)
                clear = entry.group not in groups and group not in other.name
            else:
                noun = self.subject()
                other = self.about(noun, rng.choice(PARAMETERS))
                clear = noun not in asked.name and noun not in groups
            words = set(other.name.split("_")) - set(VERBS) - {"current", "book"}
            if clear and not words & set(asked.name.split("_")):
                functions.append(other)
                groups.add(entry.group if entry else "")
        names = [f.name for f in functions]
        functions = [f for i, f in enumerate(functions) if f.name not in names[:i]]
        rng.shuffle(functions)
        return tuple(functions)

    def result(self, kind: str, place: str = "") -> tuple[str, str]:
        """What a tool may answer, and how the final answer says it."""
        rng = self.rng
        degrees = rng.choice((rng.randint(-9, 40), rng.randint(0, 30)))
        sky = rng.choice(SKIES)
        leaf: int | float | str
        if kind == "weather":
            leaf = rng.choice((f"{degrees} C and {sky}", f"{sky}, {degrees}", f"{degrees} degrees and {sky}",
                               f"{sky}, {degrees} C", f"{degrees}\u00b0C", sky, f"{degrees} C", f"{degrees} C, {sky}",
                               f"{degrees} C and {sky} in {place}"))  # fmt: skip
        elif kind == "degrees":
            leaf = rng.choice((degrees, f"{degrees} C", f"{degrees} degrees", degrees))
        elif kind == "money":
            amount = rng.choice((rng.randint(1, 999), round(rng.uniform(1, 99), 2)))
            leaf = rng.choice((amount, amount, f"{amount} dollars", f"{amount} euros"))
        elif kind == "number":
            leaf = rng.choice((rng.randint(1, 99), rng.randint(100, 9999), rng.randint(1, 20)))
        elif kind == "time":
            leaf = f"{rng.randint(0, 23):02}:{rng.randint(0, 59):02}"
            if rng.random() < 0.2:  # what the runtime's own tool answers
                day = f"20{rng.randint(24, 35)}-{rng.randint(1, 12):02}-{rng.randint(1, 28):02}"
                leaf = f"{day}T{leaf}:{rng.randint(0, 59):02}+0{rng.randint(0, 9)}:00"
        elif kind == "date":
            leaf = f"20{rng.randint(20, 35)}-{rng.randint(1, 12):02}-{rng.randint(1, 28):02}"
        elif kind == "city":
            leaf = rng.choice(CITIES)
        elif kind == "done":
            leaf = rng.choice(DONE)
        else:
            leaf = rng.choice((self.words(5), self.words(2), f"{self.person()}, {rng.randint(1, 99)}"))
        if kind != "any" and rng.random() < 0.55:
            return str(leaf), str(leaf)
        fields: dict[str, Any] = {}
        if kind == "weather" and rng.random() < 0.5:
            pairs = [("temperature", degrees), ("condition", sky), ("city", place), ("humidity", rng.randint(10, 99))]
            fields = dict(rng.sample(pairs, rng.randint(1, 3)))
        elif kind == "any":
            for _ in range(rng.randint(1, 2)):
                fields[rng.choice(("result", "status", "value", self.noun()))] = rng.choice(
                    (rng.randint(0, 999), self.words(2), rng.choice(DONE), self.person(), rng.random() < 0.5)
                )
        else:
            keys = ("result", "result", "report", "answer", SIMPLE.get(kind, "text"), SIMPLE.get(kind, "text"))
            fields = {rng.choice(keys): leaf}
            if rng.random() < 0.15:
                fields = {"status": "ok", **fields}
        said = ", ".join(told(key, value) for key, value in fields.items())
        return json.dumps(fields, separators=(", ", ": ") if rng.random() < 0.75 else (",", ":")), said

    # -- what the model says ----------------------------------------------------------------------------------

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
        if self.rng.random() < 0.05:
            said = self.rng.choice(ERRORS)
            result = self.rng.choice((f"Error: {said}", json.dumps({"error": said}), f"error: {said}"))
            final = f"The tool {asked.name} failed: {said}."
        call = Call(asked.name, arguments, result, self.afterthought(effort, asked, said), "")
        return Turn(user, self.thought(effort, want, asked, arguments), final, call)

    # -- tasks ------------------------------------------------------------------------------------------------

    def everyday(self, effort: str) -> tuple[Turn, tuple[Function, ...]]:
        """One of the catalog's functions."""
        rng = self.rng
        entry = CATALOG[rng.choice((0, 0, 0, 0, 0, 0, 1, 2, 3))] if rng.random() < 0.35 else rng.choice(CATALOG)
        asked = self.from_entry(entry)
        self.chosen = entry, asked
        return self.use(entry, asked, effort, entry.asks), self.with_others(asked, entry.group)

    def again(self, effort: str) -> Turn | None:
        """Another question for the function that `everyday` drew; None where it drew none."""
        return self.use(*self.chosen, effort, self.chosen[0].asks) if self.chosen else None

    def follow_up(self, effort: str) -> Turn | None:
        """ "And in Paris?" after a question for the same function; None where nobody would ask like that."""
        if not self.chosen or [slot.kind for slot in self.chosen[0].slots] not in (
            ["city"], ["country"], ["name"], ["thing"], ["food"], ["noun"],
        ):  # fmt: skip
            return None
        in_a_city = self.chosen[0].slots[0].kind == "city"
        return self.use(*self.chosen, effort, FOLLOW_UPS + ELSEWHERE if in_a_city else FOLLOW_UPS)

    def use(self, entry: Entry, asked: Function, effort: str, asks: tuple[str, ...]) -> Turn:
        """One of `asks` with values for the slots of `entry`, which `asked` was made from."""
        rng = self.rng
        values = [self.fill(slot.kind) for slot in entry.slots]
        verb = asked.name.removesuffix("_file").replace("_", " ")
        shown = [str(value) for value in values]

        def say(text: str) -> str:
            return text.format(*shown, verb=verb.capitalize(), low=verb)

        user = say(rng.choice(asks))
        arguments = {argument.name: value for argument, value in zip(asked.arguments, values, strict=False)}
        optional = asked.arguments[len(values) :]
        if optional and "enum" in optional[0].schema and rng.random() < 0.4:
            unit = rng.choice(optional[0].schema["enum"])
            user = user.rstrip("?.") + f" in {unit}" + rng.choice(("?", ".", ""))
            arguments[optional[0].name] = unit
        result, said = self.result(entry.result, shown[0] if shown else "")
        return self.finish(
            effort, user, say(entry.wants), asked, arguments, (result, said, f"{say(entry.final)}: {said}.")
        )

    def about_noun(self, effort: str) -> tuple[Turn, tuple[Function, ...]]:
        """The user asks for the noun of something, and a function is named after the noun."""
        rng = self.rng
        noun, argument = self.subject(), rng.choice(PARAMETERS)
        kind, value = "string", self.entity()
        if argument in NUMERIC and rng.random() < 0.6:
            kind, value = rng.choice(("number", "integer")), str(rng.randint(0, 9999))
        asked = self.about(noun, argument, kind)
        p = rng.choice(("of", "of", "in", "for"))
        user = rng.choice(ASKS).format(n=noun, p=p, v=value)
        arguments: dict[str, Any] = {argument: value if kind == "string" else int(value)}
        result, said = self.result(rng.choice(("any", "number", "text", "done")))
        turn = self.finish(effort, user, f"the {noun} {p} {value}", asked, arguments,
                           (result, said, f"The {noun} {p} {value}: {said}."))  # fmt: skip
        return turn, self.with_others(asked, noun)

    def ordered(self, effort: str) -> tuple[Turn, tuple[Function, ...]]:
        """The user names the function and the values."""
        rng = self.rng
        name = f"{rng.choice(ACTIONS)}_{self.noun()}"
        style = rng.choices((0, 1, 2), (60, 20, 20))[0]
        arguments: dict[str, Any] = {}
        schema = []
        for each in rng.sample(PARAMETERS, rng.choices((0, 1, 2), (10, 55, 35))[0]):
            kind = rng.choice(("number", "integer")) if each in NUMERIC else "string"
            if kind == "string" and rng.random() < 0.08:
                kind = "boolean"
            value: Any = self.entity() if kind == "string" else rng.randint(0, 9999 if rng.random() < 0.3 else 99)
            arguments[each] = rng.random() < 0.5 if kind == "boolean" else value
            schema.append(Argument(each, self.schema(each, kind, style)))
        text = rng.choice(("", f"{name.replace('_', ' ').capitalize()}.", f"{name.replace('_', ' ').capitalize()}"))
        asked = Function(name, self.described(text, tuple(schema)), tuple(schema), rng.random() < 0.5)
        link = rng.choice((" = ", " ", " is ", "=", ": "))
        pairs = " and ".join(f"{key}{link}{spoken(value)}" for key, value in arguments.items())
        bare = rng.choice((f"Call {name}.", f"Use {name}", f"Run {name}."))
        user = rng.choice(ORDERS).format(t=name, pairs=pairs) if pairs else bare
        result, said = self.result(rng.choice(("any", "number", "text", "done", "done")))
        turn = self.finish(
            effort, user, f"me to call {name}", asked, arguments, (result, said, f"{name} says: {said}.")
        )
        return turn, self.with_others(asked, "")

    def sums(self, effort: str) -> tuple[Turn, tuple[Function, ...]]:
        """Arithmetic with a function for it: the function is used."""
        rng = self.rng
        kind, a, b = arithmetic.draw(rng, self.evaluation)
        own = {
            "add": ("add", "add", "sum", "plus"),
            "subtract": ("subtract", "subtract", "minus", "difference"),
            "multiply": ("multiply", "multiply", "times", "product"),
        }
        first, second = rng.choice((("a", "b"), ("x", "y"), ("first", "second"), ("left", "right"), ("a", "b")))
        name = rng.choice(own[kind])
        name = rng.choice((name, name, f"{name}_numbers"))
        number = rng.choice(("number", "integer"))
        style = rng.choices((0, 1, 2), (60, 20, 20))[0]
        text = rng.choice(("", "Adds." if kind == "add" else "Works it out.", f"{kind.capitalize()} two numbers",
                           f"{kind.capitalize()} two numbers."))  # fmt: skip
        pair = (
            Argument(first, self.schema(first, number, style)),
            Argument(second, self.schema(second, number, style)),
        )
        asked = Function(name, self.described(text, pair), pair)
        arguments: dict[str, Any] = {first: a, second: b}
        if rng.random() < 0.3:
            argument = rng.choice(("expression", "expression", "input", "formula"))
            name = rng.choice(("calculate", "calculator", "evaluate", "compute", "calc"))
            text = rng.choice(("", "Evaluates an expression", "A calculator.", "Calculate an expression", CALCULATOR))
            asked = Function(name, text, (Argument(argument, self.schema(argument, "string", style)),))
            arguments = {argument: f"{a} {arithmetic.SYMBOL[kind]} {b}"}
        value = arithmetic.value(kind, a, b)
        key = rng.choice(("result", "result", "sum", "value", "answer"))
        result, said = rng.choice(((str(value), str(value)), (json.dumps({key: value}), told(key, value))))
        want = f"{a} {arithmetic.SYMBOL[kind]} {b}"
        turn = self.finish(effort, arithmetic.question(rng, kind, a, b), want, asked, arguments,
                           (result, said, f"{arithmetic.equation(kind, a, b)}."))  # fmt: skip
        return turn, self.with_others(asked, "sums")

    def draw(self, effort: str, kind: str = "") -> tuple[Turn, tuple[Function, ...]]:
        """Of one of KINDS, or of any."""
        tasks = (self.everyday, self.about_noun, self.ordered, self.sums)
        return dict(zip(KINDS, tasks, strict=True))[kind or self.rng.choices(KINDS, (58, 18, 10, 14))[0]](effort)


def announced(turn: Turn) -> Turn:
    """The same turn with a preamble before its call."""
    if turn.call is None:
        return turn
    call = turn.call
    call = Call(call.name, call.arguments, call.result, call.thought, f"I will call {call.name}.")
    return Turn(turn.user, turn.thought, turn.final, call)
