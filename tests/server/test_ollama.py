"""Ollama's API over a scripted model."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from mlx_gptoss.llm import GptOss
from mlx_gptoss.registry import Registry
from tests.server.support import MODEL, WEATHER_TOOL, client_of, lines_of, scripted_app

pytestmark = pytest.mark.anyio


@pytest.fixture
async def client(registry: Registry) -> AsyncIterator[httpx.AsyncClient]:
    async with client_of(scripted_app(registry)) as found:
        yield found


async def chat(client: httpx.AsyncClient, text: str, **fields: Any) -> httpx.Response:
    body = {"model": MODEL, "messages": [{"role": "user", "content": text}], **fields}
    return await client.post("/api/chat", json=body)


async def test_the_port_says_what_clients_look_for(client: httpx.AsyncClient) -> None:
    assert (await client.get("/")).text == "Ollama is running"
    assert (await client.head("/")).status_code == 200
    assert (await client.get("/api/version")).json()["version"].count(".") == 2


async def test_chat_streams_by_default(client: httpx.AsyncClient) -> None:
    response = await chat(client, "hi")
    assert response.headers["content-type"].startswith("application/x-ndjson")
    lines = lines_of(response.text)
    assert "".join(line["message"]["content"] for line in lines) == "Hello there!"
    assert "".join(line["message"].get("thinking", "") for line in lines) == "They greet me."
    assert [line["done"] for line in lines] == [False] * (len(lines) - 1) + [True]
    last = lines[-1]
    assert last["done_reason"] == "stop"
    for key in (
        "total_duration",
        "load_duration",
        "prompt_eval_count",
        "prompt_eval_duration",
        "eval_count",
        "eval_duration",
    ):
        assert isinstance(last[key], int)
    assert last["total_duration"] > 1_000


async def test_chat_whole(client: httpx.AsyncClient) -> None:
    answer = (await chat(client, "hi", stream=False)).json()
    assert answer["message"] == {"role": "assistant", "content": "Hello there!", "thinking": "They greet me."}
    assert answer["done"] is True


async def test_think_false_hides_thinking(client: httpx.AsyncClient) -> None:
    answer = (await chat(client, "hi", stream=False, think=False)).json()
    assert "thinking" not in answer["message"]
    for think in (True, "low", "medium", "high"):
        assert (await chat(client, "hi", stream=False, think=think)).json()["message"]["thinking"]
    assert (await chat(client, "hi", think="extreme")).status_code == 400


async def test_tool_call_arguments_are_an_object(client: httpx.AsyncClient) -> None:
    answer = (await chat(client, "weather?", stream=False, tools=[WEATHER_TOOL])).json()
    call = answer["message"]["tool_calls"][0]
    assert call["function"] == {"index": 0, "name": "get_weather", "arguments": {"city": "Paris"}}
    # Ollama's client returns calls without ids, and results by name or by order only.
    messages = [
        {"role": "user", "content": "weather?"},
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [{"function": {"name": "get_weather", "arguments": {"city": "Paris"}}}],
        },
        {"role": "tool", "content": "18 C"},
    ]
    body = {"model": MODEL, "messages": messages, "tools": [WEATHER_TOOL], "stream": False}
    assert (await client.post("/api/chat", json=body)).json()["message"]["content"] == "It is sunny."


async def test_arguments_that_are_no_object_are_still_delivered(client: httpx.AsyncClient) -> None:
    response = await chat(client, "broken call", stream=False, tools=[WEATHER_TOOL])
    assert response.status_code == 200
    assert isinstance(response.json()["message"]["tool_calls"][0]["function"]["arguments"], dict)


async def test_generate_gives_a_context_that_goes_on(client: httpx.AsyncClient) -> None:
    first = (await client.post("/api/generate", json={"model": MODEL, "prompt": "hi", "stream": False})).json()
    assert (first["response"], first["thinking"]) == ("Hello there!", "They greet me.")
    body = {"model": MODEL, "prompt": "weather?", "context": first["context"], "stream": False}
    second = (await client.post("/api/generate", json=body)).json()
    assert second["context"][: len(first["context"])] == first["context"]
    assert second["prompt_eval_count"] > len(first["context"])


async def test_generate_without_a_prompt_loads_and_unloads(client: httpx.AsyncClient) -> None:
    assert (await client.post("/api/generate", json={"model": MODEL})).json()["done_reason"] == "load"
    loaded = (await client.get("/api/ps")).json()["models"]
    assert [model["name"] for model in loaded] == [f"{MODEL}:latest"]
    assert (await client.post("/api/generate", json={"model": MODEL, "keep_alive": 0})).json()[
        "done_reason"
    ] == "unload"
    assert (await client.get("/api/ps")).json() == {"models": []}


async def test_keep_alive_zero_unloads_after_the_answer(client: httpx.AsyncClient) -> None:
    await chat(client, "hi", keep_alive=0)
    assert (await client.get("/api/ps")).json() == {"models": []}


async def test_keep_alive_zero_loads_once(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    app = scripted_app(registry)
    manager = app.state.service.models
    loaded: list[str] = []
    loader = manager._loader

    def counting(name: str, /) -> GptOss:
        loaded.append(name)
        model: GptOss = loader(name)
        return model

    monkeypatch.setattr(manager, "_loader", counting)
    async with client_of(app) as client:
        body = {"model": MODEL, "prompt": "hi", "keep_alive": 0, "stream": False}
        assert (await client.post("/api/generate", json=body)).status_code == 200
        assert loaded == [MODEL]
        assert (await client.get("/api/ps")).json() == {"models": []}


async def test_a_model_kept_for_thousands_of_years_is_listed(client: httpx.AsyncClient) -> None:
    await chat(client, "hi", keep_alive=1e12)
    assert [model["expires_at"][:4] for model in (await client.get("/api/ps")).json()["models"]] == ["9999"]


async def test_raw_is_plain_text(client: httpx.AsyncClient) -> None:
    body = {"model": MODEL, "prompt": "plain", "raw": True, "stream": False, "options": {"num_predict": 4}}
    answer = await client.post("/api/generate", json=body)
    assert answer.status_code == 200
    assert "context" not in answer.json()
    assert (await client.post("/api/generate", json={**body, "prompt": ""})).json()["done_reason"] == "load"


async def test_null_is_as_good_as_absent(client: httpx.AsyncClient) -> None:
    nothing = {"options": None, "format": None, "keep_alive": None, "think": None, "stream": False}
    assert (await client.post("/api/chat", json={"model": MODEL, "messages": None, **nothing})).json()["done"]
    assert (await client.post("/api/generate", json={"model": MODEL, "prompt": None, **nothing})).json()["done"]
    assert (await client.post("/api/show", json={"model": MODEL, "name": None})).status_code == 200


async def test_whole_numbers_may_be_written_with_a_point(client: httpx.AsyncClient) -> None:
    answer = (await chat(client, "hi", stream=False, options={"num_predict": 3.0, "top_k": 40.0})).json()
    assert (answer["eval_count"], answer["done_reason"]) == (3, "length")


@pytest.mark.parametrize(
    ("path", "fields", "part"),
    [
        ("/api/generate", {"prompt": "x", "suffix": "y"}, "suffix"),
        ("/api/generate", {"prompt": "x", "template": "{{ .Prompt }}!"}, "template"),
        ("/api/generate", {"prompt": "x", "raw": True, "context": [1]}, "raw mode"),
        ("/api/generate", {"prompt": "x", "raw": True, "system": "s"}, "raw mode"),
        ("/api/generate", {"prompt": "x", "options": {"num_predict": 2.5}}, "num_predict"),
        ("/api/generate", {"prompt": "x", "images": ["aGk="]}, "text only"),
        ("/api/generate", {"prompt": "x", "format": "xml"}, "format"),
        ("/api/generate", {"prompt": "x", "options": {"temperature": "hot"}}, "temperature"),
        ("/api/generate", {"prompt": "x", "options": {"seed": 1.5}}, "seed"),
        ("/api/generate", {"prompt": "x", "options": {"temperature": 10**400}}, "temperature"),
        ("/api/generate", {"prompt": "x", "keep_alive": 10**400}, "duration"),
        ("/api/create", {"name": "bad", "from": MODEL, "parameters": {"temperature": "hot"}}, "temperature"),
        ("/api/generate", {"prompt": "x", "keep_alive": "soon"}, "duration"),
        ("/api/chat", {"messages": [{"role": "alien", "content": "x"}]}, "role"),
        ("/api/embed", {"input": "x"}, "embeddings"),
        ("/api/create", {"model": "a/new"}, "from"),
    ],
)
async def test_refusals_are_one_line(client: httpx.AsyncClient, path: str, fields: dict[str, Any], part: str) -> None:
    response = await client.post(path, json={"model": MODEL, **fields})
    assert response.status_code == 400
    assert part in response.json()["error"]
    assert set(response.json()) == {"error"}


async def test_unknown_model_is_404(client: httpx.AsyncClient) -> None:
    response = await client.post("/api/chat", json={"model": "absent", "messages": [{"role": "user", "content": "x"}]})
    assert response.status_code == 404
    assert "absent" in response.json()["error"]


async def test_tags_show_and_models_agree(client: httpx.AsyncClient) -> None:
    tag = (await client.get("/api/tags")).json()["models"][0]
    assert tag["name"] == f"{MODEL}:latest"
    shown = (await client.post("/api/show", json={"model": tag["name"]})).json()
    assert shown["details"] == tag["details"]
    assert "thinking" in shown["capabilities"]
    assert shown["model_info"]["general.architecture"] == "gptoss"
    listed = (await client.get("/v1/models")).json()["data"]
    assert MODEL in [model["id"] for model in listed]
    assert (await client.get(f"/v1/models/{MODEL}")).json()["id"] == MODEL


async def test_an_alias_has_its_own_system_prompt_and_parameters(client: httpx.AsyncClient) -> None:
    created = {"model": "pirate", "from": MODEL, "system": "Talk like a pirate.", "parameters": {"num_predict": 5}}
    assert lines_of((await client.post("/api/create", json=created)).text)[-1] == {"status": "success"}
    plain = (await chat(client, "hi", stream=False)).json()
    answer = (await chat(client, "hi", stream=False, model="pirate")).json()
    assert answer["prompt_eval_count"] > plain["prompt_eval_count"]
    assert (answer["eval_count"], answer["done_reason"]) == (5, "length")
    assert (await client.post("/api/copy", json={"source": "pirate", "destination": "corsair"})).status_code == 200
    names = {model["name"] for model in (await client.get("/api/tags")).json()["models"]}
    assert {"pirate:latest", "corsair:latest"} <= names
    for name in ("pirate", "corsair"):
        assert (await client.request("DELETE", "/api/delete", json={"model": name})).status_code == 200
    assert (await client.request("DELETE", "/api/delete", json={"model": "pirate"})).status_code == 404
