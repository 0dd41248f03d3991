"""schemathesis against the server's own OpenAPI document: no 5xx, and what comes back is what the document says."""

from __future__ import annotations

from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis.checks import not_a_server_error, response_schema_conformance, status_code_conformance
from starlette.testclient import TestClient

from mlx_gptoss.errors import ModelNotFoundError
from mlx_gptoss.registry import Registry
from mlx_gptoss.server.routes import ollama_models
from tests.server.support import MODEL, scripted_app

OPERATIONS = [
    ("GET", "/"), ("GET", "/health"), ("GET", "/metrics"), ("GET", "/api/version"), ("GET", "/api/tags"),
    ("GET", "/api/ps"), ("POST", "/api/show"), ("POST", "/api/pull"), ("POST", "/api/copy"), ("DELETE", "/api/delete"),
    ("POST", "/api/create"), ("POST", "/api/embed"), ("POST", "/api/embeddings"), ("POST", "/api/generate"),
    ("POST", "/api/chat"), ("POST", "/v1/chat/completions"), ("POST", "/v1/completions"), ("GET", "/v1/models"),
    ("GET", "/v1/models/{name}"), ("POST", "/v1/responses"), ("GET", "/v1/responses/{identifier}"),
    ("DELETE", "/v1/responses/{identifier}"), ("POST", "/v1/responses/{identifier}/cancel"),
    ("GET", "/v1/responses/{identifier}/input_items"), ("POST", "/v1/messages"), ("POST", "/v1/messages/count_tokens"),
]  # fmt: skip
CHECKS = (not_a_server_error, status_code_conformance, response_schema_conformance)


@pytest.fixture(scope="module")
def server(registry: Registry) -> Any:
    def absent(name: str, **options: Any) -> None:
        raise ModelNotFoundError(f"no model {name!r} on the hub")

    app = scripted_app(registry, context=700)
    with pytest.MonkeyPatch.context() as patch, TestClient(app, base_url="http://127.0.0.1") as client:
        patch.setattr(ollama_models, "pull", absent)
        yield client, schemathesis.openapi.from_dict(client.get("/openapi.json").json())


def test_every_operation_is_fuzzed(server: Any) -> None:
    listed = [
        (method.upper(), path)
        for path, item in server[1].raw_schema["paths"].items()
        for method in item
        if method in ("get", "post", "put", "delete", "patch")
    ]
    assert sorted(listed) == sorted(OPERATIONS)


@pytest.mark.parametrize(("method", "path"), OPERATIONS, ids=[f"{method} {path}" for method, path in OPERATIONS])
def test_operation(server: Any, method: str, path: str) -> None:
    client, schema = server
    operation = schema[path][method]

    @settings(
        max_examples=25, deadline=None, derandomize=True, database=None, phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(case=operation.as_strategy())
    def run(case: Any) -> None:
        if isinstance(case.body, dict) and "model" in case.body:
            # An unknown model would end most requests early.
            case.body["model"] = MODEL
        case.call_and_validate(session=client, base_url="http://127.0.0.1", checks=list(CHECKS))

    run()
