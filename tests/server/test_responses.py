"""OpenAI Responses over a scripted model."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from mlx_gptoss.registry import Registry
from tests.server.support import MODEL, WEATHER_TOOL, client_of, scripted_app, sse_events

pytestmark = pytest.mark.anyio
TOOL = {"type": "function", **WEATHER_TOOL["function"]}


@pytest.fixture
async def client(registry: Registry) -> AsyncIterator[httpx.AsyncClient]:
    async with client_of(scripted_app(registry)) as found:
        yield found


async def ask(client: httpx.AsyncClient, given: Any, **fields: Any) -> httpx.Response:
    return await client.post("/v1/responses", json={"model": MODEL, "input": given, **fields})


async def test_whole_response(client: httpx.AsyncClient) -> None:
    response = (await ask(client, "hi")).json()
    reasoning, message = response["output"]
    assert response["status"] == "completed"
    assert reasoning["content"] == [{"type": "reasoning_text", "text": "They greet me."}]
    assert message["content"][0]["text"] == "Hello there!"
    assert response["usage"]["output_tokens_details"]["reasoning_tokens"] > 0


async def test_stream_events_are_numbered_and_ordered(client: httpx.AsyncClient) -> None:
    events = sse_events((await ask(client, "hi", stream=True)).text)
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    kinds = [event["type"] for event in events]
    once = [kind for index, kind in enumerate(kinds) if index == 0 or kinds[index - 1] != kind]
    assert once == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
        "response.reasoning_text.delta",
        "response.reasoning_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.output_item.added",
        "response.content_part.added",
        "response.output_text.delta",
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.completed",
    ]
    indexes = {event["output_index"] for event in events if "output_index" in event}
    assert indexes == {0, 1}
    final = events[-1]["response"]
    assert final["output"][1]["content"][0]["text"] == "Hello there!"
    ids = {event["item_id"] for event in events if event["type"] == "response.output_text.delta"}
    assert ids == {final["output"][1]["id"]}


async def test_function_call_round_trip_by_previous_id(client: httpx.AsyncClient) -> None:
    first = (await ask(client, "weather?", tools=[TOOL])).json()
    call = first["output"][-1]
    assert (call["type"], call["name"], call["arguments"]) == ("function_call", "get_weather", '{"city": "Paris"}')
    result = {"type": "function_call_output", "call_id": call["call_id"], "output": "18 C"}
    second = (await ask(client, [result], tools=[TOOL], previous_response_id=first["id"])).json()
    assert second["output"][-1]["content"][0]["text"] == "It is sunny."
    assert second["usage"]["input_tokens_details"]["cached_tokens"] >= first["usage"]["input_tokens"]


async def test_function_call_round_trip_without_a_store(client: httpx.AsyncClient) -> None:
    first = (await ask(client, "weather?", tools=[TOOL], store=False, include=["reasoning.encrypted_content"])).json()
    assert (await client.get(f"/v1/responses/{first['id']}")).status_code == 404
    sealed = [
        {k: v for k, v in item.items() if k != "content" or item["type"] != "reasoning"} for item in first["output"]
    ]
    result = {"type": "function_call_output", "call_id": first["output"][-1]["call_id"], "output": "18 C"}
    given = [{"role": "user", "content": "weather?"}, *sealed, result]
    second = (await ask(client, given, tools=[TOOL], store=False)).json()
    assert second["output"][-1]["content"][0]["text"] == "It is sunny."
    assert second["usage"]["input_tokens_details"]["cached_tokens"] >= first["usage"]["input_tokens"]


async def test_streamed_arguments(client: httpx.AsyncClient) -> None:
    events = sse_events((await ask(client, "weather?", tools=[TOOL], stream=True)).text)
    deltas = [event["delta"] for event in events if event["type"] == "response.function_call_arguments.delta"]
    done = [event for event in events if event["type"] == "response.function_call_arguments.done"]
    assert "".join(deltas) == done[0]["arguments"] == '{"city": "Paris"}'


async def test_preamble_is_a_message_before_the_call(client: httpx.AsyncClient) -> None:
    output = (await ask(client, "look first", tools=[TOOL])).json()["output"]
    assert [item["type"] for item in output] == ["message", "function_call"]
    assert output[0]["content"][0]["text"] == "Let me look."


async def test_retrieve_items_delete(client: httpx.AsyncClient) -> None:
    made = (await ask(client, [{"role": "user", "content": "a"}, {"role": "user", "content": "hi"}])).json()
    identifier = made["id"]
    assert (await client.get(f"/v1/responses/{identifier}")).json() == made
    page = (await client.get(f"/v1/responses/{identifier}/input_items?limit=1&order=asc")).json()
    assert (len(page["data"]), page["has_more"]) == (1, True)
    assert page["data"][0]["content"] == [{"type": "input_text", "text": "a"}]
    rest = (await client.get(f"/v1/responses/{identifier}/input_items?order=asc&after={page['last_id']}")).json()
    assert (len(rest["data"]), rest["has_more"]) == (1, False)
    assert (await client.delete(f"/v1/responses/{identifier}")).json()["deleted"] is True
    assert (await client.get(f"/v1/responses/{identifier}")).status_code == 404


async def test_background_is_polled_and_cancelled(client: httpx.AsyncClient) -> None:
    quick = (await ask(client, "hi", background=True)).json()
    assert quick["status"] == "queued"
    for _ in range(200):
        polled = (await client.get(f"/v1/responses/{quick['id']}")).json()
        if polled["status"] not in ("queued", "in_progress"):
            break
        await asyncio.sleep(0.02)
    assert polled["status"] == "completed"
    slow = (await ask(client, "long", background=True)).json()
    cancelled = (await client.post(f"/v1/responses/{slow['id']}/cancel")).json()
    assert cancelled["status"] == "cancelled"
    refused = await client.post(f"/v1/responses/{(await ask(client, 'hi')).json()['id']}/cancel")
    assert refused.status_code == 400


async def test_a_background_response_can_be_watched(client: httpx.AsyncClient) -> None:
    events = sse_events((await ask(client, "hi", background=True, stream=True)).text)
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    assert events[-1]["type"] == "response.completed"
    identifier = events[0]["response"]["id"]
    assert (await client.get(f"/v1/responses/{identifier}")).json() == events[-1]["response"]


async def test_length_is_incomplete(client: httpx.AsyncClient) -> None:
    response = (await ask(client, "long", max_output_tokens=20)).json()
    assert response["status"] == "incomplete"
    assert response["incomplete_details"] == {"reason": "max_output_tokens"}


async def test_truncation_drops_the_oldest(registry: Registry) -> None:
    async with client_of(scripted_app(registry, context=700)) as client:
        given = [
            {"role": "user", "content": "old " * 900},
            {"role": "assistant", "content": "ok"},
            {"role": "user", "content": "hi"},
        ]
        refused = await ask(client, given)
        assert refused.status_code == 400
        assert refused.json()["error"]["code"] == "context_length_exceeded"
        answer = (await ask(client, given, truncation="auto")).json()
        assert answer["output"][-1]["content"][0]["text"] == "Hello there!"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"input": ""}, "input"),
        ({"input": 5}, "input"),
        ({"tool_choice": 5}, "tool_choice"),
        ({"truncation": "sometimes"}, "truncation"),
        ({"conversation": "c"}, "conversation"),
        ({"input": [{"type": "alien"}]}, "input.0.type"),
        ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "input.0.content.0"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input.0.id"),
        ({"text": {"format": {"type": "json_schema", "name": "x"}}}, "text.format.schema"),
        ({"reasoning": {"effort": "extreme"}}, "reasoning.effort"),
    ],
)
async def test_bad_fields_are_named(client: httpx.AsyncClient, fields: dict[str, Any], param: str) -> None:
    response = await client.post("/v1/responses", json={"model": MODEL, "input": "hi", **fields})
    assert (response.status_code, response.json()["error"]["param"]) == (400, param)


async def test_what_is_not_stored(client: httpx.AsyncClient) -> None:
    refused = await ask(client, "hi", previous_response_id="resp_x")
    error = refused.json()["error"]
    assert (refused.status_code, error["param"]) == (400, "previous_response_id")
    assert error["code"] == "previous_response_not_found"
    kept_nowhere = (await ask(client, "hi", store=False)).json()["id"]
    for method, path in (("GET", ""), ("DELETE", ""), ("POST", "/cancel"), ("GET", "/input_items")):
        missing = await client.request(method, f"/v1/responses/{kept_nowhere}{path}")
        assert missing.status_code == 404
        assert missing.json()["error"]["code"] == "response_not_found"


async def test_a_stored_response_is_not_streamed_again(client: httpx.AsyncClient) -> None:
    identifier = (await ask(client, "hi")).json()["id"]
    assert (await client.get(f"/v1/responses/{identifier}?stream=false")).status_code == 200
    refused = await client.get(f"/v1/responses/{identifier}?stream=true")
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "stream")


@pytest.mark.parametrize("kind", ["mcp_call", "local_shell_call_output", "web_search_call"])
async def test_history_of_other_tools_is_passed_over(client: httpx.AsyncClient, kind: str) -> None:
    items = [{"type": kind, "id": "x_1"}, {"role": "user", "content": "hi", "id": None, "type": None}]
    response = await ask(client, items)
    assert response.json()["output"][-1]["content"][0]["text"] == "Hello there!"
    listed = (await client.get(f"/v1/responses/{response.json()['id']}/input_items?order=asc")).json()["data"]
    assert [item["type"] for item in listed] == [kind, "message"]
    assert all(isinstance(item["id"], str) for item in listed)
