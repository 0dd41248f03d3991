"""Listening, serving and stopping: what lies between a terminal's signals and the application."""

from __future__ import annotations

import asyncio
import socket

import uvicorn
from fastapi import FastAPI

from mlx_gptoss.errors import GptOssError
from mlx_gptoss.server.service import GenerationService
from mlx_gptoss.server.settings import ServerSettings

BACKLOG = 512
CLOSING_S = 3.0
"""What the last words of cancelled streams may take beyond the grace period."""


def bind(host: str, port: int) -> socket.socket:
    """A listening socket. Raises GptOssError when the address is taken or not ours."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host.strip("[]"), port))
        # Listening at once makes a second server fail here, and not after it has loaded its model.
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        raise GptOssError(
            f"cannot listen on {host}:{port}",
            got=error.strerror or str(error),
            hint="Is Ollama or another server running there? Choose another --port.",
        ) from error
    return listener


class Server(uvicorn.Server):
    """uvicorn's server, which on its way down lets running answers finish and then ends them properly."""

    def __init__(self, app: FastAPI, settings: ServerSettings) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                log_config=None,
                access_log=False,
                backlog=BACKLOG,
                timeout_graceful_shutdown=round(settings.shutdown_s + CLOSING_S),
                timeout_keep_alive=75,
                h11_max_incomplete_event_size=64 * 1024,
            )
        )
        self._app = app
        self._grace_s = settings.shutdown_s

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self._app.state.startup_error is not None:
            self.should_exit = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        service = self._app.state.service
        if isinstance(service, GenerationService):
            draining = asyncio.create_task(service.drain(self._grace_s))
            await super().shutdown(sockets)
            draining.cancel()
        else:
            await super().shutdown(sockets)


def serve(app: FastAPI, settings: ServerSettings, listener: socket.socket) -> None:
    """Serve until a signal comes. Raises what kept the application from starting."""
    Server(app, settings).run(sockets=[listener])
    if app.state.startup_error is not None:
        raise app.state.startup_error
