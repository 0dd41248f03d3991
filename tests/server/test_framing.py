"""Streams as clients cut them into lines: at every line end that Unicode knows, not only at `\\n`."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from mlx_gptoss.registry import Registry
from mlx_gptoss.server.app import build_app
from mlx_gptoss.server.settings import ServerSettings
from tests.server.support import FINAL, MODEL, client_of, scripted_llm

SAID = "one\x85two\u2028three\u2029four\x0b\x0c\x1c\rfive"
MESSAGES = [{"role": "user", "content": "hi"}]


async def lines(client: httpx.AsyncClient, path: str, body: dict[str, Any]) -> list[str]:
    """The lines of a stream as httpx cuts them, which is how ollama-python reads."""
    async with client.stream("POST", path, json={"model": MODEL, "stream": True, **body}) as response:
        return [line async for line in response.aiter_lines() if line]


@pytest.mark.anyio
async def test_an_answer_with_odd_line_ends_stays_whole(registry: Registry) -> None:
    app = build_app(
        ServerSettings(warm_up=False),
        loader=lambda name: scripted_llm({"hi": f"{FINAL}{SAID}<|return|>"}),
        registry=registry,
    )
    async with client_of(app) as client:
        ollama = [json.loads(line) for line in await lines(client, "/api/chat", {"messages": MESSAGES})]
        assert "".join(line["message"]["content"] for line in ollama) == SAID
        chat = await lines(client, "/v1/chat/completions", {"messages": MESSAGES})
        chunks = [json.loads(line.removeprefix("data: ")) for line in chat[:-1]]
        assert chat[-1] == "data: [DONE]"
        assert "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks) == SAID
