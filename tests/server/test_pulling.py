"""Pulls over HTTP: they end soon after whoever asked for them, or the server, is gone."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from mlx_gptoss.hub import PullProgress
from mlx_gptoss.registry import Registry
from mlx_gptoss.server import pulling
from mlx_gptoss.server.app import build_app
from mlx_gptoss.server.settings import ServerSettings
from tests.server.live import Live, eventually, hang_up, live
from tests.server.support import lines_of, scripted_llm

PULL = {"model": "someone/large"}


class Hub:
    """A pull that goes on until it is ended; silent ones report nothing more after their first byte."""

    def __init__(self) -> None:
        self.running = 0
        self.silent = False
        self.release = threading.Event()

    def pull(self, name: str, *, progress: Any, waiting: Any, **options: Any) -> None:
        self.running += 1
        try:
            progress(PullProgress("download", 1, 100, "model.safetensors"))
            if self.silent:
                self.release.wait(30)
                return
            for done in range(2, 10_000):
                time.sleep(0.01)
                progress(PullProgress("download", min(done, 99), 100, "model.safetensors"))
        finally:
            self.running -= 1


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    made = Hub()
    monkeypatch.setattr(pulling, "pull", made.pull)
    yield made
    made.release.set()


def serving(registry: Registry) -> Any:
    settings = ServerSettings(shutdown_s=0.2, warm_up=False)
    return live(build_app(settings, loader=lambda name: scripted_llm(), registry=registry), settings)


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
def test_a_pull_ends_when_its_client_leaves(registry: Registry, hub: Hub, stream: bool) -> None:
    with serving(registry) as server:
        connection = server.raw("/api/pull", {**PULL, "stream": stream})
        eventually(lambda: hub.running == 1)
        hang_up(connection)
        eventually(lambda: hub.running == 0)
        assert server.active() == 0


@pytest.mark.parametrize("silent", [False, True], ids=["busy", "silent"])
def test_stopping_does_not_wait_for_a_pull(registry: Registry, hub: Hub, silent: bool) -> None:
    hub.silent = silent
    texts: list[str] = []

    def ask(server: Live) -> None:
        with server.client() as client:
            texts.append(client.post("/api/pull", json=PULL).text)

    with serving(registry) as server:
        asking = threading.Thread(target=ask, args=(server,))
        asking.start()
        eventually(lambda: hub.running == 1)
        began = time.monotonic()
    assert time.monotonic() - began < 3
    asking.join(5)
    lines = lines_of(texts[0])
    assert lines[1]["status"] == "pulling model.safetensors"
    assert "cancelled" in lines[-1]["error"], json.dumps(lines[-1])
