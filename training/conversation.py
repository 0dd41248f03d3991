"""Renders conversations as Harmony token ids, exactly as the runtime does (a test compares the tokens)."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

from mlx_gptoss.harmony.developer import developer_text
from mlx_gptoss.messages import Tool
from mlx_gptoss.request import ResponseFormat
from training.lexicon import CALL, CHANNEL, CONSTRAIN, END, MESSAGE, RETURN, START, Lexicon

TEXT = ResponseFormat()
EFFORTS = ("low", "medium", "high")
CHANNELS_LINE = "# Valid channels: analysis, commentary, final. Channel must be included for every message."
ROUTING_LINE = "Calls to these tools must go to the commentary channel: 'functions'."


@dataclass(frozen=True, slots=True)
class Argument:
    """One property of a function's parameters: `schema` is its JSON schema."""

    name: str
    schema: dict[str, Any]
    required: bool = True


@dataclass(frozen=True, slots=True)
class Function:
    name: str
    description: str
    arguments: tuple[Argument, ...]
    empty_object: bool = False  # no arguments, written as an object without properties

    def tool(self) -> Tool:
        if not self.arguments and not self.empty_object:
            return Tool(self.name, self.description, None)
        properties = {argument.name: argument.schema for argument in self.arguments}
        required = [argument.name for argument in self.arguments if argument.required]
        return Tool(self.name, self.description, {"type": "object", "properties": properties, "required": required})


@dataclass(frozen=True, slots=True)
class Call:
    """A tool call and what came back. `thought` is the reasoning after the result ("" for none)."""

    name: str
    arguments: dict[str, Any]
    result: str
    thought: str = ""
    preamble: str = ""


@dataclass(frozen=True, slots=True)
class Turn:
    """One user message and everything the assistant does about it."""

    user: str
    thought: str
    final: str
    call: Call | None = None


@dataclass(frozen=True, slots=True)
class Setting:
    """What comes before the first user message."""

    date: str
    effort: str
    instructions: str = ""
    functions: tuple[Function, ...] = ()
    response_format: ResponseFormat = TEXT


@dataclass(frozen=True, slots=True)
class Example:
    """`prompt` ends with `<|start|>assistant`; `answer` is what the model has to write, stop token included.

    `taught`: spans of the prompt (earlier answers) that are trained on as well.
    """

    task: str
    effort: str
    prompt: tuple[int, ...]
    answer: tuple[int, ...]
    marks: dict[str, str] = field(default_factory=dict)
    taught: tuple[tuple[int, int], ...] = ()


def system_text(setting: Setting) -> str:
    lines = [
        "You are ChatGPT, a large language model trained by OpenAI.",
        "Knowledge cutoff: 2024-06",
        f"Current date: {setting.date}",
        "",
        f"Reasoning: {setting.effort}",
        "",
        CHANNELS_LINE,
    ]
    if setting.functions:
        lines.append(ROUTING_LINE)
    return "\n".join(lines)


class Renderer:
    """Turns settings and turns into ids."""

    def __init__(self, lexicon: Lexicon) -> None:
        self.encode = lexicon.encode

    def message(self, header: str, text: str, stop: int = END) -> tuple[int, ...]:
        return (START, *self.header(header), MESSAGE, *self.encode(text), stop)

    def header(self, header: str) -> tuple[int, ...]:
        """`assistant|analysis` is a role, then a channel; `^json` is a constraint."""
        ids: tuple[int, ...] = ()
        role, _, rest = header.partition("|")
        ids += self.encode(role)
        if rest:
            channel, _, constraint = rest.partition("^")
            ids += (CHANNEL, *self.encode(channel))
            if constraint:
                ids += (CONSTRAIN, *self.encode(constraint))
        return ids

    def opening(self, setting: Setting) -> tuple[int, ...]:
        ids = self.message("system", system_text(setting))
        tools = [function.tool() for function in setting.functions]
        developer = developer_text(setting.instructions, tools, setting.response_format)
        return ids + self.message("developer", developer) if developer else ids

    def call(self, call: Call, respelled: bool) -> tuple[int, ...]:
        """Recipient after the channel as the model writes it, or in the role as openai-harmony renders it."""
        text = json.dumps(call.arguments, ensure_ascii=False)
        if respelled:
            return self.message(f"assistant to=functions.{call.name}|commentary ^json", text, CALL)
        return self.message(f"assistant|commentary to=functions.{call.name} ^json", text, CALL)

    def result(self, call: Call) -> tuple[int, ...]:
        return self.message(f"functions.{call.name} to=assistant|commentary", call.result)

    def preamble(self, call: Call) -> tuple[int, ...]:
        return self.message("assistant|commentary", call.preamble) if call.preamble else ()

    def past(self, turn: Turn, respelled: bool = False) -> tuple[int, ...]:
        """A finished turn as history: its reasoning is gone."""
        ids = self.message("user", turn.user)
        if turn.call:
            ids += self.preamble(turn.call) + self.call(turn.call, respelled) + self.result(turn.call)
        return ids + self.message("assistant|final", turn.final)

    def first_step(self, turn: Turn) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Prompt and answer of the turn's first generation: up to the final, or up to the call."""
        prompt = self.message("user", turn.user) + self.header_start()
        thought = self.message("assistant|analysis", turn.thought)
        if turn.call:
            answer = thought + self.preamble(turn.call) + self.call(turn.call, respelled=False)
        else:
            answer = thought + self.message("assistant|final", turn.final, RETURN)
        return prompt, answer[len(self.header_start()) :]

    def second_step(
        self, turn: Turn, call: Call, respelled: bool, reasoned: bool = True
    ) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Prompt and answer of the generation after the tool's result. A client may have dropped the reasoning."""
        prompt = self.message("user", turn.user)
        if reasoned:
            prompt += self.message("assistant|analysis", turn.thought)
        prompt += self.preamble(call) + self.call(call, respelled) + self.result(call) + self.header_start()
        answer = self.message("assistant|analysis", call.thought) if call.thought else ()
        answer += self.message("assistant|final", turn.final, RETURN)
        return prompt, answer[len(self.header_start()) :]

    def header_start(self) -> tuple[int, ...]:
        return (START, *self.encode("assistant"))
