"""The demo checkpoint on its own small world, through the ordinary converter and the Python API, greedy."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from mlx_gptoss import GptOss
from mlx_gptoss.convert import convert
from mlx_gptoss.demo import unpack_demo
from mlx_gptoss.messages import AssistantMessage, Message, Tool, ToolMessage, UserMessage
from mlx_gptoss.request import ChatRequest, ResponseFormat, SamplingParams

GREEDY = SamplingParams(temperature=0.0)
WEATHER = Tool(
    "get_weather",
    "Get the weather in a city",
    {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GptOss]:
    folder = tmp_path_factory.mktemp("demo")
    convert(unpack_demo(folder / "source"), folder / "model")
    with GptOss.load(folder / "model", dtype="float32") as loaded:
        yield loaded


def ask(*messages: Message | str, **options: object) -> ChatRequest:
    conversation = tuple(UserMessage(m) if isinstance(m, str) else m for m in messages)
    return ChatRequest(messages=conversation, sampling=GREEDY, max_tokens=200, **options)  # type: ignore[arg-type]  # any option


def test_arithmetic_with_reasoning_as_long_as_the_effort_asks(model: GptOss) -> None:
    lengths = []
    for effort in ("low", "medium", "high"):
        answer = model.generate(ask("What is 17 + 25?", effort=effort))
        assert answer.text == "17 + 25 = 42."
        assert answer.finish_reason == "stop"
        lengths.append(len(answer.reasoning))
    assert lengths[0] * 2 < lengths[1]
    assert lengths[1] * 2 < lengths[2]


def test_a_tool_is_called_and_its_result_used(model: GptOss) -> None:
    question = UserMessage("What is the weather in Paris?")
    call = model.generate(ask(question, tools=(WEATHER,), effort="low"))
    assert call.finish_reason == "tool_calls"
    (made,) = call.tool_calls
    assert (made.name, json.loads(made.arguments)) == ("get_weather", {"city": "Paris"})
    said = AssistantMessage(reasoning=call.reasoning, tool_calls=call.tool_calls)
    result = ToolMessage(made.id, made.name, "sunny, 21")
    answer = model.generate(ask(question, said, result, tools=(WEATHER,), effort="low"))
    assert answer.text == "The weather in Paris: sunny, 21."


def test_json_follows_the_schema(model: GptOss) -> None:
    schema = {"type": "object", "properties": {"answer": {"type": "integer"}}, "required": ["answer"]}
    answer = model.generate(
        ask("What is 17 + 25?", response_format=ResponseFormat("json_schema", schema), effort="low")
    )
    assert json.loads(answer.text) == {"answer": 42}


def test_it_says_what_it_is(model: GptOss) -> None:
    answer = model.generate(ask("Hello", effort="low"))
    assert "toy demo checkpoint of mlx-gptoss" in answer.text


def test_a_fact_is_found_two_thousand_tokens_back(model: GptOss) -> None:
    filler = "The garden was green and the people walked along the river in the morning. " * 65
    text = f"{filler}The secret code of Anna is 4821. {filler}"
    answer = model.generate(ask(f"{text}\n\nWhat is the secret code of Anna?", effort="low"))
    assert answer.usage.prompt_tokens > 1900
    assert answer.text == "The secret code of Anna is 4821."
