"""schemathesis against the server's own OpenAPI document: no 5xx, and what comes back is what the document says."""

from __future__ import annotations

from typing import Any

import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis.checks import not_a_server_error, response_schema_conformance, status_code_conformance

from mlx_gptoss.errors import ModelNotFoundError
from mlx_gptoss.registry import Registry
from mlx_gptoss.server import pulling
from mlx_gptoss.server.settings import ServerSettings
from tests.server.live import live
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

    limits = ServerSettings(shutdown_s=0.2, warm_up=False)
    app = scripted_app(registry, limits, context=700)
    with pytest.MonkeyPatch.context() as patch, live(app, limits) as running, requests.Session() as session:
        patch.setattr(pulling, "pull", absent)
        yield session, schemathesis.openapi.from_url(f"{running.url}/openapi.json")


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
    session, schema = server
    operation = schema[path][method]

    @settings(
        max_examples=15, deadline=None, derandomize=True, database=None, phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(case=operation.as_strategy())
    def run(case: Any) -> None:
        if isinstance(case.body, dict) and "model" in case.body:
            # An unknown model would end most requests early.
            case.body["model"] = MODEL
        case.call_and_validate(session=session, checks=list(CHECKS))

    run()
