"""A server on a real socket, in a thread of this process, and raw clients that misbehave."""

from __future__ import annotations

import json
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import httpx
from fastapi import FastAPI

from mlx_gptoss.server.run import Server
from mlx_gptoss.server.settings import ServerSettings

STREAMS: dict[str, tuple[str, dict[str, Any]]] = {
    "ollama": ("/api/chat", {"messages": [{"role": "user", "content": "long"}]}),
    "generate": ("/api/generate", {"prompt": "long"}),
    "chat": ("/v1/chat/completions", {"messages": [{"role": "user", "content": "long"}]}),
    "completions": ("/v1/completions", {"prompt": "long", "max_tokens": 3000}),
    "responses": ("/v1/responses", {"input": "long"}),
    "anthropic": ("/v1/messages", {"max_tokens": 3000, "messages": [{"role": "user", "content": "long"}]}),
}
"""For each route that generates: its path, and a body whose answer takes long."""


class Live:
    """A running server: its address, its application, and the engine of the model in memory."""

    def __init__(self, app: FastAPI, port: int) -> None:
        self.app = app
        self.port = port
        self.url = f"http://127.0.0.1:{port}"

    def client(self, timeout: float = 30.0) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=timeout)

    def active(self) -> int:
        """Sequences that the engines work on, and generations that a handler still holds."""
        models = self.app.state.service.models.loaded()
        stats = [model.llm.engine_stats() for model in models]
        held: int = len(self.app.state.service.live)
        working: int = sum(entry.active + entry.queued for entry in stats)
        return held + working

    def generated(self) -> int:
        """Tokens that the engine of the one loaded model has generated."""
        (model,) = self.app.state.service.models.loaded()
        return int(model.llm.engine_stats().completion_tokens_total)

    def raw(self, path: str, body: dict[str, Any], *, receive_buffer: int | None = None) -> socket.socket:
        """A request on a bare socket, sent whole."""
        connection = socket.socket()
        if receive_buffer is not None:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        connection.settimeout(20)
        connection.connect(("127.0.0.1", self.port))
        payload = json.dumps(body).encode()
        head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {len(payload)}\r\n\r\n"
        connection.sendall(head.encode() + payload)
        return connection


@contextmanager
def live(app: FastAPI, settings: ServerSettings, *, send_buffer: int | None = None) -> Iterator[Live]:
    """Serve `app` while the context lasts, then stop it as a signal would."""
    listener = socket.socket()
    if send_buffer is not None:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_buffer)
    listener.bind(("127.0.0.1", 0))
    listener.listen(64)
    server = Server(app, settings)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    try:
        eventually(lambda: server.started, 20)
        yield Live(app, listener.getsockname()[1])
    finally:
        server.should_exit = True
        thread.join(30)
        listener.close()
    if thread.is_alive():
        raise AssertionError("the server did not stop")


def eventually(condition: Callable[[], bool], seconds: float = 10.0) -> float:
    """Wait until `condition()` holds; gives the seconds it took. Raises AssertionError when it does not."""
    started = time.monotonic()
    while not condition():
        if time.monotonic() - started > seconds:
            raise AssertionError(f"not within {seconds} s")
        time.sleep(0.01)
    return time.monotonic() - started


def hang_up(connection: socket.socket) -> None:
    """Close as a process that was killed would: at once, with a reset."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()
