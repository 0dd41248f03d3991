"""`mlx-gptoss serve` as a process: start, signals, a port that is taken, what survives."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from tests.server.live import eventually
from tests.tiny import tiny_config, write_model_folder

PROMPT = {"prompt": "hello", "max_tokens": 100_000, "temperature": 1, "stream": True}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model that can say every token."""
    shape = {"num_layers": 2, "hidden_size": 32, "intermediate_size": 32, "num_heads": 2, "num_kv_heads": 1}
    return write_model_folder(tmp_path_factory.mktemp("model") / "tiny", tiny_config(vocab_size=201_088, **shape))


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Process:
    """A server in a process of its own."""

    def __init__(self, home: Path, *arguments: str) -> None:
        self.port = free_port()
        self.log = home / "log.txt"
        environment = {**os.environ, "MLX_GPTOSS_HOME": str(home / "home")}
        command = [sys.executable, "-c", "from mlx_gptoss.cli import main; main()", "serve", *arguments]
        with self.log.open("wb") as sink:
            self.process = subprocess.Popen(
                [*command, "--port", str(self.port)], stdout=sink, stderr=sink, env=environment
            )
        self.client = httpx.Client(base_url=f"http://127.0.0.1:{self.port}", timeout=30)

    def text(self) -> str:
        return self.log.read_text()

    def healthy(self) -> bool:
        if self.process.poll() is not None:
            raise AssertionError(self.text())
        try:
            return self.client.get("/health").status_code == 200
        except httpx.TransportError:
            return False

    def stop(self, kind: int = signal.SIGTERM) -> int:
        self.process.send_signal(kind)
        return self.process.wait(30)


@contextmanager
def serving(home: Path, *arguments: str) -> Iterator[Process]:
    server = Process(home, *arguments)
    try:
        eventually(server.healthy, 60)
        yield server
    finally:
        server.client.close()
        if server.process.poll() is None:
            server.process.kill()
            server.process.wait(30)


def test_a_whole_life(folder: Path, tmp_path: Path) -> None:
    """Preloading, an answer, a second server on the same port, and SIGTERM in the middle of a stream."""
    with serving(tmp_path, "--model", str(folder), "--preload", "--grace", "0.5") as server:
        assert "serving on http://127.0.0.1" in server.text()
        assert server.client.get("/health").json()["loaded"] == [str(folder)]
        body = {"model": str(folder), **PROMPT}
        short = server.client.post("/v1/completions", json={**body, "max_tokens": 3, "stream": False}).json()
        assert short["usage"]["completion_tokens"] == 3

        command = [sys.executable, "-c", "from mlx_gptoss.cli import main; main()", "serve", "--port", str(server.port)]
        second = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        assert second.returncode == 1
        assert second.stdout == ""
        assert f"cannot listen on 127.0.0.1:{server.port}" in second.stderr
        assert len(second.stderr.strip().splitlines()) == 1

        with server.client.stream("POST", "/v1/completions", json=body) as stream:
            lines = stream.iter_lines()
            assert next(lines).startswith("data: ")
            started = time.monotonic()
            server.process.send_signal(signal.SIGTERM)
            rest = [line for line in lines if line]
        assert server.process.wait(20) in (0, -signal.SIGTERM)
        assert time.monotonic() - started < 8
        assert rest[-1] == "data: [DONE]"
        assert json.loads(rest[-2].removeprefix("data: "))["choices"][0]["finish_reason"] == "length"
        assert "Traceback" not in server.text()


def test_ctrl_c_is_one_line(folder: Path, tmp_path: Path) -> None:
    with serving(tmp_path, "--model", str(folder)) as server:
        assert server.stop(signal.SIGINT) == 130
        assert server.text().strip().splitlines()[-1] == "mlx-gptoss: interrupted"
        assert "Traceback" not in server.text()


def test_what_was_promised_survives_a_kill(folder: Path, tmp_path: Path) -> None:
    with serving(tmp_path, "--model", str(folder)) as server:
        home = tmp_path / "home"
        (home / "models").mkdir(parents=True, exist_ok=True)
        (home / "models" / "someone--tiny").symlink_to(folder)
        created = {"model": "mine", "from": "someone/tiny", "system": "Be short.", "stream": False}
        assert server.client.post("/api/create", json=created).json() == {"status": "success"}
        with server.client.stream("POST", "/v1/completions", json={"model": "mine", **PROMPT}) as stream:
            next(stream.iter_lines())
            server.process.kill()
            server.process.wait(30)
    with serving(tmp_path, "--model", str(folder)) as server:
        names = [model["name"] for model in server.client.get("/api/tags").json()["models"]]
        assert "mine:latest" in names
        assert server.client.post("/api/show", json={"model": "mine"}).json()["system"] == "Be short."
        # Stored responses are promised for as long as the server runs, and no longer.
        gone = server.client.get("/v1/responses/resp_1")
        assert (gone.status_code, gone.json()["error"]["type"]) == (404, "not_found_error")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--host", "0.0.0.0"], "needs an API key"),
        (["--model", "/no/such/folder"], "no folder"),
        (["--preload", "--model", "absent/model"], "absent/model"),
        (["--host", "203.0.113.7", "--api-key", "k"], "cannot listen"),
        (["--keep-alive", "soon"], "not a duration"),
    ],
)
def test_a_start_that_cannot_work_is_one_line(tmp_path: Path, arguments: list[str], message: str) -> None:
    command = [sys.executable, "-c", "from mlx_gptoss.cli import main; main()", "serve", "--port", str(free_port())]
    environment = {**os.environ, "MLX_GPTOSS_HOME": str(tmp_path)}
    done = subprocess.run(
        [*command, *arguments], capture_output=True, text=True, timeout=60, check=False, env=environment
    )
    assert done.returncode in (1, 2)
    assert message in done.stderr
    assert "Traceback" not in done.stderr
