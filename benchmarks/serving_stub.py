"""The server over an engine that has every token ready: what is left is the cost of the server itself."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
from typing import Any, cast

import httpx

from mlx_gptoss.engine import Engine, EngineStats, Generation, GenerationRequest, TokenEvent
from mlx_gptoss.engine.generation import Finished
from mlx_gptoss.events import Timings, Usage
from mlx_gptoss.harmony.special import CHANNEL, MESSAGE, RETURN
from mlx_gptoss.harmony.vocabulary import load_vocabulary
from mlx_gptoss.llm import GptOss
from mlx_gptoss.registry import Registry
from mlx_gptoss.server.app import build_app
from mlx_gptoss.server.models import ModelManager
from mlx_gptoss.server.run import Server
from mlx_gptoss.server.settings import ServerSettings

ROUTES: dict[str, tuple[str, dict[str, Any]]] = {
    "chat": ("/v1/chat/completions", {"messages": [{"role": "user", "content": "x"}]}),
    "ollama": ("/api/chat", {"messages": [{"role": "user", "content": "x"}]}),
    "responses": ("/v1/responses", {"input": "x"}),
    "anthropic": ("/v1/messages", {"max_tokens": 100_000, "messages": [{"role": "user", "content": "x"}]}),
}
PACE_S = 0.0002


class StubEngine:
    """Hands out a fixed answer, token by token, from a thread of its own, as the engine does."""

    context = 131_072
    closed = False

    def __init__(self, tokens: int) -> None:
        vocabulary = load_vocabulary()
        word = vocabulary.encode(" word")
        self._answer = [CHANNEL, *vocabulary.encode("final"), MESSAGE, *(word * tokens), RETURN]

    def submit(self, request: GenerationRequest) -> Generation:
        generation = Generation(request)
        threading.Thread(target=self._feed, args=(generation,), daemon=True).start()
        return generation

    def _feed(self, generation: Generation) -> None:
        for token in self._answer:
            generation.push(TokenEvent(token))
            # Tokens come one by one, as from a model; a batch of them at once would share its costs.
            time.sleep(PACE_S)
        generation.finish(Finished("stop", Usage(8, 0, len(self._answer)), Timings()))

    def stats(self) -> EngineStats:
        return EngineStats()

    def close(self) -> None:
        """Nothing to free."""


async def _drain(url: str, path: str, body: dict[str, Any], streams: int) -> None:
    async def one(client: httpx.AsyncClient) -> None:
        async with client.stream("POST", path, content=json.dumps(body)) as response:
            async for _ in response.aiter_raw():
                pass

    async with httpx.AsyncClient(base_url=url, timeout=300) as client:
        await asyncio.gather(*(one(client) for _ in range(streams)))


def measure(route: str, streams: int, tokens: int) -> dict[str, Any]:
    """CPU time of the server's thread for each token, in microseconds, and tokens a second as a client sees them."""
    settings = ServerSettings(default_model="demo", warm_up=False, shutdown_s=0.1)
    app = build_app(
        settings, loader=lambda name: GptOss(cast("Engine", StubEngine(tokens)), name=name), registry=Registry()
    )
    if not isinstance(app.state.service.models, ModelManager):
        raise TypeError("the application has no models")
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen(64)
    server = Server(app, settings)
    spent: dict[str, float] = {}

    def serve() -> None:
        server.run(sockets=[listener])
        spent["cpu_s"] = time.thread_time()

    thread = threading.Thread(target=serve)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    path, body = ROUTES[route]
    started = time.perf_counter()
    asyncio.run(_drain(url, path, {"model": "demo", "stream": True, **body}, streams))
    seconds = time.perf_counter() - started
    server.should_exit = True
    thread.join()
    listener.close()
    return {
        "route": route,
        "streams": streams,
        "us_per_token": round(1e6 * spent["cpu_s"] / (tokens * streams), 1),
        "tokens_per_s": round(tokens * streams / seconds),
    }
