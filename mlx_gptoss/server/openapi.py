"""What the OpenAPI document says of answers: one helper for the routes, one pass over the finished document."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI

from mlx_gptoss.server.failure import Api, api_of

_METHODS = ("get", "put", "post", "delete", "options", "head", "patch")
_TEXT: Mapping[str, Any] = {"type": "string"}
_ERROR_DETAILS: Mapping[str, Any] = {
    "type": "object",
    "required": ["message", "type"],
    "properties": {
        "message": _TEXT,
        "type": _TEXT,
        "param": {"type": ["string", "null"]},
        "code": {"type": ["string", "null"]},
    },
}
_ERRORS: Mapping[Api, Mapping[str, Any]] = {
    "ollama": {"type": "object", "required": ["error"], "properties": {"error": _TEXT}},
    "openai": {"type": "object", "required": ["error"], "properties": {"error": _ERROR_DETAILS}},
    "anthropic": {
        "type": "object",
        "required": ["type", "error"],
        "properties": {"type": {"const": "error"}, "error": _ERROR_DETAILS},
    },
}
_FAILURES: Mapping[str, str] = {
    "400": "The request cannot succeed as it is.",
    "401": "The API key is missing or wrong.",
    "403": "The Host or Origin header is not allowed.",
    "404": "No such model, response or path.",
    "405": "The path has no such method.",
    "408": "The body did not arrive in time.",
    "413": "The body is too large.",
    "502": "The hub could not be reached.",
    "503": "The queue is full or the server is stopping; Retry-After says when to come back.",
}


def answers(
    *required: str, stream: str | None = None, kind: str = "application/json", description: str = "The answer."
) -> dict[int | str, dict[str, Any]]:
    """`responses` of a route: an object with these fields, or text of another `kind`; `stream` is the media type of
    the streaming form."""
    schema: dict[str, Any] = {"type": "string"}
    if kind == "application/json":
        schema = {"type": "object", "required": list(required)}
    content = {kind: {"schema": schema}}
    if stream is not None:
        content[stream] = {"schema": dict(_TEXT)}
    return {200: {"description": description, "content": content}}


def document_failures(app: FastAPI) -> None:
    """Make the application's document name, for each operation, the errors in that API's own shape."""
    generate = app.openapi

    def openapi() -> dict[str, Any]:
        made = app.openapi_schema is None
        document: dict[str, Any] = generate()
        if made:
            for path, item in document["paths"].items():
                schema = _ERRORS[api_of(path)]
                for method in _METHODS:
                    if method in item:
                        _add_failures(item[method]["responses"], schema)
        return document

    app.openapi = openapi  # type: ignore[method-assign]  # the framework's documented way to change the document


def _add_failures(responses: dict[str, Any], schema: Mapping[str, Any]) -> None:
    responses.pop("422", None)
    for status, description in _FAILURES.items():
        responses.setdefault(
            status, {"description": description, "content": {"application/json": {"schema": dict(schema)}}}
        )
