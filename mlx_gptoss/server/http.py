"""What every route needs: the body as a validated model, answers in the API's shape, and the streaming framings."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator, Mapping
from typing import Any, TypeVar

from fastapi.responses import JSONResponse, StreamingResponse
from pydantic import BaseModel
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mlx_gptoss.server.failure import Failure, api_of, body_of, failure_of
from mlx_gptoss.server.json_body import parse_object
from mlx_gptoss.server.logs import LOGGER
from mlx_gptoss.server.security import BodyRefusedError
from mlx_gptoss.server.service import GenerationService

Body = TypeVar("Body", bound=BaseModel)

SSE = "text/event-stream"
NDJSON = "application/x-ndjson"
# Next line, line separator and paragraph separator; JSON itself escapes the other line ends.
_LINE_ENDS = re.compile("[\x85\u2028\u2029]")


def service_of(request: Request) -> GenerationService:
    """The generation service of the application that handles this request."""
    service = request.app.state.service
    if not isinstance(service, GenerationService):
        raise TypeError("the application has no generation service")
    return service


async def read_body(request: Request, model: type[Body]) -> Body:
    """The JSON body as a pydantic model. Content-Type is not looked at: curl -d sends a wrong one.

    Raises InvalidRequestError for what is not JSON and pydantic's ValidationError for what does not fit.
    """
    return model.model_validate(parse_object(await request.body()))


def body_schema(model: type[BaseModel]) -> dict[str, Any]:
    """`openapi_extra` for a route that reads its body with `read_body`."""
    schema = model.model_json_schema(ref_template="#/components/schemas/{model}")
    schema.pop("$defs", None)
    inline = model.model_json_schema()
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": _inlined(inline)}}}}


def _inlined(schema: dict[str, Any]) -> dict[str, Any]:
    """A schema without `$defs`: references replaced by what they name, recursive ones by an open object."""
    definitions = schema.pop("$defs", {})

    def walk(node: Any, above: tuple[str, ...]) -> Any:
        if isinstance(node, list):
            return [walk(item, above) for item in node]
        if not isinstance(node, dict):
            return node
        reference = node.get("$ref")
        if isinstance(reference, str):
            name = reference.rsplit("/", 1)[-1]
            return {} if name in above else walk(definitions.get(name, {}), (*above, name))
        return {key: walk(value, above) for key, value in node.items()}

    walked = walk(schema, ())
    return walked if isinstance(walked, dict) else {}


def failure_response(request: Request, error: Exception) -> JSONResponse:
    """An exception as that API's error answer; what was not foreseen is logged with its traceback."""
    failure = failure_of(error)
    if failure.status >= 500 and failure.code == "internal":
        LOGGER.exception("request failed", exc_info=error)
    api = api_of(request.url.path)
    return JSONResponse(body_of(failure, api), status_code=failure.status, headers=failure.headers)


class Unforeseen:
    """Pure ASGI middleware: answers what no handler foresaw, and keeps the connection.

    The framework's own last resort raises again after it has answered, and the HTTP server then drops the connection
    under the client's next request.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        started = False

        async def watch(message: Message) -> None:
            nonlocal started
            started = started or message["type"] == "http.response.start"
            await send(message)

        try:
            await self.app(scope, receive, watch)
        except (BodyRefusedError, TimeoutError):
            raise
        except Exception as error:
            if started or scope["type"] != "http":
                raise
            await failure_response(Request(scope), error)(scope, receive, send)


def _one_line(data: Mapping[str, Any]) -> str:
    """JSON that every client takes for one line: many split text at Unicode's line ends as well."""
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"))
    return _LINE_ENDS.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def sse(data: Mapping[str, Any] | str, event: str | None = None) -> str:
    """One server-sent event."""
    text = data if isinstance(data, str) else _one_line(data)
    return f"event: {event}\ndata: {text}\n\n" if event is not None else f"data: {text}\n\n"


def ndjson(data: Mapping[str, Any]) -> str:
    """One line of newline-delimited JSON."""
    return _one_line(data) + "\n"


def streaming(chunks: AsyncIterator[str], media_type: str) -> StreamingResponse:
    """A streaming answer that no proxy should buffer."""
    headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
    return StreamingResponse(chunks, media_type=media_type, headers=headers)


def stream_failure(error: Exception) -> Failure:
    """The failure to report inside a stream that has already begun."""
    failure = failure_of(error)
    if failure.code == "internal":
        LOGGER.exception("stream failed", exc_info=error)
    return failure
