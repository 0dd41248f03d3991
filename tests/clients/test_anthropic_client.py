"""anthropic: messages, streams, tools, thinking, token counts."""

from __future__ import annotations

from typing import Any

import pytest
from anthropic import Anthropic, BadRequestError

pytestmark = pytest.mark.clients
MODEL = "demo"
# The library has dropped the parameter; the API has not.
GREEDY = {"temperature": 0}
TOOL: Any = {
    "name": "get_weather",
    "description": "Get the weather in a city.",
    "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}


@pytest.fixture
def client(server: str) -> Anthropic:
    return Anthropic(base_url=server, api_key="unused", max_retries=0)


def test_message(client: Anthropic) -> None:
    message = client.messages.create(
        model=MODEL, max_tokens=500, extra_body=GREEDY, messages=[{"role": "user", "content": "What is 17 + 25?"}]
    )
    assert message.content[0].type == "text"
    assert "42" in message.content[0].text


def test_message_with_thinking(client: Anthropic) -> None:
    message = client.messages.create(
        model=MODEL,
        max_tokens=2000,
        extra_body=GREEDY,
        thinking={"type": "enabled", "budget_tokens": 1024},
        messages=[{"role": "user", "content": "What is 17 + 25?"}],
    )
    assert [block.type for block in message.content] == ["thinking", "text"]
    assert "42" in message.content[1].text
    assert message.stop_reason == "end_turn"


def test_stream_helper(client: Anthropic) -> None:
    with client.messages.stream(
        model=MODEL, max_tokens=500, extra_body=GREEDY, messages=[{"role": "user", "content": "What is 8 + 5?"}]
    ) as stream:
        text = "".join(stream.text_stream)
        final = stream.get_final_message()
    assert "13" in text
    assert final.usage.output_tokens > 0


def test_tool_loop(client: Anthropic) -> None:
    messages: list[Any] = [{"role": "user", "content": "What is the weather in Paris?"}]
    first = client.messages.create(model=MODEL, max_tokens=500, extra_body=GREEDY, messages=messages, tools=[TOOL])
    assert first.stop_reason == "tool_use"
    call = next(block for block in first.content if block.type == "tool_use")
    result = {"type": "tool_result", "tool_use_id": call.id, "content": "21 C and sunny"}
    messages += [{"role": "assistant", "content": first.content}, {"role": "user", "content": [result]}]
    second = client.messages.create(model=MODEL, max_tokens=500, extra_body=GREEDY, messages=messages, tools=[TOOL])
    assert any(block.type == "text" and "21" in block.text for block in second.content)
    assert (second.usage.cache_read_input_tokens or 0) > 0


def test_count_tokens(client: Anthropic) -> None:
    counted = client.messages.count_tokens(model=MODEL, messages=[{"role": "user", "content": "hello"}])
    assert counted.input_tokens > 10


def test_error(client: Anthropic) -> None:
    with pytest.raises(BadRequestError):
        client.messages.create(model=MODEL, max_tokens=10, messages=[])
