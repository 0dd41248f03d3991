"""Who may talk to the server: Host and Origin checks, the API key, and bounds on what a client sends."""

from __future__ import annotations

import asyncio
import hmac
import json
from collections.abc import Mapping
from urllib.parse import urlsplit

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mlx_gptoss.server.failure import Failure, api_of, body_of
from mlx_gptoss.server.settings import ServerSettings, is_loopback

# Desktop programs' web views: no web site can claim these schemes.
_APP_SCHEMES = frozenset({"app", "file", "tauri", "vscode-webview", "vscode-file"})
# What a container calls the machine it runs on. Nobody can register a name below `internal`, so none of these can be
# made to point here from outside.
_CONTAINER_HOSTS = frozenset({"host.docker.internal", "gateway.docker.internal", "host.containers.internal"})
_OPEN_PATHS = frozenset({"/", "/health"})


def host_of(value: str) -> str:
    """The host part of a Host header, lower case, without port and brackets."""
    value = value.strip().lower()
    if value.startswith("["):
        return value[1:].partition("]")[0]
    return value.rsplit(":", 1)[0] if value.count(":") == 1 else value


class Gate:
    """Pure ASGI middleware: lets a request through or answers it with the API's own error shape.

    A page on some web site can make a browser send requests to this machine, under its own Origin or, after DNS
    rebinding, under its own Host; both are refused here, before a route sees the request.
    """

    def __init__(self, app: ASGIApp, settings: ServerSettings) -> None:
        self.app = app
        self.settings = settings

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        origin = headers.get("origin")
        failure = self._refusal(scope, headers, origin)
        # A page that may come in may also read why its request was refused.
        reader = _cors(origin) if origin is not None and self._origin_allowed(origin) else []
        if failure is not None:
            await _answer(scope, send, failure, reader)
            return
        if scope["method"] == "OPTIONS" and origin is not None and "access-control-request-method" in headers:
            await _preflight(send, origin, headers)
            return
        limited = _LimitedBody(receive, self.settings.max_body_bytes, self.settings.body_timeout_s)
        started = False

        async def send_with_cors(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                if origin is not None:
                    message["headers"] = [*message.get("headers", []), *_cors(origin)]
            # A client that stops reading must not hold the engine: its answer is dropped after a while.
            await asyncio.wait_for(send(message), self.settings.idle_send_s)

        try:
            await self.app(scope, limited, send_with_cors)
        except BodyRefusedError as error:
            if not started:
                await _answer(scope, send, error.failure, reader)
        except TimeoutError:
            if not started:
                raise

    def _refusal(self, scope: Scope, headers: Mapping[str, str], origin: str | None) -> Failure | None:
        settings = self.settings
        host = host_of(headers.get("host", ""))
        # An API key proves the client as well as the Host header does, and servers beyond loopback have many names.
        if settings.api_key is None and not (
            is_loopback(host)
            or host in _CONTAINER_HOSTS
            or host == settings.host.strip("[]").lower()
            or host in settings.allowed_hosts
        ):
            return Failure(403, f"host {host[:100]!r} is not allowed; start the server with --allow-host to accept it")
        if origin is not None and not self._origin_allowed(origin):
            return Failure(
                403, f"origin {origin[:100]!r} is not allowed; start the server with --allow-origin to accept it"
            )
        length = headers.get("content-length", "0")
        if not length.isdigit():
            return Failure(400, "Content-Length is not a number")
        if int(length) > settings.max_body_bytes:
            return Failure(413, f"the request is larger than {settings.max_body_bytes} bytes")
        preflight = scope["method"] == "OPTIONS"
        if settings.api_key is not None and scope["path"] not in _OPEN_PATHS and not preflight:
            given = headers.get("x-api-key") or headers.get("authorization", "").partition(" ")[2]
            if not hmac.compare_digest(given.strip().encode(), settings.api_key.encode()):
                return Failure(401, "missing or wrong API key", code="invalid_api_key")
        return None

    def _origin_allowed(self, origin: str) -> bool:
        if origin in self.settings.allowed_origins or "*" in self.settings.allowed_origins:
            return True
        try:
            parts = urlsplit(origin)
        except ValueError:  # an address in brackets that is none
            return False
        if parts.scheme in _APP_SCHEMES:
            return True
        return parts.scheme in {"http", "https"} and is_loopback(parts.hostname or "")


class BodyRefusedError(Exception):
    """A body is too large or came too slowly; `Gate` answers it."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.message)
        self.failure = failure


class _LimitedBody:
    """A `receive` that stops a body which is too large or comes too slowly."""

    def __init__(self, receive: Receive, limit: int, timeout_s: float) -> None:
        self._receive = receive
        self._limit = limit
        self._timeout_s = timeout_s
        self._deadline: float | None = None
        self._seen = 0
        self._complete = False

    async def __call__(self) -> Message:
        if self._complete:
            return await self._receive()
        now = asyncio.get_running_loop().time()
        if self._deadline is None:
            self._deadline = now + self._timeout_s
        try:
            message = await asyncio.wait_for(self._receive(), max(self._deadline - now, 0.0))
        except TimeoutError:
            raise BodyRefusedError(Failure(408, "the request body did not arrive in time")) from None
        if message["type"] == "http.request":
            self._seen += len(message.get("body", b""))
            if self._seen > self._limit:
                raise BodyRefusedError(Failure(413, f"the request is larger than {self._limit} bytes"))
            self._complete = not message.get("more_body", False)
        return message


async def _answer(scope: Scope, send: Send, failure: Failure, more: list[tuple[bytes, bytes]]) -> None:
    body = json.dumps(body_of(failure, api_of(scope["path"]))).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode()), *more]
    if failure.status in (408, 413):
        # The rest of the body is not read, so nothing can follow on this connection.
        headers.append((b"connection", b"close"))
    await send({"type": "http.response.start", "status": failure.status, "headers": headers})
    await send({"type": "http.response.body", "body": body if scope["method"] != "HEAD" else b""})


def _cors(origin: str) -> list[tuple[bytes, bytes]]:
    return [(b"access-control-allow-origin", origin.encode("latin-1")), (b"vary", b"Origin")]


async def _preflight(send: Send, origin: str, headers: Mapping[str, str]) -> None:
    asked = headers.get("access-control-request-headers", "")
    answer = [
        *_cors(origin),
        (b"access-control-allow-methods", b"GET, HEAD, POST, DELETE, OPTIONS"),
        (b"access-control-allow-headers", asked.encode("latin-1")),
        (b"access-control-max-age", b"600"),
        (b"content-length", b"0"),
    ]
    await send({"type": "http.response.start", "status": 204, "headers": answer})
    await send({"type": "http.response.body", "body": b""})
