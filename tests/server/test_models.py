"""The model manager: waiting, leaving, expiring, and a clock that is told the time."""

from __future__ import annotations

import asyncio
import math
import threading
import time
from pathlib import Path
from typing import Any, cast

import pytest

from mlx_gptoss.errors import EngineClosedError, InvalidRequestError, ModelNotFoundError
from mlx_gptoss.llm import GptOss
from mlx_gptoss.registry import Alias, Registry
from mlx_gptoss.server.models import ModelManager
from mlx_gptoss.server.settings import ServerSettings
from tests.server.support import MODEL, scripted_registry

pytestmark = pytest.mark.anyio
SECOND = "someone/second"


class Fake:
    """As much of a GptOss as the manager touches."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.closed = False

    def close(self) -> None:
        self.closed = True


class Loading:
    """A loader that waits until it is let go."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self.gate = threading.Event()

    def __call__(self, name: str, /) -> GptOss:
        self.names.append(name)
        self.gate.wait(10)
        return cast("GptOss", Fake(name))


def manager_of(registry: Registry, loader: Any, **fields: Any) -> ModelManager:
    folder = registry.model_folder(SECOND)
    if not folder.exists():
        folder.symlink_to(registry.model_folder(MODEL))
    return ModelManager(ServerSettings(**fields), loader, registry)


async def hold(manager: ModelManager, name: str, until: asyncio.Event) -> None:
    async with manager.use(name):
        await until.wait()


async def settled() -> None:
    for _ in range(20):
        await asyncio.sleep(0.005)


async def test_one_load_for_all_who_wait_and_none_is_lost_when_one_leaves(registry: Registry) -> None:
    loading = Loading()
    manager = manager_of(registry, loading)
    done = asyncio.Event()
    users = [asyncio.create_task(hold(manager, MODEL, done)) for _ in range(4)]
    await settled()
    users[0].cancel()
    await settled()
    loading.gate.set()
    await settled()
    assert loading.names == [MODEL]
    (model,) = manager.loaded()
    assert model.users == 3
    done.set()
    await asyncio.gather(*users, return_exceptions=True)
    assert model.users == 0
    await manager.close()


async def test_a_model_in_memory_answers_while_another_loads(registry: Registry) -> None:
    loading = Loading()
    loading.gate.set()
    manager = manager_of(registry, loading, max_loaded=2)
    async with manager.use(MODEL):
        pass
    loading.gate.clear()
    done = asyncio.Event()
    slow = asyncio.create_task(hold(manager, SECOND, done))
    await settled()
    async with asyncio.timeout(1), manager.use(MODEL):
        assert [model.name for model in manager.loaded()] == [MODEL]
    loading.gate.set()
    done.set()
    await slow
    await manager.close()


async def test_a_model_that_nobody_wants_any_more_is_not_loaded(registry: Registry) -> None:
    loading = Loading()
    loading.gate.set()
    manager = manager_of(registry, loading)
    done = asyncio.Event()
    busy = asyncio.create_task(hold(manager, MODEL, done))
    await settled()
    waiting = asyncio.create_task(hold(manager, SECOND, done))
    await settled()
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    done.set()
    await busy
    await settled()
    assert loading.names == [MODEL]
    # Its place is free again for those who were behind it.
    async with asyncio.timeout(1), manager.use(MODEL):
        pass
    await manager.close()


async def test_unloading_waits_for_those_who_use_it(registry: Registry) -> None:
    loading = Loading()
    loading.gate.set()
    manager = manager_of(registry, loading)
    closed = []
    async with manager.use(MODEL) as lease:
        assert await manager.unload(MODEL)
        closed.append(lease.model.llm.closed)
    closed.append(lease.model.llm.closed)
    assert closed == [False, True]
    assert manager.loaded() == []
    assert not await manager.unload(MODEL)
    await manager.close()


async def test_idle_models_go_when_their_time_is_up(registry: Registry) -> None:
    now = [1000.0]
    loading = Loading()
    loading.gate.set()
    manager = ModelManager(ServerSettings(keep_alive_s=60), loading, registry, clock=lambda: now[0])
    async with manager.use(MODEL):
        pass
    assert manager.loaded()[0].expires_at == 1060
    async with manager.use(MODEL, keep_alive_s=-1):
        pass
    assert manager.loaded()[0].expires_at == float("inf")
    async with manager.use(MODEL, keep_alive_s=0.1):
        now[0] += 5
    await settled()
    assert len(manager.loaded()) == 1
    now[0] += 1
    started = time.monotonic()
    while manager.loaded() and time.monotonic() - started < 10:
        await asyncio.sleep(0.02)
    assert manager.loaded() == []
    await manager.close()


