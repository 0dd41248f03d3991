"""Memory limits of the device: wiring, warm-up, chunks near the limit, and what an engine gives up as it runs short."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlx_gptoss.engine import Engine, GenerationRequest
from mlx_gptoss.engine.device_memory import FULL_SHARE, NEAR_SHARE, DeviceMemory, MlxDevice, Pressure
from mlx_gptoss.engine.pace import LARGEST_CHUNK, SMALLEST_CHUNK
from mlx_gptoss.engine.prefix_cache import PrefixCache, Stored
from mlx_gptoss.errors import InsufficientMemoryError, QueueFullError
from mlx_gptoss.llm import GptOss
from mlx_gptoss.plan.machine import Machine
from mlx_gptoss.plan.planner import WORKSPACE_BYTES
from mlx_gptoss.request import SamplingParams
from tests.tiny import tiny_config, write_model_folder
from tests.unit.fake_model import FakeModel

GIB = 1 << 30


@dataclass
class FakeDevice:
    """A device whose memory is whatever the test says; notes what it was told."""

    limit: int | None = 16 * GIB
    used: int = 0
    freed: int = 0
    calls: list[tuple[str, int]] = field(default_factory=list)

    def working_set(self) -> int | None:
        return self.limit

    def active(self) -> int:
        return self.used

    def cached(self) -> int:
        return self.freed

    def set_wired_limit(self, limit: int) -> None:
        self.calls.append(("wired", limit))

    def set_cache_limit(self, limit: int) -> None:
        self.calls.append(("cache", limit))

    def clear_cache(self) -> None:
        self.calls.append(("clear", self.freed))
        self.freed = 0


def test_what_is_needed_is_wired() -> None:
    device = FakeDevice(used=12 * GIB)
    DeviceMemory(device).prepare(2 * GIB)
    assert ("wired", 14 * GIB) in device.calls


@given(limit=st.integers(GIB, 512 * GIB), used=st.integers(0, 600 * GIB), growth=st.integers(0, 100 * GIB))
def test_never_more_is_wired_than_the_system_allows(limit: int, used: int, growth: int) -> None:
    device = FakeDevice(limit=limit, used=used)
    DeviceMemory(device).prepare(growth)
    calls = dict(device.calls)
    assert calls["wired"] == min(used + growth, limit)
    assert 0 < calls["cache"] <= 2 * GIB


def test_nothing_is_set_where_there_is_no_limit() -> None:
    device = FakeDevice(limit=None, used=100 * GIB)
    memory = DeviceMemory(device)
    memory.prepare(GIB)
    assert device.calls == []
    assert memory.pressure() is Pressure.NONE
    assert memory.chunk_limit() == LARGEST_CHUNK


@pytest.mark.parametrize(
    ("share", "expected"),
    [(0.0, Pressure.NONE), (NEAR_SHARE - 0.01, Pressure.NONE), (NEAR_SHARE + 0.01, Pressure.NEAR),
     (FULL_SHARE + 0.01, Pressure.FULL), (2.0, Pressure.FULL)],
)  # fmt: skip
def test_pressure_rises_with_use(share: float, expected: Pressure) -> None:
    assert DeviceMemory(FakeDevice(used=int(16 * GIB * share))).pressure() is expected


def test_freed_buffers_go_before_anything_else() -> None:
    device = FakeDevice(used=10 * GIB, freed=5 * GIB)
    assert DeviceMemory(device).pressure() is Pressure.NONE
    assert device.calls == [("clear", 5 * GIB)]
    device.calls.clear()
    assert DeviceMemory(device).pressure() is Pressure.NONE
    assert device.calls == []


@given(used=st.integers(0, 20 * GIB))
def test_chunks_shrink_towards_the_limit(used: int) -> None:
    memory = DeviceMemory(FakeDevice(used=used))
    chunk = memory.chunk_limit()
    assert SMALLEST_CHUNK <= chunk <= LARGEST_CHUNK
    assert chunk % SMALLEST_CHUNK == 0
    assert chunk >= DeviceMemory(FakeDevice(used=used + GIB)).chunk_limit()


def test_chunks_are_whole_while_there_is_room() -> None:
    assert DeviceMemory(FakeDevice(used=8 * GIB)).chunk_limit() == LARGEST_CHUNK
    assert DeviceMemory(FakeDevice(used=16 * GIB)).chunk_limit() == SMALLEST_CHUNK


def engine(device: FakeDevice, model: FakeModel) -> Engine:
    return Engine(lambda: model, memory=DeviceMemory(device))


def greedy(length: int, tokens: int) -> GenerationRequest:
    return GenerationRequest(
        tuple(1 + i % 50 for i in range(length)),
        SamplingParams(temperature=0),
        max_tokens=tokens,
        stop_ids=(),
        repetition_stop=False,
    )


def test_a_model_is_warmed_up_once_loaded() -> None:
    model = FakeModel()
    with engine(FakeDevice(), model):
        assert len(model.prefilled) == 1
        assert len(model.decoded) == 1


def test_without_a_gpu_nothing_is_warmed_up() -> None:
    model = FakeModel()
    with engine(FakeDevice(limit=None), model):
        assert model.prefilled == []


def test_prompts_go_in_small_chunks_near_the_limit() -> None:
    device = FakeDevice()
    model = FakeModel()
    with engine(device, model) as running:
        model.prefilled.clear()
        device.used = 16 * GIB
        generation = running.submit(greedy(300, 3))
        assert len(list(generation)) == 3
        assert max(model.prefilled) == SMALLEST_CHUNK
        assert sum(model.prefilled) == 300
        model.prefilled.clear()
        device.used = 0
        list(running.submit(GenerationRequest(tuple(range(60, 90)) * 10, max_tokens=1, stop_ids=())))
        assert max(model.prefilled) > SMALLEST_CHUNK


def wait_until(true: Callable[[], bool], seconds: float = 20.0) -> None:
    until = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < until, "timed out"
        time.sleep(0.002)


def test_new_requests_are_turned_away_while_memory_is_full() -> None:
    device = FakeDevice()
    with engine(device, FakeModel()) as running:
        first = running.submit(greedy(10, 100_000))
        wait_until(lambda: running.stats().active == 1)
        device.used = 16 * GIB
        refusals: list[QueueFullError] = []

        def is_refused() -> bool:
            try:
                running.submit(greedy(5, 1)).cancel()
            except QueueFullError as error:
                refusals.append(error)
            return bool(refusals)

        wait_until(is_refused)
        assert "memory" in str(refusals[0])
        assert refusals[0].retry_after > 0
        device.used = 0
        first.cancel()
        first.wait(20)

        def is_taken() -> bool:
            try:
                return len(list(running.submit(greedy(5, 2)))) == 2
            except QueueFullError:
                return False

        wait_until(is_taken)


def test_stored_conversations_go_when_memory_runs_short() -> None:
    device = FakeDevice()
    with engine(device, FakeModel()) as running:
        for start in range(4):
            list(running.submit(GenerationRequest(tuple(range(start + 1, start + 40)), max_tokens=2, stop_ids=())))
        wait_until(lambda: running.stats().prefix_entries >= 4)
        device.used = int(16 * GIB * 0.95)
        list(running.submit(greedy(5, 40)))
        wait_until(lambda: running.stats().prefix_entries <= 1)


def test_shrinking_drops_the_least_recently_used() -> None:
    class Held:
        nbytes = 100

    cache = PrefixCache(10_000)
    for number in range(5):
        cache.store(Stored(np.array([number, 1, 2], dtype=np.int32), Held()))
    cache.shrink(250)
    assert (len(cache), cache.nbytes) == (2, 200)
    assert {int(entry.tokens[0]) for entry in cache._entries} == {3, 4}


def test_the_real_device_takes_every_call() -> None:
    device = MlxDevice()
    memory = DeviceMemory(device)
    memory.prepare(GIB)
    assert device.active() >= 0
    assert device.cached() >= 0
    device.clear_cache()
    assert memory.pressure() in Pressure


def machine_with(room: int, folder: Path) -> Machine:
    from mlx_gptoss.plan.guard import folder_bytes

    return Machine("test", 1 << 40, folder_bytes(folder) + WORKSPACE_BYTES + room, None)


def test_loading_is_refused_before_weights_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "model"
    write_model_folder(folder, tiny_config(head_dim=64, max_position_embeddings=1 << 20))
    monkeypatch.setattr("mlx_gptoss.loader.load_model", lambda *_: pytest.fail("the weights were read"))
    with pytest.raises(InsufficientMemoryError, match="does not fit in memory"):
        GptOss.load(folder, machine=machine_with(-1, folder))
    with pytest.raises(InsufficientMemoryError, match="a context of 5000 tokens"):
        GptOss.load(folder, machine=machine_with(1 << 20, folder), context=5000)


def test_context_is_what_memory_allows(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    config = tiny_config(head_dim=64)
    write_model_folder(folder, config)
    each = 2 * 2 * config.num_kv_heads * config.head_dim * 2
    with GptOss.load(folder, machine=machine_with(20_000 * each, folder), prefix_cache_bytes=0) as llm:
        assert 18_000 < llm.context <= 20_000
        assert llm.engine.options.max_batch == 2
    with GptOss.load(folder, machine=machine_with(1 << 36, folder)) as llm:
        assert llm.context == config.max_position_embeddings
