"""OpenAI's legacy completions over a scripted model."""

from __future__ import annotations

import json
import logging
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from mlx_gptoss.registry import Registry
from tests.server.support import MODEL, client_of, scripted_app, sse_events

pytestmark = pytest.mark.anyio


@pytest.fixture
async def client(registry: Registry) -> AsyncIterator[httpx.AsyncClient]:
    async with client_of(scripted_app(registry)) as found:
        yield found


async def ask(client: httpx.AsyncClient, **fields: Any) -> httpx.Response:
    return await client.post("/v1/completions", json={"model": MODEL, "prompt": "long", "max_tokens": 6, **fields})


async def test_every_prompt_has_its_choices(client: httpx.AsyncClient) -> None:
    answer = (await ask(client, prompt=["long", "long long"], n=2)).json()
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2, 3]
    assert {choice["finish_reason"] for choice in answer["choices"]} == {"length"}
    assert answer["usage"]["completion_tokens"] == 24


async def test_a_stream_says_null_until_it_knows_the_usage(client: httpx.AsyncClient) -> None:
    whole = (await ask(client)).json()
    events = sse_events((await ask(client, stream=True, stream_options={"include_usage": True})).text)
    assert all(event["usage"] is None for event in events[:-1])
    assert events[-1]["choices"] == []
    assert events[-1]["usage"]["completion_tokens"] == whole["usage"]["completion_tokens"]
    text = "".join(choice["text"] for event in events for choice in event["choices"])
    assert text == whole["choices"][0]["text"]
    plain = sse_events((await ask(client, stream=True)).text)
    assert all("usage" not in event for event in plain)


async def test_the_log_counts_what_all_choices_generate(
    client: httpx.AsyncClient, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "mlx_gptoss.server")
    await ask(client, n=3)
    assert json.loads(caplog.messages[-1])["completion_tokens"] == 18
