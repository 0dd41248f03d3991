"""OpenAI chat completions over a scripted model."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from mlx_gptoss.registry import Registry
from tests.server.support import MODEL, WEATHER_TOOL, client_of, scripted_app, sse_events

pytestmark = pytest.mark.anyio


@pytest.fixture
async def client(registry: Registry) -> AsyncIterator[httpx.AsyncClient]:
    async with client_of(scripted_app(registry)) as found:
        yield found


async def ask(client: httpx.AsyncClient, text: str, **fields: Any) -> httpx.Response:
    body = {"model": MODEL, "messages": [{"role": "user", "content": text}], **fields}
    return await client.post("/v1/chat/completions", json=body)


async def test_whole_answer(client: httpx.AsyncClient) -> None:
    answer = (await ask(client, "hi")).json()
    choice = answer["choices"][0]
    assert answer["object"] == "chat.completion"
    assert choice["message"]["content"] == "Hello there!"
    assert choice["message"]["reasoning"] == choice["message"]["reasoning_content"] == "They greet me."
    assert choice["finish_reason"] == "stop"
    usage = answer["usage"]
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    assert usage["completion_tokens_details"]["reasoning_tokens"] > 0


async def test_stream_has_role_first_and_usage_last(client: httpx.AsyncClient) -> None:
    response = await ask(client, "hi", stream=True, stream_options={"include_usage": True})
    assert response.headers["content-type"].startswith("text/event-stream")
    assert response.text.endswith("data: [DONE]\n\n")
    chunks = sse_events(response.text)
    assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks[:-1]]
    assert "".join(delta.get("content") or "" for delta in deltas) == "Hello there!"
    assert "".join(delta.get("reasoning", "") for delta in deltas) == "They greet me."
    assert chunks[-2]["choices"][0]["finish_reason"] == "stop"
    assert chunks[-1]["choices"] == []
    assert chunks[-1]["usage"]["prompt_tokens_details"]["cached_tokens"] == 0
    assert len({chunk["id"] for chunk in chunks}) == 1


async def test_tool_call_and_its_result(client: httpx.AsyncClient) -> None:
    first = (await ask(client, "weather?", tools=[WEATHER_TOOL])).json()["choices"][0]
    call = first["message"]["tool_calls"][0]
    assert first["finish_reason"] == "tool_calls"
    assert call["function"] == {"name": "get_weather", "arguments": '{"city": "Paris"}'}
    # A client that drops the reasoning: the server still has it, so the whole turn is in the cache.
    messages = [
        {"role": "user", "content": "weather?"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": call["id"], "content": "18 C"},
    ]
    body = {"model": MODEL, "messages": messages, "tools": [WEATHER_TOOL]}
    second = (await client.post("/v1/chat/completions", json=body)).json()
    assert second["choices"][0]["message"]["content"] == "It is sunny."
    reused = second["usage"]["prompt_tokens_details"]["cached_tokens"]
    assert reused >= 20


async def test_streamed_tool_call_is_joined_by_index(client: httpx.AsyncClient) -> None:
    chunks = sse_events((await ask(client, "weather?", tools=[WEATHER_TOOL], stream=True)).text)
    calls = [call for chunk in chunks for call in chunk["choices"][0]["delta"].get("tool_calls", [])]
    assert {call["index"] for call in calls} == {0}
    assert calls[0]["function"]["name"] == "get_weather"
    assert calls[0]["id"].startswith("call_")
    assert "".join(call["function"].get("arguments", "") for call in calls) == '{"city": "Paris"}'
    assert chunks[-1]["choices"][0]["finish_reason"] == "tool_calls"


async def test_arguments_that_are_not_json_are_handed_over_raw(client: httpx.AsyncClient) -> None:
    response = await ask(client, "broken call", tools=[WEATHER_TOOL])
    assert response.status_code == 200
    assert response.json()["choices"][0]["message"]["tool_calls"][0]["function"]["arguments"] == "{city: oops"


async def test_preamble_is_content(client: httpx.AsyncClient) -> None:
    message = (await ask(client, "look first", tools=[WEATHER_TOOL])).json()["choices"][0]["message"]
    assert message["content"] == "Let me look."
    assert len(message["tool_calls"]) == 1


async def test_several_choices_share_one_prompt(client: httpx.AsyncClient) -> None:
    answer = (await ask(client, "hi", n=3, seed=5)).json()
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2]
    one = (await ask(client, "hi")).json()["usage"]
    assert answer["usage"]["prompt_tokens"] == one["prompt_tokens"]
    assert answer["usage"]["completion_tokens"] == 3 * one["completion_tokens"]
    chunks = sse_events((await ask(client, "hi", n=2, stream=True)).text)
    texts = ["", ""]
    for chunk in chunks:
        for choice in chunk["choices"]:
            texts[choice["index"]] += choice["delta"].get("content") or ""
    assert texts == ["Hello there!", "Hello there!"]


async def test_logprobs_are_of_the_content(client: httpx.AsyncClient) -> None:
    choice = (await ask(client, "hi", logprobs=True, top_logprobs=2)).json()["choices"][0]
    entries = choice["logprobs"]["content"]
    assert b"".join(bytes(entry["bytes"]) for entry in entries) == b"Hello there!"
    assert all(len(entry["top_logprobs"]) == 2 and entry["logprob"] <= 0 for entry in entries)


async def test_stop_string_is_not_emitted(client: httpx.AsyncClient) -> None:
    choice = (await ask(client, "hi", stop=" there")).json()["choices"][0]
    assert (choice["message"]["content"], choice["finish_reason"]) == ("Hello", "stop")


async def test_max_tokens_is_length(client: httpx.AsyncClient) -> None:
    for field in ("max_tokens", "max_completion_tokens"):
        choice = (await ask(client, "long", **{field: 20})).json()["choices"][0]
        assert choice["finish_reason"] == "length"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"temperature": 3}, "temperature"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"n": 0}, "n"),
        ({"reasoning_effort": "extreme"}, "reasoning_effort"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tool_choice": {"type": "function", "function": {"name": "absent"}}, "tools": [WEATHER_TOOL]}, "tool_choice"),
        ({"response_format": {"type": "xml"}}, "response_format.type"),
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "x"}}}, "response_format.schema"),
        ({"logit_bias": {"x": 1}}, "logit_bias"),
        ({"stop": ["", "x"]}, "stop"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "alien", "content": "x"}]}, "messages.0.role"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
            "messages.0.content.0",
        ),
        ({"tools": [{"type": "function", "function": {}}]}, "tools.0.function.name"),
    ],
)
async def test_bad_fields_are_named(client: httpx.AsyncClient, fields: dict[str, Any], param: str) -> None:
    response = await ask(client, "hi", **fields)
    error = response.json()["error"]
    assert (response.status_code, error["param"]) == (400, param)
    assert set(error) == {"message", "type", "param", "code"}


async def test_unknown_fields_and_tool_kinds_are_ignored(client: httpx.AsyncClient) -> None:
    response = await ask(client, "hi", options={"x": 1}, tools=[{"type": "web_search"}], service_tier="auto")
    assert response.status_code == 200


async def test_unknown_model_is_404(client: httpx.AsyncClient) -> None:
    response = await client.post(
        "/v1/chat/completions", json={"model": "gpt-9", "messages": [{"role": "user", "content": "x"}]}
    )
    assert response.status_code == 404
    assert response.json()["error"]["code"] == "model_not_found"


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b'"x"', b"\xff", b"[" * 100_000])
async def test_a_body_that_is_no_object(client: httpx.AsyncClient, body: bytes) -> None:
    response = await client.post("/v1/chat/completions", content=body)
    assert response.status_code == 400
    assert response.json()["error"]["message"]
