"""Errors as each API words them: one internal failure, three JSON shapes."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError
from starlette.requests import ClientDisconnect

from mlx_gptoss.errors import (
    CancelledError,
    ContextOverflowError,
    DownloadError,
    EngineClosedError,
    GptOssError,
    InsufficientDiskError,
    InsufficientMemoryError,
    InvalidRequestError,
    ModelNotFoundError,
    QueueFullError,
)
from mlx_gptoss.server.response_store import PreviousResponseError, ResponseNotFoundError

Api: TypeAlias = Literal["ollama", "openai", "anthropic"]

_TYPE = re.compile(r"(?:str|int|float|bool|constrained-\w+|(?:dict|list|function)(?:\[|-).*)$")
_OPENAI_TYPES: Mapping[int, str] = {401: "authentication_error", 403: "permission_error", 404: "not_found_error"}
_ANTHROPIC_TYPES: Mapping[int, str] = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
}


@dataclass(frozen=True, slots=True)
class Failure:
    """What went wrong with a request: HTTP status, one line, and the field and code where the API has them."""

    status: int
    message: str
    param: str | None = None
    code: str | None = None
    retry_after: float | None = None

    @property
    def headers(self) -> dict[str, str]:
        return {} if self.retry_after is None else {"Retry-After": str(max(1, round(self.retry_after)))}


def api_of(path: str) -> Api:
    """Which API's error shape a path speaks."""
    if path.startswith("/v1/messages"):
        return "anthropic"
    if path.startswith("/v1/"):
        return "openai"
    return "ollama"


def body_of(failure: Failure, api: Api) -> dict[str, Any]:
    """The JSON body of a failure in that API's own shape."""
    if api == "ollama":
        return {"error": failure.message}
    if api == "anthropic":
        kind = _ANTHROPIC_TYPES.get(failure.status, "api_error")
        return {"type": "error", "error": {"type": kind, "message": failure.message}}
    kind = _OPENAI_TYPES.get(failure.status, "invalid_request_error" if failure.status < 500 else "server_error")
    return {"error": {"message": failure.message, "type": kind, "param": failure.param, "code": failure.code}}


def _invalid(problem: Mapping[str, Any]) -> Failure:
    """The failure for pydantic's description of a field that does not fit."""
    parts = [str(part) for part in problem["loc"]]
    # Where a field may be of several types, the description names the one that came closest.
    while len(parts) > 1 and _TYPE.match(parts[-1]):
        parts.pop()
    where = ".".join(parts)
    message = " ".join(f"{where or 'body'}: {problem['msg']}".split())
    return Failure(400, message, param=where or None)


def failure_of(error: Exception) -> Failure:
    """The failure an exception stands for. Anything unforeseen is a 500 that reveals no internals."""
    if isinstance(error, ValidationError):
        return _invalid(error.errors(include_url=False, include_context=False, include_input=False)[0])
    if isinstance(error, RequestValidationError):
        first = dict(error.errors()[0])
        return _invalid({**first, "loc": first.get("loc", ())[1:]})
    if isinstance(error, ContextOverflowError):
        return Failure(400, str(error), param=error.param or "messages", code="context_length_exceeded")
    if isinstance(error, PreviousResponseError):
        return Failure(400, str(error), param=error.param, code="previous_response_not_found")
    if isinstance(error, InvalidRequestError):
        return Failure(400, str(error), param=error.param)
    if isinstance(error, InsufficientMemoryError):
        return Failure(400, str(error), code="insufficient_memory")
    if isinstance(error, ModelNotFoundError):
        return Failure(404, str(error), param="model", code="model_not_found")
    if isinstance(error, ResponseNotFoundError):
        return Failure(404, str(error), param="response_id", code="response_not_found")
    if isinstance(error, QueueFullError):
        return Failure(503, str(error), code="queue_full", retry_after=error.retry_after)
    if isinstance(error, EngineClosedError):
        return Failure(503, str(error), code="unavailable", retry_after=1.0)
    if isinstance(error, CancelledError | ClientDisconnect):
        return Failure(499, str(error), code="cancelled")
    if isinstance(error, DownloadError):
        return Failure(502, str(error), code="download_failed")
    if isinstance(error, InsufficientDiskError):
        return Failure(507, str(error), code="insufficient_disk")
    if isinstance(error, GptOssError):
        return Failure(500, str(error), code="internal")
    return Failure(500, f"unexpected {type(error).__name__}; the server's log has the details", code="internal")
