"""openai-python: chat, parse, stream helpers, tools, Responses."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from openai import BadRequestError, NotFoundError, OpenAI
from pydantic import BaseModel

pytestmark = pytest.mark.clients
MODEL = "demo"
WEATHER: dict[str, Any] = {
    "name": "get_weather",
    "description": "Get the weather in a city.",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}


class Person(BaseModel):
    name: str
    age: int


@pytest.fixture
def client(server: str) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{server}/v1", api_key="unused", max_retries=0) as found:
        yield found


def test_chat(client: OpenAI) -> None:
    answer = client.chat.completions.create(
        model=MODEL, messages=[{"role": "user", "content": "What is 17 + 25?"}], temperature=0
    )
    message = answer.choices[0].message
    assert "42" in (message.content or "")
    assert message.model_extra is not None
    assert message.model_extra["reasoning"]
    assert answer.choices[0].finish_reason == "stop"


def test_effort_changes_how_much_is_reasoned(client: OpenAI) -> None:
    spent = []
    for effort in ("low", "medium", "high"):
        answer = client.chat.completions.create(
            model=MODEL, messages=[{"role": "user", "content": "What is 17 + 25?"}], temperature=0,
            reasoning_effort=effort,
        )  # fmt: skip
        details = answer.usage.completion_tokens_details if answer.usage is not None else None
        spent.append(details.reasoning_tokens if details is not None else None)
    assert spent == sorted(spent)
    assert spent[0] < spent[2]


def test_stream_with_usage(client: OpenAI) -> None:
    stream = client.chat.completions.create(
        model=MODEL, messages=[{"role": "user", "content": "What is 8 + 5?"}], temperature=0, stream=True,
        stream_options={"include_usage": True},
    )  # fmt: skip
    chunks = list(stream)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert "13" in text
    assert chunks[-1].choices == []
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.prompt_tokens > 0


def test_stream_helper_rebuilds_the_message(client: OpenAI) -> None:
    with client.chat.completions.stream(
        model=MODEL, messages=[{"role": "user", "content": "What is 8 + 5?"}], temperature=0
    ) as stream:
        for _ in stream:
            pass
        final = stream.get_final_completion()
    assert "13" in (final.choices[0].message.content or "")


def test_tool_loop(client: OpenAI) -> None:
    messages: list[Any] = [{"role": "user", "content": "What is the weather in Paris?"}]
    tools: list[Any] = [{"type": "function", "function": WEATHER}]
    first = client.chat.completions.create(model=MODEL, messages=messages, tools=tools, temperature=0).choices[0]
    assert first.finish_reason == "tool_calls"
    call = (first.message.tool_calls or [])[0]
    assert call.type == "function"
    assert call.function.name == "get_weather"
    assert "Paris" in json.loads(call.function.arguments)["city"]
    # The plain dictionary drops the reasoning on purpose; the server kept it.
    messages += [
        {"role": "assistant", "tool_calls": [call.model_dump(include={"id", "type", "function"})]},
        {"role": "tool", "tool_call_id": call.id, "content": "21 C and sunny"},
    ]
    second = client.chat.completions.create(model=MODEL, messages=messages, tools=tools, temperature=0)
    assert "21" in (second.choices[0].message.content or "")
    details = second.usage.prompt_tokens_details if second.usage is not None else None
    assert details is not None
    assert (details.cached_tokens or 0) > 0


def test_streamed_tool_call(client: OpenAI) -> None:
    with client.chat.completions.stream(
        model=MODEL, messages=[{"role": "user", "content": "What is the weather in Paris?"}],
        tools=[{"type": "function", "function": WEATHER}], temperature=0,
    ) as stream:  # fmt: skip
        final = stream.get_final_completion()
    call = (final.choices[0].message.tool_calls or [])[0]
    assert "Paris" in call.function.arguments


def test_required_and_named_tools(client: OpenAI) -> None:
    for choice in ("required", {"type": "function", "function": {"name": "get_weather"}}):
        answer = client.chat.completions.create(
            model=MODEL, messages=[{"role": "user", "content": "hello"}],
            tools=[{"type": "function", "function": WEATHER}],
            tool_choice=choice, temperature=0, max_tokens=400,
        )  # fmt: skip
        call = (answer.choices[0].message.tool_calls or [])[0]
        assert isinstance(json.loads(call.function.arguments)["city"], str)


def test_parse_gives_an_object(client: OpenAI) -> None:
    answer = client.chat.completions.parse(
        model=MODEL, messages=[{"role": "user", "content": "Ada is 36 years old. Answer in JSON."}],
        response_format=Person, temperature=0, max_tokens=600,
    )  # fmt: skip
    parsed = answer.choices[0].message.parsed
    assert isinstance(parsed, Person)


def test_json_object(client: OpenAI) -> None:
    answer = client.chat.completions.create(
        model=MODEL, messages=[{"role": "user", "content": "Answer in JSON: what is 2 + 2?"}],
        response_format={"type": "json_object"}, temperature=0, max_tokens=600,
    )  # fmt: skip
    assert isinstance(json.loads(answer.choices[0].message.content or ""), dict)


def test_logprobs_and_several_choices(client: OpenAI) -> None:
    answer = client.chat.completions.create(
        model=MODEL,
        messages=[{"role": "user", "content": "What is 8 + 5?"}],
        logprobs=True,
        top_logprobs=3,
        n=2,
        seed=1,
    )
    assert len(answer.choices) == 2
    found = answer.choices[0].logprobs
    assert found is not None
    assert found.content is not None
    assert all(len(entry.top_logprobs) == 3 for entry in found.content)


def test_completions(client: OpenAI) -> None:
    answer = client.completions.create(model=MODEL, prompt="Hello", max_tokens=4, temperature=0)
    assert answer.usage is not None
    assert answer.usage.completion_tokens <= 4


def test_models(client: OpenAI) -> None:
    assert MODEL in [model.id for model in client.models.list()]
    assert client.models.retrieve(MODEL).id == MODEL


def test_errors_are_the_librarys_own(client: OpenAI) -> None:
    with pytest.raises(BadRequestError) as caught:
        client.chat.completions.create(model=MODEL, messages=[], temperature=0)
    assert caught.value.param == "messages"
    with pytest.raises(NotFoundError):
        client.responses.retrieve("resp_absent")


def test_responses(client: OpenAI) -> None:
    first = client.responses.create(model=MODEL, input="What is 17 + 25?", temperature=0)
    assert "42" in first.output_text
    reasoning = next(item for item in first.output if item.type == "reasoning")
    assert reasoning.content is not None
    assert reasoning.content[0].type == "reasoning_text"
    second = client.responses.create(model=MODEL, input="What is 8 + 5?", previous_response_id=first.id, temperature=0)
    assert "13" in second.output_text
    assert second.usage is not None
    assert second.usage.input_tokens_details.cached_tokens > 0
    assert client.responses.retrieve(first.id).output_text == first.output_text
    assert client.responses.input_items.list(first.id).data
    client.responses.delete(first.id)


def test_responses_stream(client: OpenAI) -> None:
    with client.responses.stream(model=MODEL, input="What is 17 + 25?", temperature=0) as stream:
        kinds = [event.type for event in stream]
        final = stream.get_final_response()
    assert kinds[0] == "response.created"
    assert kinds[-1] == "response.completed"
    assert "42" in final.output_text


def test_responses_parse(client: OpenAI) -> None:
    answer = client.responses.parse(
        model=MODEL,
        input="Ada is 36 years old. Answer in JSON.",
        text_format=Person,
        temperature=0,
        max_output_tokens=600,
    )
    assert isinstance(answer.output_parsed, Person)


def test_responses_tools(client: OpenAI) -> None:
    tools: list[Any] = [{"type": "function", "strict": True, **WEATHER}]
    first = client.responses.create(model=MODEL, input="What is the weather in Paris?", tools=tools, temperature=0)
    call = next(item for item in first.output if item.type == "function_call")
    result: Any = {"type": "function_call_output", "call_id": call.call_id, "output": "21 C and sunny"}
    second = client.responses.create(
        model=MODEL, input=[result], tools=tools, previous_response_id=first.id, temperature=0
    )
    assert "21" in second.output_text
