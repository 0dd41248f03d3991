"""The server on a real socket: clients that leave, stall or crowd, and models that come and go."""

from __future__ import annotations

import json
import logging
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from mlx_gptoss.engine import Engine, EngineOptions
from mlx_gptoss.harmony.vocabulary import load_vocabulary
from mlx_gptoss.llm import GptOss
from mlx_gptoss.registry import Alias, Registry
from mlx_gptoss.server.app import build_app
from mlx_gptoss.server.settings import ServerSettings
from tests.server.live import STREAMS, Live, eventually, hang_up, live
from tests.server.support import LONG, MODEL, REPLIES, Script
from tests.unit.fake_model import ScriptedModel
from tests.unit.harmony_streams import marked

STEP_S = 0.003
ASK = {"model": MODEL, "messages": [{"role": "user", "content": "hi"}]}


class SlowScript(Script):
    """Takes its time for each token; falls over when it is asked to explode."""

    def __call__(self, prompt: list[int], generated: list[int]) -> int:
        time.sleep(STEP_S)
        if not generated and "explode" in load_vocabulary().decode(prompt):
            raise RuntimeError("the model fell over")
        return super().__call__(prompt, generated)


def slow_llm(**options: Any) -> GptOss:
    return GptOss(Engine(lambda: ScriptedModel(SlowScript(REPLIES)), EngineOptions(**options)), name=MODEL)


def serving(registry: Registry, settings: ServerSettings | None = None, **options: Any) -> Any:
    settings = settings if settings is not None else ServerSettings(shutdown_s=0.2, warm_up=False)
    return live(build_app(settings, loader=lambda name: slow_llm(**options), registry=registry), settings)


@pytest.fixture(scope="module")
def server(registry: Registry) -> Iterator[Live]:
    with serving(registry) as found:
        yield found


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
@pytest.mark.parametrize("api", STREAMS)
def test_a_client_that_leaves_frees_its_place(server: Live, api: str, stream: bool) -> None:
    path, body = STREAMS[api]
    with server.client() as client:
        client.post("/v1/chat/completions", json=ASK)  # The model is loaded.
    before = server.generated()
    connection = server.raw(path, {"model": MODEL, "stream": stream, **body})
    if stream:
        assert connection.recv(1000).startswith(b"HTTP/1.1 200")
    eventually(lambda: server.active() > 0)
    time.sleep(0.05)
    hang_up(connection)
    assert eventually(lambda: server.active() == 0, 5) < 3
    assert server.generated() - before < len(marked(LONG)) // 2


def test_a_client_that_leaves_while_it_waits_is_forgotten(registry: Registry) -> None:
    with serving(registry, max_batch=1) as server:
        first = server.raw("/v1/chat/completions", {**ASK, "messages": [{"role": "user", "content": "long"}]})
        eventually(lambda: server.active() > 0)
        waiting = [server.raw("/api/chat", {**ASK, "stream": stream}) for stream in (True, False)]
        eventually(lambda: len(server.app.state.service.live) == 3)
        for connection in waiting:
            hang_up(connection)
        eventually(lambda: len(server.app.state.service.live) == 1)
        hang_up(first)
        eventually(lambda: server.active() == 0)


def test_a_client_that_does_not_read_is_dropped(registry: Registry) -> None:
    settings = ServerSettings(idle_send_s=0.4, shutdown_s=0.2, warm_up=False)
    app = build_app(settings, loader=lambda name: slow_llm(), registry=registry)
    with live(app, settings, send_buffer=4096) as server:
        body = {"model": MODEL, "stream": True, "logprobs": True, "top_logprobs": 20,
                "messages": [{"role": "user", "content": "long"}]}  # fmt: skip
        stalled = server.raw("/v1/chat/completions", body, receive_buffer=4096)
        eventually(lambda: server.active() > 0)
        assert eventually(lambda: server.active() == 0, 10) < 9
        assert server.generated() < len(marked(LONG)) // 2
        with server.client() as client:
            assert client.post("/v1/chat/completions", json=ASK).status_code == 200
        hang_up(stalled)