async def test_what_was_asked_for_holds_until_somebody_asks_otherwise(registry: Registry) -> None:
    loading = Loading()
    loading.gate.set()
    manager = ModelManager(ServerSettings(keep_alive_s=60), loading, registry, clock=lambda: 1000.0)
    for asked, expires in ((None, 1060.0), (-1, math.inf), (None, math.inf), (30, 1030.0), (None, 1030.0)):
        async with manager.use(MODEL, keep_alive_s=asked):
            pass
        assert manager.loaded()[0].expires_at == expires
    async with manager.use(MODEL, at_least_s=45):
        pass
    assert manager.loaded()[0].expires_at == 1045
    async with manager.use(MODEL, keep_alive_s=0):
        pass
    assert manager.loaded() == []
    async with manager.use(MODEL):
        pass
    # Loaded anew it is kept as the server's default says.
    assert manager.loaded()[0].expires_at == 1060
    await manager.close()


async def test_a_closed_manager_serves_nobody(registry: Registry) -> None:
    loading = Loading()
    loading.gate.set()
    manager = manager_of(registry, loading)
    async with manager.use(MODEL) as lease:
        pass
    await manager.close()
    assert lease.model.llm.closed
    with pytest.raises(EngineClosedError):
        async with manager.use(MODEL):
            pass


async def test_names(registry: Registry) -> None:
    manager = manager_of(registry, Loading(), default_model=MODEL)
    registry.set_alias(Alias("mine", MODEL, system="s"))
    target, alias = manager.target("mine")
    assert (target, alias is not None and alias.system) == (MODEL, "s")
    assert manager.target(None)[0] == MODEL
    for name in ("absent", "/etc", "../x", str(registry.model_folder(MODEL))):
        with pytest.raises(Exception) as caught:
            manager.target(name)
        assert type(caught.value).__name__ in ("ModelNotFoundError", "InvalidRequestError")
    anything = manager_of(registry, Loading(), default_model=MODEL, any_model=True)
    assert anything.target("gpt-4o")[0] == MODEL
    with pytest.raises(ModelNotFoundError):
        manager.target("gpt-4o")


async def test_a_model_is_not_deleted_under_its_loader_or_its_users(registry: Registry) -> None:
    loading = Loading()
    manager = manager_of(registry, loading)
    done = asyncio.Event()
    user = asyncio.create_task(hold(manager, MODEL, done))
    await settled()
    with pytest.raises(InvalidRequestError, match="in use"):
        await manager.remove(MODEL)
    loading.gate.set()
    await settled()
    with pytest.raises(InvalidRequestError, match="in use"):
        await manager.remove(MODEL)
    # To have asked changes nothing: the model stays in memory when its user leaves.
    done.set()
    await user
    (model,) = manager.loaded()
    assert not model.llm.closed
    assert registry.find(MODEL).name == MODEL
    await manager.close()


async def test_nobody_loads_a_model_while_it_is_deleted(tmp_path: Path) -> None:
    registry = scripted_registry(tmp_path)
    deleting, deleted = threading.Event(), threading.Event()
    remove = registry.remove

    def slow(name: str) -> int:
        deleting.set()
        deleted.wait(10)
        return remove(name)

    registry.remove = slow  # type: ignore[method-assign]
    loading = Loading()
    loading.gate.set()
    manager = manager_of(registry, loading)
    async with manager.use(MODEL) as lease:
        fake = lease.model.llm
    removal = asyncio.create_task(manager.remove(MODEL))
    while not deleting.is_set():
        await asyncio.sleep(0.005)
    assert fake.closed
    with pytest.raises(ModelNotFoundError, match="being deleted"):
        async with manager.use(MODEL):
            pass
    with pytest.raises(InvalidRequestError, match="in use"):
        await manager.remove(MODEL)
    # The client leaves; the deletion goes on, and keeps everybody out until it is done.
    removal.cancel()
    await settled()
    with pytest.raises(ModelNotFoundError):
        async with manager.use(MODEL):
            pass
    deleted.set()
    await settled()
    with pytest.raises(ModelNotFoundError):
        manager.target(MODEL)
    assert loading.names == [MODEL]
    await manager.close()


async def test_the_default_folder_is_not_deleted_by_its_name_while_in_use(registry: Registry) -> None:
    loading = Loading()
    loading.gate.set()
    folder = str(registry.model_folder(MODEL))
    manager = manager_of(registry, loading, default_model=folder)
    async with manager.use(folder):
        with pytest.raises(InvalidRequestError, match="in use"):
            await manager.remove(MODEL)
    await manager.close()
