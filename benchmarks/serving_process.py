"""Servers as processes: started on a free port, waited for, and always stopped."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass

import httpx

STOP_SECONDS = 8.0
PARALLEL = 16


class NotStartedError(Exception):
    """A server ended before it answered, or took too long; with its last words."""


@dataclass(frozen=True, slots=True)
class Command:
    """How to start a server: its arguments without the port, the model's name there, and a path that answers."""

    arguments: tuple[str, ...]
    model: str
    probe: str


@dataclass(frozen=True, slots=True)
class Running:
    """A started server."""

    address: str
    model: str
    probe: str
    process: subprocess.Popen[bytes]
    log: str

    def wait(self, deadline: float) -> None:
        """Until it answers. Raises NotStartedError when it ends first, or `deadline` (monotonic) passes."""
        while True:
            try:
                httpx.get(f"{self.address}{self.probe}", timeout=5).raise_for_status()
                return
            except httpx.HTTPError:
                if self.process.poll() is not None or time.monotonic() > deadline:
                    raise NotStartedError(f"the server did not start:\n{self.last_words()}") from None
                time.sleep(0.1)

    def last_words(self) -> str:
        """The end of its log."""
        with open(self.log, "rb") as log:
            return log.read().decode(errors="replace")[-2000:]


def ours(model: str, backend: str) -> Command:
    """`mlx-gptoss serve` with a model name or folder."""
    start = ("-c", "from mlx_gptoss.cli import main; main()", "serve", "--model", model, "--preload")
    return Command((*start, "--parallel", str(PARALLEL), "--backend", backend), model, "/health")


def peer(folder: str) -> Command:
    """mlx-lm's server with a folder it opens."""
    options = ("--decode-concurrency", str(PARALLEL), "--prompt-concurrency", str(PARALLEL), "--log-level", "ERROR")
    return Command(("-m", "mlx_lm", "server", "--model", folder, *options), folder, "/v1/models")


def random_ours(shape: str, layers: int | None, backend: str) -> Command:
    """This server over random weights."""
    return Command(
        ("-m", "benchmarks.serving_random", "ours", "--backend", backend, *_shape(shape, layers)), "./random", "/health"
    )


def random_peer(shape: str, layers: int | None) -> Command:
    """mlx-lm's server over the same random weights."""
    return Command(("-m", "benchmarks.serving_random", "mlx-lm", *_shape(shape, layers)), "random", "/v1/models")


def _shape(shape: str, layers: int | None) -> Sequence[str]:
    return ("--shape", shape) if layers is None else ("--shape", shape, "--layers", str(layers))


@contextmanager
def started(command: Command) -> Iterator[Running]:
    """The server's process, ended with all of its children on the way out. It may still be loading: see `wait`."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    with tempfile.NamedTemporaryFile(suffix=".log") as log:
        process = subprocess.Popen(
            [sys.executable, *command.arguments, "--port", str(port)], stdout=log, stderr=log, start_new_session=True
        )
        try:
            yield Running(f"http://127.0.0.1:{port}", command.model, command.probe, process, log.name)
        finally:
            _stop(process)


def _stop(process: subprocess.Popen[bytes]) -> None:
    for number, seconds in ((signal.SIGTERM, STOP_SECONDS), (signal.SIGKILL, STOP_SECONDS)):
        with suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with suppress(subprocess.TimeoutExpired):
            process.wait(seconds)
            return
