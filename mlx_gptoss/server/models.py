"""Which models are in memory: loaded on demand, kept while used and a while after, unloaded when idle."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Protocol

from mlx_gptoss.errors import EngineClosedError, ModelNotFoundError
from mlx_gptoss.llm import GptOss
from mlx_gptoss.names import DEMO, looks_like_path
from mlx_gptoss.registry import Alias, Registry, canonical_name
from mlx_gptoss.server.settings import ServerSettings


class Loader(Protocol):
    """Turns a canonical model name into a loaded model; called in a worker thread."""

    def __call__(self, name: str, /) -> GptOss: ...


@dataclass(slots=True)
class LoadedModel:
    """A model in memory. `expires_at` is a Unix time, infinite when it stays; `users` counts running requests."""

    name: str
    llm: GptOss
    loaded_at: float
    expires_at: float = math.inf
    users: int = 0


@dataclass(frozen=True, slots=True)
class Lease:
    """The right to use a model for one request. `load_s` is what loading it cost this request."""

    model: LoadedModel
    alias: Alias | None
    load_s: float


@dataclass(slots=True)
class _Slots:
    loaded: dict[str, LoadedModel] = field(default_factory=dict)
    changed: asyncio.Condition = field(default_factory=asyncio.Condition)


class ModelManager:
    """Loads, shares and unloads models. Used from one event loop."""

    def __init__(self, settings: ServerSettings, loader: Loader, registry: Registry | None = None,
                 clock: Callable[[], float] = time.time) -> None:  # fmt: skip
        self.settings = settings
        self.registry = registry if registry is not None else Registry()
        self._loader = loader
        self._clock = clock
        self._slots = _Slots()
        self._closed = False
        self._sweeper: asyncio.Task[None] | None = None

    # -- names --------------------------------------------------------------------------------------------------

    def target(self, name: str | None) -> tuple[str, Alias | None]:
        """The canonical model name, and the alias, behind what a client wrote. Raises ModelNotFoundError."""
        asked = name or self.settings.default_model or self.registry.default_name()
        try:
            return self._known(asked)
        except ModelNotFoundError:
            if not self.settings.any_model:
                raise
            return self._known(self.settings.default_model or self.registry.default_name())

    def _known(self, name: str) -> tuple[str, Alias | None]:
        default = self.settings.default_model
        # A client never names a path of this machine; only the server's own default may be one.
        if default is not None and name == default and looks_like_path(default):
            return default, None
        alias = self.registry.alias(name)
        target = canonical_name(alias.source if alias is not None else name)
        if target != DEMO:
            self.registry.find(target)
        return target, alias

    def loaded(self) -> list[LoadedModel]:
        """The models in memory, most recently loaded first."""
        return sorted(self._slots.loaded.values(), key=lambda model: -model.loaded_at)

    # -- use ----------------------------------------------------------------------------------------------------

    @asynccontextmanager
    async def use(self, name: str | None, keep_alive_s: float | None = None) -> AsyncIterator[Lease]:
        """A model for one request, loaded if need be. `keep_alive_s` 0 unloads it afterwards, negative keeps it."""
        target, alias = self.target(name)
        started = time.perf_counter()
        model, fresh = await self._acquire(target)
        load_s = time.perf_counter() - started if fresh else 0.0
        try:
            yield Lease(model, alias, load_s)
        finally:
            await self._release(model, self.settings.keep_alive_s if keep_alive_s is None else keep_alive_s)

    async def _acquire(self, name: str) -> tuple[LoadedModel, bool]:
        slots = self._slots
        async with slots.changed:
            while True:
                if self._closed:
                    raise EngineClosedError("the server is stopping")
                model = slots.loaded.get(name)
                if model is not None:
                    model.users += 1
                    return model, False
                if len(slots.loaded) < self.settings.max_loaded:
                    break
                idle = [candidate for candidate in slots.loaded.values() if candidate.users == 0]
                if idle:
                    await self._unload_locked(min(idle, key=lambda candidate: candidate.expires_at))
                else:
                    await slots.changed.wait()
            # The condition's lock is held while loading: others queue behind it rather than load a second copy.
            llm = await asyncio.to_thread(self._loader, name)
            model = LoadedModel(name, llm, self._clock(), users=1)
            slots.loaded[name] = model
            self._start_sweeper()
            return model, True

    async def _release(self, model: LoadedModel, keep_alive_s: float) -> None:
        async with self._slots.changed:
            model.users -= 1
            model.expires_at = math.inf if keep_alive_s < 0 else self._clock() + keep_alive_s
            if model.users == 0 and keep_alive_s == 0 and self._slots.loaded.get(model.name) is model:
                await self._unload_locked(model)
            self._slots.changed.notify_all()
        self._start_sweeper()

    async def unload(self, name: str | None) -> bool:
        """Unload a model as soon as nobody uses it; False when it was not loaded."""
        target, _ = self.target(name)
        async with self._slots.changed:
            model = self._slots.loaded.get(target)
            if model is None:
                return False
            model.expires_at = 0.0
            if model.users == 0:
                await self._unload_locked(model)
            return True

    async def _unload_locked(self, model: LoadedModel) -> None:
        self._slots.loaded.pop(model.name, None)
        await asyncio.to_thread(model.llm.close)

    # -- time ---------------------------------------------------------------------------------------------------

    def _start_sweeper(self) -> None:
        if self._closed or (self._sweeper is not None and not self._sweeper.done()):
            return
        if any(model.expires_at < math.inf for model in self._slots.loaded.values()):
            self._sweeper = asyncio.get_running_loop().create_task(self._sweep())

    async def _sweep(self) -> None:
        """Unload models as they expire; ends when none can expire any more."""
        slots = self._slots
        while True:
            pending = [model.expires_at for model in slots.loaded.values() if model.expires_at < math.inf]
            if not pending:
                return
            # An expired model in use is looked at again soon: its last user sets the new time.
            await asyncio.sleep(min(max(min(pending) - self._clock(), 0.25), 5.0))
            async with slots.changed:
                now = self._clock()
                for model in list(slots.loaded.values()):
                    if model.users == 0 and model.expires_at <= now:
                        await self._unload_locked(model)
                slots.changed.notify_all()

    async def close(self) -> None:
        """Unload everything; running requests end with EngineClosedError."""
        self._closed = True
        if self._sweeper is not None:
            self._sweeper.cancel()
            with suppress(asyncio.CancelledError):
                await self._sweeper
        async with self._slots.changed:
            for model in list(self._slots.loaded.values()):
                await self._unload_locked(model)
            self._slots.changed.notify_all()
