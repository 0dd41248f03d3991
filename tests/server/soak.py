"""Many short requests with random cancels: `python -m tests.server.soak 10000`.

A server on a real socket over a scripted model, so that what is loaded is everything around the model. Prints one
JSON line; raises AssertionError where an answer is neither complete nor cancelled, where something is left running,
or where memory grows with the number of requests.
"""

from __future__ import annotations

import asyncio
import gc
import json
import random
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import httpx
import psutil

from mlx_gptoss.engine.generation import Generation
from mlx_gptoss.registry import Registry
from mlx_gptoss.server.app import build_app
from mlx_gptoss.server.settings import ServerSettings
from tests.server.live import Live, eventually, live
from tests.server.support import MODEL, WEATHER_TOOL, scripted_llm, scripted_registry

WORKERS = 24
MAX_GROWTH = 4096
"""Bytes of resident memory a request, once the stores that are meant to fill up have filled up."""
SETTINGS = ServerSettings(stored_responses=32, stored_turns=128, warm_up=False, shutdown_s=1.0)


def body_of(kind: int, number: int) -> tuple[str, dict[str, Any]]:
    text = f"hi {number}"
    messages = [{"role": "user", "content": text}]
    weather = {"messages": [{"role": "user", "content": "weather?"}], "tools": [WEATHER_TOOL]}
    path, body = (
        ("/v1/chat/completions", {"messages": messages, "max_tokens": 20}),
        ("/v1/chat/completions", weather),
        ("/api/chat", {"messages": messages}),
        ("/api/generate", {"prompt": text}),
        ("/v1/responses", {"input": text}),
        ("/v1/messages", {"messages": messages, "max_tokens": 20}),
    )[kind]
    # Greedy draws are cheap: what is soaked is the server, and not the sampler.
    return path, {**body, **({"options": {"temperature": 0}} if path.startswith("/api") else {"temperature": 0})}


def ended(path: str, text: str, stream: bool) -> bool:
    """Whether an answer is complete."""
    if not stream:
        answer = json.loads(text)
        return "error" not in answer or answer["error"] is None
    if path.startswith("/api"):
        return json.loads(text.splitlines()[-1]).get("done") is True
    marks = {"/v1/chat/completions": "[DONE]", "/v1/responses": "response.completed", "/v1/messages": "message_stop"}
    return marks[path] in text


async def one(client: httpx.AsyncClient, draw: random.Random, number: int) -> str:
    path, body = body_of(draw.randrange(6), number)
    stream, fate = draw.random() < 0.6, draw.random()
    body = {"model": MODEL, "stream": stream, **body}
    if fate < 0.15:
        # Gone before, or while, the answer comes.
        try:
            await asyncio.wait_for(client.post(path, json=body), draw.random() * 0.05)
        except TimeoutError:
            return "cancelled"
        return "complete"
    if fate < 0.3 and stream:
        async with client.stream("POST", path, json=body) as response:
            async for _ in response.aiter_bytes():
                return "cancelled"
        return "complete"
    response = await client.post(path, json=body)
    if response.status_code == 503:
        await asyncio.sleep(0.05)
        return "turned away"
    if response.status_code != 200 or not ended(path, response.text, stream):
        raise AssertionError(f"{path}: {response.status_code} {response.text[-300:]}")
    return "complete"


async def drive(server: Live, count: int, seed: int) -> tuple[Counter[str], list[tuple[int, int]]]:
    """All requests by a few workers; gives what became of them, and resident memory along the way."""
    draw, results, memory = random.Random(seed), Counter[str](), []
    numbers = iter(range(count))
    process = psutil.Process()

    async def worker(client: httpx.AsyncClient) -> None:
        for number in numbers:
            results[await one(client, draw, number)] += 1
            if number % max(count // 20, 1) == 0:
                gc.collect()
                memory.append((number, process.memory_info().rss))

    async with httpx.AsyncClient(base_url=server.url, timeout=120, limits=httpx.Limits(max_connections=None)) as client:
        await asyncio.gather(*(worker(client) for _ in range(WORKERS)))
    return results, memory


def growth(memory: list[tuple[int, int]]) -> float:
    """Bytes a request: the least-squares slope over the second half."""
    half = memory[len(memory) // 2 :]
    mean_x = sum(x for x, _ in half) / len(half)
    mean_y = sum(y for _, y in half) / len(half)
    spread = sum((x - mean_x) ** 2 for x, _ in half)
    return sum((x - mean_x) * (y - mean_y) for x, y in half) / spread if spread else 0.0


def run(registry: Registry, count: int, seed: int) -> tuple[Counter[str], list[tuple[int, int]], float]:
    """The requests against a server of their own, which has nothing left to do when they are over."""
    # A small prefix cache is full early on, so that it does not look like a leak.
    app = build_app(SETTINGS, loader=lambda name: scripted_llm(prefix_cache_bytes=1 << 20), registry=registry)
    with live(app, SETTINGS) as server:
        started = time.perf_counter()
        results, memory = asyncio.run(drive(server, count, seed))
        seconds = time.perf_counter() - started
        eventually(lambda: server.active() == 0, 20)
        with server.client() as client:
            text = client.get("/metrics").text
        (model,) = app.state.service.models.loaded()
        if model.users:
            raise AssertionError(f"{model.users} requests still hold the model")
        if "mlx_gptoss_running 0.0\n" not in text:
            raise AssertionError("a generation is still counted as running")
    return results, memory, seconds


def soak(registry: Registry, count: int, seed: int = 0) -> dict[str, Any]:
    """Run `count` requests and check what they leave behind."""
    results, memory, seconds = run(registry, count, seed)
    gc.collect()
    left = sum(isinstance(item, Generation) for item in gc.get_objects())
    slope = growth(memory)
    report = {
        "requests": count, **results, "seconds": round(seconds, 1), "requests_per_s": round(count / seconds, 1),
        "rss_mib": [round(rss / 2**20) for _, rss in memory], "bytes_per_request": round(slope),
        "generations_left": left,
    }  # fmt: skip
    if sum(results.values()) != count or left > 0 or (count >= 5000 and slope > MAX_GROWTH):
        raise AssertionError(json.dumps(report))
    return report


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as home:
        print(json.dumps(soak(scripted_registry(Path(home)), int(sys.argv[1]) if len(sys.argv) > 1 else 10_000)))
