"""Which models are in memory: loaded on demand, kept while used and a while after, unloaded when idle."""

from __future__ import annotations

import asyncio
import math
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from mlx_gptoss.errors import EngineClosedError, InvalidRequestError, ModelNotFoundError
from mlx_gptoss.llm import GptOss
from mlx_gptoss.names import DEMO, looks_like_path
from mlx_gptoss.registry import Alias, Registry, canonical_name
from mlx_gptoss.server.settings import ServerSettings

# A model that was asked to go goes as soon as nobody uses it, whatever its users say of keep-alive.
_AT_ONCE = 0.0


class Loader(Protocol):
    """Turns a canonical model name into a loaded model; called in a worker thread."""

    def __call__(self, name: str, /) -> GptOss: ...


@dataclass(slots=True)
class LoadedModel:
    """A model in memory. `keep_alive_s` is what was last asked for and `expires_at` the Unix time that follows from it,
    infinite when it stays; `users` counts running requests."""

    name: str
    llm: GptOss
    loaded_at: float
    keep_alive_s: float
    expires_at: float = math.inf
    users: int = 0


@dataclass(frozen=True, slots=True)
class Lease:
    """The right to use a model for one request. `load_s` is what loading it cost this request."""

    model: LoadedModel
    alias: Alias | None
    load_s: float


