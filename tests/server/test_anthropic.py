"""Anthropic Messages over a scripted model."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from mlx_gptoss.events import ReasoningDelta
from mlx_gptoss.registry import Registry
from mlx_gptoss.server.wire.anthropic import EventWriter
from tests.server.support import MODEL, WEATHER_TOOL, client_of, scripted_app, sse_events

pytestmark = pytest.mark.anyio
FUNCTION = WEATHER_TOOL["function"]
THINKING = {"type": "enabled", "budget_tokens": 2048}
TOOL = {"name": FUNCTION["name"], "description": FUNCTION["description"], "input_schema": FUNCTION["parameters"]}


@pytest.fixture
async def client(registry: Registry) -> AsyncIterator[httpx.AsyncClient]:
    async with client_of(scripted_app(registry)) as found:
        yield found


async def ask(client: httpx.AsyncClient, content: Any, **fields: Any) -> httpx.Response:
    body = {"model": MODEL, "max_tokens": 500, "messages": [{"role": "user", "content": content}], **fields}
    return await client.post("/v1/messages", json=body)


async def test_whole_message(client: httpx.AsyncClient) -> None:
    message = (await ask(client, "hi", system="Be kind.", thinking=THINKING)).json()
    assert [block["type"] for block in message["content"]] == ["thinking", "text"]
    assert message["content"][0]["thinking"] == "They greet me."
    assert message["content"][1]["text"] == "Hello there!"
    assert (message["stop_reason"], message["role"], message["type"]) == ("end_turn", "assistant", "message")


@pytest.mark.parametrize("fields", [{}, {"thinking": {"type": "disabled"}}, {"output_config": {"effort": "high"}}])
async def test_thinking_comes_only_when_asked_for(client: httpx.AsyncClient, fields: dict[str, Any]) -> None:
    message = (await ask(client, "hi", **fields)).json()
    assert message["content"] == [{"type": "text", "text": "Hello there!"}]
    events = sse_events((await ask(client, "hi", stream=True, **fields)).text)
    assert [e["content_block"]["type"] for e in events if e["type"] == "content_block_start"] == ["text"]
    assert not [e for e in events if e.get("delta", {}).get("type") in ("thinking_delta", "signature_delta")]


async def test_hidden_reasoning_is_kept_for_the_next_turn(client: httpx.AsyncClient) -> None:
    first = (await ask(client, "remember this")).json()
    messages = [
        {"role": "user", "content": "remember this"},
        {"role": "assistant", "content": first["content"]},
        {"role": "user", "content": "and now?"},
    ]
    body = {"model": MODEL, "max_tokens": 100, "messages": messages}
    usage = (await client.post("/v1/messages", json=body)).json()["usage"]
    # The prompt and the answer, but for the token that ended it.
    before = first["usage"]
    assert usage["cache_read_input_tokens"] >= before["input_tokens"] + before["cache_read_input_tokens"]


async def test_a_stream_says_at_once_how_long_its_prompt_is(client: httpx.AsyncClient) -> None:
    body = {"model": MODEL, "messages": [{"role": "user", "content": "how long?"}]}
    counted = (await client.post("/v1/messages/count_tokens", json=body)).json()["input_tokens"]
    events = sse_events((await ask(client, "how long?", stream=True)).text)
    assert events[0]["message"]["usage"]["input_tokens"] == counted
    final = events[-2]["usage"]
    assert final["input_tokens"] + final["cache_read_input_tokens"] == counted


def test_hidden_reasoning_does_not_fall_silent() -> None:
    writer = EventWriter("msg_1", "demo", thinking=False)
    events = [event for _ in range(250) for event in writer.write(ReasoningDelta("hm"))]
    assert events == [{"type": "ping"}] * 2


async def test_stream_opens_and_closes_blocks(client: httpx.AsyncClient) -> None:
    response = await ask(client, "weather?", tools=[TOOL], stream=True, thinking=THINKING)
    events = sse_events(response.text)
    assert [line.removeprefix("event: ") for line in response.text.split("\n") if line.startswith("event: ")] == [
        event["type"] for event in events
    ]
    assert events[0]["type"] == "message_start"
    assert [event["type"] for event in events[-2:]] == ["message_delta", "message_stop"]
    starts = [event for event in events if event["type"] == "content_block_start"]
    stops = [event for event in events if event["type"] == "content_block_stop"]
    assert [event["index"] for event in starts] == [event["index"] for event in stops] == [0, 1]
    assert [event["content_block"]["type"] for event in starts] == ["thinking", "tool_use"]
    pieces = [
        event["delta"]["partial_json"] for event in events if event.get("delta", {}).get("type") == "input_json_delta"
    ]
    assert "".join(pieces) == '{"city": "Paris"}'
    assert events[-2]["delta"]["stop_reason"] == "tool_use"
    assert events[-2]["usage"]["output_tokens"] > 0


async def test_tool_result_round_trip(client: httpx.AsyncClient) -> None:
    first = (await ask(client, "weather?", tools=[TOOL])).json()
    call = first["content"][-1]
    assert (call["type"], call["input"]) == ("tool_use", {"city": "Paris"})
    result = {"type": "tool_result", "tool_use_id": call["id"], "content": [{"type": "text", "text": "18 C"}]}
    messages = [
        {"role": "user", "content": "weather?"},
        {"role": "assistant", "content": first["content"]},
        {"role": "user", "content": [result]},
    ]
    body = {"model": MODEL, "max_tokens": 100, "messages": messages, "tools": [TOOL]}
    second = (await client.post("/v1/messages", json=body)).json()
    assert second["content"][-1]["text"] == "It is sunny."
    assert second["usage"]["cache_read_input_tokens"] >= first["usage"]["input_tokens"]


async def test_count_tokens_is_what_a_message_uses(client: httpx.AsyncClient) -> None:
    body = {"model": MODEL, "messages": [{"role": "user", "content": "count me"}]}
    counted = (await client.post("/v1/messages/count_tokens", json=body)).json()["input_tokens"]
    usage = (await ask(client, "count me")).json()["usage"]
    assert counted == usage["input_tokens"] + usage["cache_read_input_tokens"]


async def test_max_tokens(client: httpx.AsyncClient) -> None:
    assert (await ask(client, "long", max_tokens=10)).json()["stop_reason"] == "max_tokens"


async def test_the_stop_sequence_is_named(client: httpx.AsyncClient) -> None:
    fields = {"stop_sequences": ["zzz", " there", "Hello there"]}
    message = (await ask(client, "hi", **fields)).json()
    assert (message["stop_reason"], message["stop_sequence"]) == ("stop_sequence", "Hello there")
    fields = {"stop_sequences": ["zzz", " there"]}
    message = (await ask(client, "hi", **fields)).json()
    assert (message["stop_reason"], message["stop_sequence"]) == ("stop_sequence", " there")
    assert message["content"][-1]["text"] == "Hello"
    events = sse_events((await ask(client, "hi", stream=True, **fields)).text)
    assert events[-2]["delta"] == {"stop_reason": "stop_sequence", "stop_sequence": " there"}
    assert (await ask(client, "hi")).json()["stop_sequence"] is None


@pytest.mark.parametrize(
    "fields",
    [
        {"max_tokens": 0},
        {"temperature": 2},
        {"messages": []},
        {"messages": [{"role": "user", "content": [{"type": "image", "source": {}}]}]},
        {"messages": [{"role": "assistant", "content": [{"type": "alien"}]}]},
        {"tools": [{"description": "no name"}]},
        {"tool_choice": {"type": "tool", "name": "absent"}},
    ],
)
async def test_errors_have_anthropics_shape(client: httpx.AsyncClient, fields: dict[str, Any]) -> None:
    response = await ask(client, "hi", **fields)
    body = response.json()
    assert (response.status_code, body["type"], body["error"]["type"]) == (400, "error", "invalid_request_error")


async def test_unknown_model(client: httpx.AsyncClient) -> None:
    response = await ask(client, "hi", model="claude-9")
    assert (response.status_code, response.json()["error"]["type"]) == (404, "not_found_error")
