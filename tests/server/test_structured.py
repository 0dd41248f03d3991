"""Structured output through every API, with a model that would rather say something else."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator, Mapping
from typing import Any

import httpx
import jsonschema
import pytest

from mlx_gptoss.registry import Registry
from mlx_gptoss.server.app import build_app
from mlx_gptoss.server.failure import api_of
from mlx_gptoss.server.settings import ServerSettings
from tests.server.support import MODEL, WEATHER_TOOL, client_of, sse_events
from tests.server.uncooperative import uncooperative_llm

pytestmark = pytest.mark.anyio
SEEDS = range(2)
FUNCTION = WEATHER_TOOL["function"]
PERSON: dict[str, Any] = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "tags": {"type": "array", "items": {"enum": ["red", "green"]}, "maxItems": 3},
    },
    "required": ["name", "age", "tags"],
    "additionalProperties": False,
}
STRICT = {**FUNCTION, "strict": True, "parameters": {
    "type": "object", "properties": {"city": {"type": "string", "maxLength": 12}, "days": {"type": "integer"}},
    "required": ["city", "days"], "additionalProperties": False,
}}  # fmt: skip
ASK = [{"role": "user", "content": "Describe somebody."}]


@pytest.fixture(params=SEEDS)
async def client(request: pytest.FixtureRequest, registry: Registry) -> AsyncIterator[httpx.AsyncClient]:
    app = build_app(ServerSettings(), loader=lambda name: uncooperative_llm(request.param), registry=registry)
    async with client_of(app) as found:
        yield found


def formats(schema: Mapping[str, Any] | None) -> dict[str, tuple[str, dict[str, Any]]]:
    """For each API: its path, and a body that asks for `schema` (None: any JSON object)."""
    chat: dict[str, Any] = {"type": "json_schema", "json_schema": {"name": "person", "schema": schema, "strict": True}}
    flat = {"type": "json_schema", "name": "person", "schema": schema, "strict": True}
    if schema is None:
        chat = flat = {"type": "json_object"}
    text: dict[str, Any] = {"model": MODEL, "temperature": 1}
    return {
        "chat": ("/v1/chat/completions", {**text, "messages": ASK, "response_format": chat, "max_tokens": 400}),
        "responses": (
            "/v1/responses", {**text, "input": "Describe.", "text": {"format": flat}, "max_output_tokens": 400},
        ),
        "ollama": (
            "/api/chat", {"model": MODEL, "messages": ASK, "format": schema or "json", "stream": False,
                          "options": {"num_predict": 400, "temperature": 1}},
        ),
        "generate": (
            "/api/generate", {"model": MODEL, "prompt": "Describe.", "format": schema or "json", "stream": False,
                              "options": {"num_predict": 400, "temperature": 1}},
        ),
        "anthropic": (
            "/v1/messages", {**text, "messages": ASK, "max_tokens": 400, "output_config": {"format": flat},
                             "thinking": {"type": "adaptive"}},
        ),
    }  # fmt: skip


def read(api: str, answer: dict[str, Any]) -> tuple[str, str, bool]:
    """Text, reasoning, and whether the answer was cut short."""
    if api == "chat":
        choice = answer["choices"][0]
        reasoning = choice["message"].get("reasoning", "")
        return choice["message"]["content"] or "", reasoning, choice["finish_reason"] == "length"
    if api == "responses":
        parts = {item["type"]: item["content"] for item in answer["output"]}
        text = "".join(part["text"] for part in parts.get("message", []))
        reasoning = "".join(part["text"] for part in parts.get("reasoning", []))
        return text, reasoning, answer["status"] == "incomplete"
    if api == "anthropic":
        text = "".join(block["text"] for block in answer["content"] if block["type"] == "text")
        reasoning = "".join(block["thinking"] for block in answer["content"] if block["type"] == "thinking")
        return text, reasoning, answer["stop_reason"] == "max_tokens"
    holder = answer["message"] if api == "ollama" else answer
    text = holder["content"] if api == "ollama" else holder["response"]
    return text, holder.get("thinking", ""), answer["done_reason"] == "length"


@pytest.mark.parametrize("schema", [PERSON, None], ids=["schema", "object"])
async def test_what_is_finished_is_valid(client: httpx.AsyncClient, schema: dict[str, Any] | None) -> None:
    whole = 0
    for api, (path, body) in formats(schema).items():
        if schema is None and api == "anthropic":
            continue
        response = await client.post(path, json=body)
        assert response.status_code == 200, response.text
        text, reasoning, cut = read(api, response.json())
        assert reasoning
        if cut:
            continue
        whole += 1
        value = json.loads(text)
        assert isinstance(value, dict)
        if schema is not None:
            jsonschema.validate(value, schema)
    assert whole >= (1 if schema is not None else 0)


async def test_forced_and_strict_calls_have_valid_arguments(client: httpx.AsyncClient) -> None:
    tool = {"type": "function", "function": STRICT}
    other = {"type": "function", "function": {"name": "other", "parameters": {"type": "object"}}}
    named = {"type": "function", "function": {"name": "get_weather"}}
    for choice in ("required", named):
        body = {"model": MODEL, "messages": ASK, "tools": [tool, other], "tool_choice": choice, "max_tokens": 500}
        choice_ = (await client.post("/v1/chat/completions", json=body)).json()["choices"][0]
        if choice_["finish_reason"] == "length":
            continue
        assert choice_["finish_reason"] == "tool_calls"
        for call in choice_["message"]["tool_calls"]:
            arguments = json.loads(call["function"]["arguments"])
            assert call["function"]["name"] == "get_weather" or choice == "required"
            if call["function"]["name"] == "get_weather":
                jsonschema.validate(arguments, STRICT["parameters"])
    responses = {"model": MODEL, "input": "x", "tools": [{"type": "function", **STRICT}], "tool_choice": "required",
                 "max_output_tokens": 500}  # fmt: skip
    answer = (await client.post("/v1/responses", json=responses)).json()
    calls = [item for item in answer["output"] if item["type"] == "function_call"]
    if answer["status"] == "completed":
        assert calls
        jsonschema.validate(json.loads(calls[0]["arguments"]), STRICT["parameters"])
    anthropic = {"model": MODEL, "max_tokens": 500, "messages": ASK, "tool_choice": {"type": "any"},
                 "tools": [{"name": "get_weather", "input_schema": STRICT["parameters"], "strict": True}]}  # fmt: skip
    message = (await client.post("/v1/messages", json=anthropic)).json()
    if message["stop_reason"] != "max_tokens":
        assert message["stop_reason"] == "tool_use"
        jsonschema.validate(message["content"][-1]["input"], STRICT["parameters"])


async def test_streams_are_constrained_too(client: httpx.AsyncClient) -> None:
    path, body = formats(PERSON)["chat"]
    chunks = sse_events((await client.post(path, json={**body, "stream": True})).text)
    text = "".join(chunk["choices"][0]["delta"].get("content") or "" for chunk in chunks)
    if chunks[-1]["choices"][0]["finish_reason"] == "stop":
        jsonschema.validate(json.loads(text), PERSON)


def wide(count: int) -> dict[str, Any]:
    return {"type": "object", "properties": {f"p{index}": {"type": "string"} for index in range(count)}}


HOSTILE: dict[str, dict[str, Any]] = {
    "not": {"not": {"type": "string"}},
    "if": {"if": {"type": "string"}, "then": {"const": "x"}},
    "unique": {"type": "array", "uniqueItems": True},
    "missing_reference": {"$ref": "#/$defs/absent"},
    "remote_reference": {"$ref": "http://example.com/schema.json"},
    "endless_reference": {"$ref": "#"},
    "unsatisfiable": {"type": "integer", "minimum": 3, "maximum": 2},
    "bad_pattern": {"type": "string", "pattern": "((("},
    "costly_pattern": {"type": "string", "pattern": "^((a{0,300}){0,300}){0,300}$"},
    "bad_type": {"type": "strange"},
    "too_wide": wide(5000),
    "too_fine": {"type": "number", "multipleOf": 0.000000123457},
    "long_enum_of_patterns": {"anyOf": [{"type": "string", "pattern": f"^(a|b)*a(a|b){{{n}}}$"} for n in range(40)]},
}


@pytest.mark.parametrize("name", HOSTILE)
async def test_what_cannot_be_enforced_is_a_400_soon(registry: Registry, name: str) -> None:
    app = build_app(ServerSettings(), loader=lambda _: uncooperative_llm(0), registry=registry)
    async with client_of(app) as client:
        await client.post("/v1/chat/completions", json={"model": MODEL, "messages": ASK, "max_tokens": 1})
        for path, body in formats(HOSTILE[name]).values():
            started = time.monotonic()
            response = await client.post(path, json=body)
            assert time.monotonic() - started < 10
            if name in ("long_enum_of_patterns", "endless_reference", "costly_pattern") and response.status_code == 200:
                continue
            assert response.status_code == 400, (path, response.text)
            error = response.json()["error"]
            assert isinstance(error, str if api_of(path) == "ollama" else dict)
