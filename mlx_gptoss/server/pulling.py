"""A pull that a client asked for: on a thread of its own, ended soon after the client has left or the server stops"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import suppress

from mlx_gptoss.errors import CancelledError
from mlx_gptoss.hub import PullProgress, pull
from mlx_gptoss.names import DEMO, resolve_model
from mlx_gptoss.registry import Registry


class Pulling:
    """Downloads and converts a model. What has arrived is kept: the next pull of the model goes on from there."""

    def __init__(self, name: str, registry: Registry) -> None:
        self._name = name
        self._registry = registry
        self._loop = asyncio.get_running_loop()
        self._queue: asyncio.Queue[PullProgress | None] = asyncio.Queue()
        self._error: Exception | None = None
        self._cancelled = threading.Event()
        # A daemon: a network that has fallen silent must not keep the server from stopping.
        threading.Thread(target=self._work, name=f"pull {name}", daemon=True).start()

    def cancel(self) -> None:
        """End it: for who reads its progress at once, on the thread when it next reports any."""
        self._cancelled.set()
        self._put(None)

    async def progress(self) -> AsyncIterator[PullProgress]:
        """What is reported until it has ended. Raises what broke it, and CancelledError when it was cancelled."""
        while (reported := await self._queue.get()) is not None:
            yield reported
        if self._error is not None:
            raise self._error
        self._go_on()

    def _go_on(self) -> None:
        if self._cancelled.is_set():
            raise CancelledError(f"pulling {self._name} was cancelled; the next pull goes on from there")

    def _report(self, progress: PullProgress) -> None:
        self._go_on()
        self._put(progress)

    def _put(self, item: PullProgress | None) -> None:
        with suppress(RuntimeError):  # the server has stopped
            self._loop.call_soon_threadsafe(self._queue.put_nowait, item)

    def _work(self) -> None:
        try:
            if self._name == DEMO:
                resolve_model(DEMO, registry=self._registry)
            else:
                pull(self._name, registry=self._registry, progress=self._report, waiting=self._go_on)
        except Exception as error:
            self._error = error
        finally:
            self._put(None)
