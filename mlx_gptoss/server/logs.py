"""One structured line a request, on the logger `mlx_gptoss.server`; no prompt text unless asked for."""

from __future__ import annotations

import json
import logging
import time
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mlx_gptoss.server.metrics import Metrics

_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
LOGGER = logging.getLogger("mlx_gptoss.server")


class RequestLog:
    """Pure ASGI middleware: logs method, path, status, seconds and whatever a route noted in `scope["state"]`."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self.app = app
        self.metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started = time.perf_counter()
        status = 0

        async def watch(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        scope.setdefault("state", {})
        try:
            await self.app(scope, receive, watch)
        finally:
            # An unknown path or method must not create a time series of its own.
            route = getattr(scope.get("route"), "path", "other")
            method = scope["method"] if scope["method"] in _METHODS else "other"
            self.metrics.requests.labels(method, route, str(status or 499)).inc()
            line: dict[str, Any] = {
                "method": scope["method"],
                "path": scope["path"],
                "status": status or 499,
                "seconds": round(time.perf_counter() - started, 4),
            }
            noted = scope["state"].get("log")
            if isinstance(noted, dict):
                line.update(noted)
            LOGGER.info(json.dumps(line, ensure_ascii=False))


def note(state: Any, **values: Any) -> None:
    """Add fields to the request's log line. `state` is `request.state`."""
    noted(state).update(values)


def noted(state: Any) -> dict[str, Any]:
    """The fields that the request's log line has so far, beyond those it always has."""
    known = getattr(state, "log", None)
    if not isinstance(known, dict):
        known = {}
        state.log = known
    return known
