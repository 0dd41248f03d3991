"""Who is let in: hosts, origins, keys, and bodies within bounds."""

from __future__ import annotations

from collections.abc import AsyncIterator

import httpx
import pytest

from mlx_gptoss.errors import InvalidRequestError
from mlx_gptoss.registry import Registry
from mlx_gptoss.server.security import host_of
from mlx_gptoss.server.settings import ServerSettings, is_loopback
from tests.server.support import MODEL, client_of, scripted_app

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize(
    ("header", "host"),
    [("localhost:11434", "localhost"), ("[::1]:80", "::1"), ("::1", "::1"), ("Example.COM", "example.com"), ("", "")],
)
def test_host_of(header: str, host: str) -> None:
    assert host_of(header) == host


@pytest.mark.parametrize(
    ("host", "expected"),
    [("127.0.0.1", True), ("127.9.9.9", True), ("::1", True), ("localhost", True), ("app.localhost", True),
     ("0.0.0.0", False), ("192.168.1.2", False), ("localhost.evil.com", False), ("", False)],
)  # fmt: skip
def test_is_loopback(host: str, expected: bool) -> None:
    assert is_loopback(host) is expected


def test_beyond_loopback_needs_a_key() -> None:
    with pytest.raises(InvalidRequestError, match="API key"):
        ServerSettings(host="0.0.0.0")
    assert ServerSettings(host="0.0.0.0", api_key="k").api_key == "k"


@pytest.mark.parametrize("host", ["evil.com", "localhost.evil.com", "169.254.169.254", ""])
async def test_a_rebound_host_is_refused(registry: Registry, host: str) -> None:
    async with client_of(scripted_app(registry)) as client:
        response = await client.get("/api/tags", headers={"Host": host})
        assert response.status_code == 403
        assert "error" in response.json()


@pytest.mark.parametrize("host", ["localhost:11434", "[::1]:1", "host.docker.internal:11434", "Host.Docker.Internal"])
async def test_names_of_this_machine_are_let_in(registry: Registry, host: str) -> None:
    async with client_of(scripted_app(registry)) as client:
        assert (await client.get("/api/tags", headers={"Host": host})).status_code == 200


@pytest.mark.parametrize(
    "origin",
    ["https://evil.com", "http://localhost.evil.com", "null", "https://evil.com:11434", "x", "http://[", "http://[::1"],
)
async def test_a_foreign_page_is_refused(registry: Registry, origin: str) -> None:
    async with client_of(scripted_app(registry)) as client:
        body = {"model": MODEL, "prompt": "hi"}
        response = await client.post(
            "/api/generate", json=body, headers={"Origin": origin, "Content-Type": "text/plain"}
        )
        assert response.status_code == 403


@pytest.mark.parametrize(
    "origin", ["http://localhost:3000", "http://127.0.0.1", "tauri://localhost", "vscode-webview://x"]
)
async def test_local_pages_and_apps_are_let_in(registry: Registry, origin: str) -> None:
    async with client_of(scripted_app(registry)) as client:
        response = await client.get("/api/tags", headers={"Origin": origin})
        assert response.status_code == 200
        assert response.headers["access-control-allow-origin"] == origin
        asked = {
            "Origin": origin,
            "Access-Control-Request-Method": "POST",
            "Access-Control-Request-Headers": "content-type",
        }
        preflight = await client.options("/api/chat", headers=asked)
        assert preflight.status_code == 204
        assert preflight.headers["access-control-allow-headers"] == "content-type"


async def test_key_is_needed_where_one_is_set(registry: Registry) -> None:
    settings = ServerSettings(host="0.0.0.0", api_key="secret")
    async with client_of(scripted_app(registry, settings)) as client:
        assert (await client.get("/v1/models")).status_code == 401
        assert (await client.get("/v1/models", headers={"Authorization": "Bearer wrong"})).status_code == 401
        assert (
            await client.get("/v1/models", headers=[(b"Authorization", "Bearer s\u00e9cret".encode())])
        ).status_code == 401
        for headers in ({"Authorization": "Bearer secret"}, {"x-api-key": "secret"}):
            assert (await client.get("/v1/models", headers=headers)).status_code == 200
        assert (await client.get("/health", headers={"Host": "my-mac.lan"})).status_code == 200