class ModelManager:
    """Loads, shares and unloads models. Used from one event loop.

    Each model loads in a task of its own that all who want it await, so a client that leaves stops nobody's load
    and no model is loaded twice. While a model waits for room, new requests for the others wait behind it: a busy
    model cannot keep another one out for ever.
    """

    def __init__(
        self,
        settings: ServerSettings,
        loader: Loader,
        registry: Registry | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.settings = settings
        self.registry = registry if registry is not None else Registry()
        self._loader = loader
        self._clock = clock
        self._loaded: dict[str, LoadedModel] = {}
        self._loading: dict[str, asyncio.Task[None]] = {}
        self._wanted: Counter[str] = Counter()
        self._awaited: Counter[str] = Counter()
        self._crowded: set[str] = set()
        self._removing: set[str] = set()
        self._occupied = 0
        self._changed = asyncio.Event()
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
        if default is not None and name.removesuffix(":latest") == default and looks_like_path(default):
            return default, None
        alias = self.registry.alias(name)
        target = canonical_name(alias.source if alias is not None else name)
        if target != DEMO:
            self.registry.find(target)
        return target, alias

    def loaded(self) -> list[LoadedModel]:
        """The models in memory, most recently loaded first."""
        return sorted(self._loaded.values(), key=lambda model: -model.loaded_at)

    # -- use ----------------------------------------------------------------------------------------------------

    @asynccontextmanager
    async def use(
        self, name: str | None, keep_alive_s: float | None = None, *, at_least_s: float = 0.0
    ) -> AsyncIterator[Lease]:
        """A model for one request, loaded if need be. `keep_alive_s` 0 unloads it afterwards, negative keeps it, and
        None leaves that as an earlier request has set it. For `at_least_s` it stays in any case."""
        target, alias = self.target(name)
        started = time.perf_counter()
        model, fresh = await self._acquire(target)
        load_s = time.perf_counter() - started if fresh else 0.0
        try:
            yield Lease(model, alias, load_s)
        finally:
            if keep_alive_s is not None:
                model.keep_alive_s = keep_alive_s
            await self._release(model, at_least_s)

    async def _acquire(self, name: str) -> tuple[LoadedModel, bool]:
        fresh = False
        self._wanted[name] += 1
        try:
            while True:
                if self._closed:
                    raise EngineClosedError("the server is stopping")
                if name in self._removing:
                    raise ModelNotFoundError(f"model {name!r} is being deleted")
                model = self._loaded.get(name)
                if model is not None and model.llm.closed and model.users == 0:
                    # Its engine has died; the next one starts afresh.
                    await self._unload(model)
                    continue
                if model is not None and (fresh or not self._crowded):
                    model.users += 1
                    return model, fresh
                if model is None:
                    self._awaited[name] += not fresh
                    fresh = True
                    await asyncio.shield(self._loading.get(name) or self._start_loading(name))
                else:
                    await self._changed.wait()
        finally:
            self._wanted[name] -= 1
            self._awaited[name] -= fresh
            self._announce()

    def _start_loading(self, name: str) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(self._load(name))
        self._loading[name] = task

        def ended(done: asyncio.Task[None]) -> None:
            self._loading.pop(name, None)
            if not done.cancelled():
                done.exception()  # Read, so that nobody having waited for it is no warning.

        task.add_done_callback(ended)
        return task

    async def _load(self, name: str) -> None:
        """Make room, then load. Ends without a model when nobody wants it any more."""
        try:
            while self._occupied >= self.settings.max_loaded:
                if self._closed or not self._wanted[name]:
                    return
                # What has just been loaded for somebody must be used before it can go again.
                idle = [model for model in self._loaded.values() if model.users == 0 and not self._awaited[model.name]]
                if idle:
                    await self._unload(min(idle, key=lambda model: model.expires_at))
                else:
                    self._crowded.add(name)
                    await self._changed.wait()
        finally:
            self._crowded.discard(name)
            self._announce()
        self._occupied += 1
        try:
            llm = await asyncio.to_thread(self._loader, name)
        except BaseException:
            self._occupied -= 1
            self._announce()
            raise
        keep_s, now = self.settings.keep_alive_s, self._clock()
        self._loaded[name] = LoadedModel(name, llm, now, keep_s, math.inf if keep_s < 0 else now + keep_s)
        self._announce()
        self._start_sweeper()

    def _announce(self) -> None:
        """Wake everyone who waits for something to change."""
        self._changed.set()
        self._changed = asyncio.Event()

    async def _release(self, model: LoadedModel, at_least_s: float) -> None:
        model.users -= 1
        keep_alive_s = model.keep_alive_s if model.keep_alive_s < 0 else max(model.keep_alive_s, at_least_s)
        if model.expires_at != _AT_ONCE:
            model.expires_at = math.inf if keep_alive_s < 0 else self._clock() + keep_alive_s
        leaving = keep_alive_s == 0 or model.expires_at == _AT_ONCE
        self._announce()
        if model.users == 0 and leaving and self._loaded.get(model.name) is model:
            await self._unload(model)
        self._start_sweeper()

    async def unload(self, name: str | None) -> bool:
        """Unload a model as soon as nobody uses it; False when it was not loaded."""
        target, _ = self.target(name)
        model = self._loaded.get(target)
        if model is None:
            return False
        model.expires_at = _AT_ONCE
        if model.users == 0:
            await self._unload(model)
        return True

    async def remove(self, name: str) -> None:
        """Delete an installed model from the disk, out of memory first. Raises ModelNotFoundError, and
        InvalidRequestError while anybody uses it, loads it or waits for it."""
        target = self.registry.find(name).name
        here = [known for known in {*self._loaded, *self._loading, *+self._wanted} if self._is_folder_of(known, target)]
        if target in self._removing or any(self._busy(known) for known in here):
            raise InvalidRequestError(f"{name} is in use", param="model", hint="Try again when it is idle.")
        self._removing.add(target)
        removal = asyncio.ensure_future(self._remove(target, here))
        removal.add_done_callback(lambda _: self._removing.discard(target))
        await asyncio.shield(removal)

    async def _remove(self, target: str, loaded: list[str]) -> None:
        for model in [self._loaded[name] for name in loaded if name in self._loaded]:
            await self._unload(model)
        await asyncio.to_thread(self.registry.remove, target)

    def _busy(self, name: str) -> bool:
        model = self._loaded.get(name)
        return self._wanted[name] > 0 or name in self._loading or (model is not None and model.users > 0)

    def _is_folder_of(self, name: str, target: str) -> bool:
        """Whether a loaded name is the installed model `target`, or its folder as the server's default."""
        if name == target:
            return True
        return looks_like_path(name) and Path(name).resolve() == self.registry.model_folder(target).resolve()

    async def _unload(self, model: LoadedModel) -> None:
        if self._loaded.get(model.name) is not model:
            return
        del self._loaded[model.name]
        # Its memory is taken until it has closed: nothing else loads into it before, even if we are cancelled here.
        closing = asyncio.ensure_future(asyncio.to_thread(model.llm.close))
        closing.add_done_callback(lambda _: self._vacate())
        await asyncio.shield(closing)

    def _vacate(self) -> None:
        self._occupied -= 1
        self._announce()

    # -- time ---------------------------------------------------------------------------------------------------

    def _start_sweeper(self) -> None:
        if self._closed or (self._sweeper is not None and not self._sweeper.done()):
            return
        if any(model.expires_at < math.inf for model in self._loaded.values()):
            self._sweeper = asyncio.get_running_loop().create_task(self._sweep())

    async def _sweep(self) -> None:
        """Unload models as they expire; ends when none can expire any more."""
        while True:
            pending = [model.expires_at for model in self._loaded.values() if model.expires_at < math.inf]
            if not pending:
                return
            # An expired model in use is looked at again soon: its last user sets the new time.
            await asyncio.sleep(min(max(min(pending) - self._clock(), 0.25), 5.0))
            for model in list(self._loaded.values()):
                idle = model.users == 0 and not self._wanted[model.name]
                if idle and model.expires_at <= self._clock() and self._loaded.get(model.name) is model:
                    await self._unload(model)

    async def close(self) -> None:
        """Unload everything; running requests end with EngineClosedError."""
        self._closed = True
        self._announce()
        if self._sweeper is not None:
            self._sweeper.cancel()
            with suppress(asyncio.CancelledError):
                await self._sweeper
        await asyncio.gather(*self._loading.values(), return_exceptions=True)
        for model in list(self._loaded.values()):
            await self._unload(model)