@pytest.mark.parametrize("path", ["/api/chat", "/v1/chat/completions", "/v1/messages"])
def test_a_body_that_trickles_in_is_refused(registry: Registry, path: str) -> None:
    settings = ServerSettings(body_timeout_s=0.3, shutdown_s=0.2, warm_up=False)
    with serving(registry, settings) as server, socket.create_connection(("127.0.0.1", server.port)) as slow:
        slow.settimeout(10)
        slow.sendall(f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 100\r\n\r\n".encode())
        started = time.monotonic()
        answer = b""
        try:
            while time.monotonic() - started < 5:
                slow.sendall(b" ")
                slow.settimeout(0.1)
                try:
                    piece = slow.recv(4000)
                except TimeoutError:
                    continue
                answer += piece
                if not piece:
                    break
        except OSError:
            pass
        assert answer.startswith(b"HTTP/1.1 408")
        assert b"error" in answer
        assert time.monotonic() - started < 3


def test_more_than_the_queue_holds_is_turned_away(registry: Registry) -> None:
    with serving(registry, max_batch=1, max_queue=1) as server:
        busy = [server.raw("/v1/chat/completions", {"model": MODEL, **STREAMS["chat"][1]}) for _ in range(2)]
        eventually(lambda: server.active() >= 4)
        with server.client() as client:
            for api, (path, body) in STREAMS.items():
                for stream in (True, False):
                    answer = client.post(path, json={"model": MODEL, "stream": stream, **body})
                    assert (api, answer.status_code) == (api, 503)
                    assert int(answer.headers["retry-after"]) >= 1
                    error = answer.json()["error"]
                    if api in ("ollama", "generate"):
                        assert isinstance(error, str)
                    else:
                        assert error["type"] == ("overloaded_error" if api == "anthropic" else "server_error")
        for connection in busy:
            hang_up(connection)
        eventually(lambda: server.active() == 0)


def test_a_request_that_fails_fails_alone(server: Live) -> None:
    boom = {"model": MODEL, "messages": [{"role": "user", "content": "explode"}]}
    with ThreadPoolExecutor(6) as pool, server.client() as client:
        bodies = [boom if index % 3 == 0 else ASK for index in range(6)]
        answers = list(pool.map(lambda body: client.post("/v1/chat/completions", json=body), bodies))
        assert [answer.status_code for answer in answers] == [500, 200, 200, 500, 200, 200]
        assert all(answer.json()["error"]["type"] == "server_error" for answer in answers[::3])
        streamed = client.post("/v1/chat/completions", json={**boom, "stream": True}).text
        assert '"error"' in streamed
        assert streamed.endswith("data: [DONE]\n\n")
        last = client.post("/api/chat", json=boom).text.splitlines()[-1]
        assert set(json.loads(last)) == {"error"}
        events = client.post("/v1/messages", json={**boom, "max_tokens": 9, "stream": True}).text
        assert "event: error" in events
        response = client.post("/v1/responses", json={"model": MODEL, "input": "explode", "stream": True}).text
        assert "event: response.failed" in response


def test_a_request_ends_at_its_time_limit(registry: Registry) -> None:
    settings = ServerSettings(request_timeout_s=0.3, shutdown_s=0.2, warm_up=False)
    with serving(registry, settings) as server, server.client() as client:
        started = time.monotonic()
        answer = client.post("/v1/chat/completions", json={"model": MODEL, **STREAMS["chat"][1]}).json()
        assert answer["choices"][0]["finish_reason"] == "length"
        assert time.monotonic() - started < 5


def test_an_idle_model_is_unloaded_and_comes_back(registry: Registry) -> None:
    with serving(registry) as server, server.client() as client:
        assert client.post("/api/chat", json={**ASK, "stream": False, "keep_alive": "1s"}).status_code == 200
        expires = client.get("/api/ps").json()["models"][0]["expires_at"]
        assert expires.startswith("20")
        eventually(lambda: client.get("/api/ps").json() == {"models": []}, 5)
        assert client.post("/v1/chat/completions", json=ASK).status_code == 200
        assert client.get("/health").json()["loaded"] == [MODEL]


class Shelf:
    """Loads models by name and knows how many are in memory."""

    def __init__(self) -> None:
        self.open: list[GptOss] = []
        self.most = 0
        self.loads: list[str] = []
        self.lock = threading.Lock()

    def load(self, name: str, /) -> GptOss:
        llm = slow_llm()
        with self.lock:
            self.open = [other for other in self.open if not other.closed] + [llm]
            self.most = max(self.most, len(self.open))
            self.loads.append(name)
        time.sleep(0.05)
        return llm


def two_models(registry: Registry) -> Registry:
    registry.set_alias(Alias("other", MODEL))
    folder = registry.model_folder("someone/second")
    if not folder.exists():
        folder.symlink_to(registry.model_folder(MODEL))
    return registry


@pytest.mark.parametrize("max_loaded", [1, 2])
def test_models_take_turns_in_the_room_there_is(registry: Registry, max_loaded: int) -> None:
    settings = ServerSettings(max_loaded=max_loaded, shutdown_s=0.2, warm_up=False)
    shelf = Shelf()
    app = build_app(settings, loader=shelf.load, registry=two_models(registry))
    names = [MODEL, "someone/second", "other"] * 4
    with live(app, settings) as server, server.client() as client, ThreadPoolExecutor(12) as pool:
        answers = list(pool.map(lambda name: client.post("/v1/chat/completions", json={**ASK, "model": name}), names))
        assert [answer.status_code for answer in answers] == [200] * 12
        assert len(client.get("/health").json()["loaded"]) == max_loaded
    assert shelf.most == max_loaded
    assert set(shelf.loads) == {MODEL, "someone/second"}
    assert len(shelf.loads) <= (8 if max_loaded == 1 else 2)


def test_a_busy_model_does_not_keep_another_out(registry: Registry) -> None:
    settings = ServerSettings(shutdown_s=0.2, warm_up=False)
    app = build_app(settings, loader=Shelf().load, registry=two_models(registry))
    with live(app, settings) as server, server.client() as client, ThreadPoolExecutor(4) as pool:
        stop = threading.Event()

        def keep_asking() -> None:
            while not stop.is_set():
                client.post("/v1/chat/completions", json=ASK)

        busy = [pool.submit(keep_asking) for _ in range(3)]
        eventually(lambda: server.active() > 0)
        try:
            answer = client.post("/v1/chat/completions", json={**ASK, "model": "someone/second"}, timeout=10)
            assert answer.status_code == 200
        finally:
            stop.set()
        for future in busy:
            future.result(20)


def test_several_choices_do_not_wait_for_the_room_they_take(registry: Registry) -> None:
    settings = ServerSettings(shutdown_s=0.2, warm_up=False)
    app = build_app(settings, loader=Shelf().load, registry=two_models(registry))
    with live(app, settings) as server, server.client(timeout=20) as client, ThreadPoolExecutor(6) as pool:

        def ask(index: int) -> int:
            model = MODEL if index % 3 else "someone/second"
            return client.post("/v1/chat/completions", json={**ASK, "model": model, "n": 5}).status_code

        assert list(pool.map(ask, range(12))) == [200] * 12


def test_a_load_that_fails_fails_every_request_that_waits_for_it(registry: Registry) -> None:
    calls = []

    def load(name: str) -> GptOss:
        calls.append(name)
        time.sleep(0.6)
        if len(calls) == 1:
            raise RuntimeError("no such luck")
        return slow_llm()

    settings = ServerSettings(shutdown_s=0.2, warm_up=False)
    with live(build_app(settings, loader=load, registry=registry), settings) as server, server.client() as client:
        with ThreadPoolExecutor(3) as pool:
            answers = list(pool.map(lambda _: client.post("/v1/chat/completions", json=ASK), range(3)))
        assert [answer.status_code for answer in answers] == [500] * 3
        assert client.post("/v1/chat/completions", json=ASK).status_code == 200


def test_an_engine_that_died_is_replaced(server: Live) -> None:
    with server.client() as client:
        assert client.post("/v1/chat/completions", json=ASK).status_code == 200
        (model,) = server.app.state.service.models.loaded()
        model.llm.close()
        assert client.post("/v1/chat/completions", json=ASK).status_code == 200


def test_stopping_ends_streams_properly(registry: Registry) -> None:
    texts: dict[str, str] = {}

    def read(server: Live, api: str) -> None:
        path, body = STREAMS[api]
        with server.client() as client:
            texts[api] = client.post(path, json={"model": MODEL, "stream": True, **body}).text

    with serving(registry) as server:
        readers = [threading.Thread(target=read, args=(server, api)) for api in STREAMS]
        for reader in readers:
            reader.start()
        eventually(lambda: server.active() >= 12)
        time.sleep(0.1)
    for reader in readers:
        reader.join(10)
    for api in ("chat", "completions"):
        assert texts[api].endswith("data: [DONE]\n\n")
    for api in ("ollama", "generate"):
        assert json.loads(texts[api].splitlines()[-1])["done"] is True
    assert "event: message_stop" in texts["anthropic"]
    assert '"status":"cancelled"' in texts["responses"].splitlines()[-2]


def test_one_line_a_request_and_no_prompt_in_it(registry: Registry, caplog: pytest.LogCaptureFixture) -> None:
    secret = {**ASK, "messages": [{"role": "user", "content": "my secret hi"}]}
    with caplog.at_level(logging.INFO, "mlx_gptoss.server"), serving(registry) as server, server.client() as client:
        assert isinstance(client, httpx.Client)
        client.post("/v1/chat/completions", json=secret)
        client.post("/v1/chat/completions", json={**secret, "model": "absent"})
        eventually(lambda: len(caplog.records) >= 2)
    lines = [json.loads(record.message) for record in caplog.records]
    assert [(line["path"], line["status"]) for line in lines] == [
        ("/v1/chat/completions", 200), ("/v1/chat/completions", 404),
    ]  # fmt: skip
    assert lines[0]["finish_reason"] == "stop"
    assert lines[0]["completion_tokens"] > 0
    assert "secret" not in caplog.text
    settings = ServerSettings(shutdown_s=0.2, log_prompts=True, warm_up=False)
    caplog.set_level(logging.INFO, "mlx_gptoss.server")
    with serving(registry, settings) as server, server.client() as client:
        client.post("/v1/chat/completions", json=secret)
    assert "my secret hi" in caplog.text