async def test_a_page_that_is_let_in_can_read_why_it_was_refused(registry: Registry) -> None:
    settings = ServerSettings(api_key="sesame", warm_up=False)
    async with client_of(scripted_app(registry, settings)) as client:
        refused = await client.get("/v1/models", headers={"Origin": "http://localhost:3000"})
        assert refused.status_code == 401
        assert refused.headers["access-control-allow-origin"] == "http://localhost:3000"
        foreign = await client.get("/v1/models", headers={"Origin": "https://evil.com"})
        assert foreign.status_code == 403
        assert "access-control-allow-origin" not in foreign.headers


async def test_a_body_beyond_the_bound_is_refused(registry: Registry) -> None:
    settings = ServerSettings(max_body_bytes=1000)
    async with client_of(scripted_app(registry, settings)) as client:
        declared = await client.post("/api/chat", content=b"x" * 1001)
        assert declared.status_code == 413

        async def pieces() -> AsyncIterator[bytes]:
            for _ in range(20):
                yield b"x" * 100

        streamed = await client.post("/v1/chat/completions", content=pieces())
        assert streamed.status_code == 413
        assert streamed.json()["error"]["type"] == "invalid_request_error"


async def test_bounds_on_messages_tools_and_schemas(registry: Registry) -> None:
    settings = ServerSettings(max_messages=3, max_tools=2, max_schema_bytes=500, max_schema_depth=8)
    async with client_of(scripted_app(registry, settings)) as client:

        async def status(**fields: object) -> int:
            body = {"model": MODEL, "messages": [{"role": "user", "content": "hi"}], **fields}
            return (await client.post("/v1/chat/completions", json=body)).status_code

        assert await status() == 200
        assert await status(messages=[{"role": "user", "content": "hi"}] * 4) == 400
        tool = {"type": "function", "function": {"name": "f"}}
        assert await status(tools=[tool, tool, tool]) == 400
        deep: dict[str, object] = {"type": "string"}
        for _ in range(20):
            deep = {"type": "array", "items": deep}
        wide = {"type": "object", "properties": {f"p{index}": {"type": "string"} for index in range(100)}}
        for schema in (deep, wide):
            form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
            assert await status(response_format=form) == 400


async def test_unknown_paths_speak_the_apis_language(registry: Registry) -> None:
    async with client_of(scripted_app(registry)) as client:
        assert "error" in (await client.get("/api/nothing")).json()
        assert (await client.get("/v1/nothing")).json()["error"]["type"] == "not_found_error"
        wrong = await client.get("/v1/chat/completions")
        assert wrong.status_code == 405


async def test_health_and_metrics(registry: Registry) -> None:
    async with client_of(scripted_app(registry)) as client:
        body = {"model": MODEL, "messages": [{"role": "user", "content": "hi"}]}
        await client.post("/v1/chat/completions", json=body)
        assert (await client.get("/health")).json()["loaded"] == [MODEL]
        assert (await client.head("/health")).status_code == 200
        text = (await client.get("/metrics")).text
        assert 'mlx_gptoss_generations_total{finish_reason="stop"} 1.0' in text
        assert "mlx_gptoss_prefix_cache_bytes" in text


async def test_metrics_do_not_grow_with_what_clients_make_up(registry: Registry) -> None:
    async with client_of(scripted_app(registry)) as client:
        for index in range(3):
            await client.request(f"MADEUP{index}", f"/nothing/{index}")
        text = (await client.get("/metrics")).text
    assert 'mlx_gptoss_requests_total{method="other",route="other",status="404"} 3.0' in text
    assert "MADEUP" not in text


async def test_openapi_describes_every_route(registry: Registry) -> None:
    async with client_of(scripted_app(registry)) as client:
        document: dict[str, object] = (await client.get("/openapi.json")).json()
        paths = document["paths"]
        assert isinstance(paths, dict)
        assert {"/v1/chat/completions", "/v1/responses", "/v1/messages", "/api/chat", "/api/generate"} <= set(paths)
        assert isinstance(client, httpx.AsyncClient)
