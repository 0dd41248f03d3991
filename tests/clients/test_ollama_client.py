"""ollama-python: chat, generate, tools, thinking, model management."""

from __future__ import annotations

import pytest
from ollama import Client, ResponseError

pytestmark = pytest.mark.clients
MODEL = "demo"


@pytest.fixture
def client(server: str) -> Client:
    return Client(host=server)


def get_weather(city: str) -> str:
    """Get the weather in a city.

    Args:
        city: The city.
    """
    return f"21 C and sunny in {city}"


def test_chat_and_thinking(client: Client) -> None:
    answer = client.chat(
        MODEL, [{"role": "user", "content": "What is 17 + 25?"}], think="medium", options={"temperature": 0}
    )
    assert "42" in (answer.message.content or "")
    assert answer.message.thinking
    assert answer.eval_count
    assert answer.total_duration


def test_chat_stream(client: Client) -> None:
    parts = list(
        client.chat(MODEL, [{"role": "user", "content": "What is 8 + 5?"}], stream=True, options={"temperature": 0})
    )
    assert "13" in "".join(part.message.content or "" for part in parts)
    assert [part.done for part in parts] == [False] * (len(parts) - 1) + [True]


def test_generate(client: Client) -> None:
    answer = client.generate(MODEL, "What is 17 + 25?", options={"temperature": 0})
    assert "42" in answer.response
    assert answer.context
    parts = list(client.generate(MODEL, "What is 8 + 5?", stream=True, options={"temperature": 0}))
    assert "13" in "".join(part.response for part in parts)


def test_python_function_as_a_tool(client: Client) -> None:
    messages: list[object] = [{"role": "user", "content": "What is the weather in Paris?"}]
    first = client.chat(MODEL, messages, tools=[get_weather], options={"temperature": 0})
    call = (first.message.tool_calls or [])[0]
    assert call.function.name == "get_weather"
    messages += [
        first.message,
        {"role": "tool", "tool_name": "get_weather", "content": get_weather(**call.function.arguments)},
    ]
    second = client.chat(MODEL, messages, tools=[get_weather], options={"temperature": 0})
    assert "21" in (second.message.content or "")


def test_format(client: Client) -> None:
    schema = {"type": "object", "properties": {"answer": {"type": "integer"}}, "required": ["answer"]}
    answer = client.chat(
        MODEL, [{"role": "user", "content": "What is 2 + 2? Answer in JSON."}], format=schema,
        options={"temperature": 0, "num_predict": 600},
    )  # fmt: skip
    import json

    assert isinstance(json.loads(answer.message.content or "")["answer"], int)


def test_models(client: Client) -> None:
    names = [model.model for model in client.list().models]
    assert "demo:latest" in names
    assert "thinking" in (client.show(MODEL).capabilities or [])
    client.create(model="named", from_=MODEL, system="Be short.")
    assert "named:latest" in [model.model for model in client.list().models]
    client.copy("named", "again")
    client.delete("named")
    client.delete("again")
    assert client.ps().models


def test_errors(client: Client) -> None:
    with pytest.raises(ResponseError, match="embed"):
        client.embed(MODEL, "hello")
    with pytest.raises(ResponseError, match="num_predict") as caught:
        client.generate(MODEL, "hello", options={"num_predict": "many"})
    assert caught.value.status_code == 400
