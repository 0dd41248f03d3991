"""Which models a server lists, names and deletes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import pytest

from mlx_gptoss.registry import Registry
from mlx_gptoss.server.app import build_app
from mlx_gptoss.server.settings import ServerSettings
from tests.server.support import MODEL, client_of, scripted_llm

pytestmark = pytest.mark.anyio
HI = {"messages": [{"role": "user", "content": "hi"}], "stream": False}


def app_of(registry: Registry, default: str | None) -> Any:
    settings = ServerSettings(default_model=default, warm_up=False)
    return build_app(settings, loader=lambda name: scripted_llm(), registry=registry)


async def names(client: httpx.AsyncClient) -> list[str]:
    return [model["name"] for model in (await client.get("/api/tags")).json()["models"]]


async def test_the_demo_is_listed_and_copied_before_its_first_use(tmp_path: Path) -> None:
    async with client_of(app_of(Registry(tmp_path), "demo")) as client:
        listed = (await client.get("/v1/models")).json()["data"]
        assert [model["id"] for model in listed] == ["demo"]
        assert await names(client) == ["demo:latest"]
        gone = await client.request("DELETE", "/api/delete", json={"model": "demo"})
        assert gone.status_code == 200
        made = {"model": "mine", "from": "demo", "system": "Be kind.", "stream": False}
        assert (await client.post("/api/create", json=made)).json() == {"status": "success"}
        assert sorted(await names(client)) == ["demo:latest", "mine:latest"]


async def test_a_default_folder_is_listed_under_a_name_that_works(registry: Registry) -> None:
    folder = str(registry.model_folder(MODEL))
    async with client_of(app_of(Registry(registry.home / "elsewhere"), folder)) as client:
        (name,) = await names(client)
        (listed,) = (await client.get("/v1/models")).json()["data"]
        for known in (name, listed["id"]):
            assert (await client.post("/api/chat", json={"model": known, **HI})).status_code == 200
            assert (await client.post("/api/show", json={"model": known})).status_code == 200


async def test_a_copied_model_is_not_deleted_under_its_copy(registry: Registry) -> None:
    async with client_of(app_of(registry, None)) as client:
        assert (await client.post("/api/copy", json={"source": MODEL, "destination": "kept"})).status_code == 200
        refused = await client.request("DELETE", "/api/delete", json={"model": MODEL})
        assert (refused.status_code, "kept" in refused.json()["error"]) == (400, True)
        assert (await client.post("/api/chat", json={"model": "kept", **HI})).status_code == 200
        assert (await client.request("DELETE", "/api/delete", json={"model": "kept"})).status_code == 200


@pytest.mark.parametrize("field", ["files", "adapters", "messages", "template", "quantize"])
async def test_what_create_cannot_do_is_refused(registry: Registry, field: str) -> None:
    value: Any = {"files": {"a": "b"}, "adapters": {"a": "b"}, "messages": [{"role": "user", "content": "x"}]}
    body = {"model": "mine", "from": MODEL, field: value.get(field, "x")}
    async with client_of(app_of(registry, None)) as client:
        assert (await client.post("/api/create", json=body)).status_code == 400
        assert (await client.post("/api/create", json={**body, field: None, "stream": False})).status_code == 200
