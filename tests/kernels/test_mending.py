"""A kernel that fails while a model runs, after it passed its check, costs a line and not the request."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from mlx_gptoss import path
from mlx_gptoss.engine import Engine, EngineOptions
from mlx_gptoss.engine.device_memory import DeviceMemory
from mlx_gptoss.errors import InternalError, InvalidRequestError, KernelError
from mlx_gptoss.fused import FusedModel
from mlx_gptoss.kernels.backend import Backend, StockBackend
from mlx_gptoss.kernels.check import KernelReport, off
from mlx_gptoss.kernels.selfcheck import SelfCheck
from mlx_gptoss.kernels.source import kernel_names
from mlx_gptoss.llm import GptOss
from mlx_gptoss.mending import PROBATION, Mender
from mlx_gptoss.model import GptOssModel
from tests.bench.backend import BenchBackend
from tests.kernels.failing_backend import FailingBackend
from tests.tiny import random_weights, tiny_config, write_model_folder
from tests.unit.engine_support import ask, ids

SMALL = {"head_dim": 64, "num_heads": 8, "num_kv_heads": 2, "num_layers": 2, "hidden_size": 64}
PROMPTS = ["Hello", "What is 17 + 25?", "Name a colour."]
TOKENS = 4


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random model that knows the whole vocabulary."""
    made = tmp_path_factory.mktemp("tiny") / "model"
    write_model_folder(made, tiny_config(vocab_size=201_088, **SMALL))
    return made


def answers(llm: GptOss, prompts: list[str]) -> list[tuple[int, ...]]:
    def one(prompt: str) -> tuple[int, ...]:
        return tuple(llm.generate(prompt, effort="low", temperature=0, max_tokens=TOKENS).token_ids)

    with ThreadPoolExecutor(len(prompts)) as pool:
        return list(pool.map(one, prompts))


@pytest.fixture(scope="module")
def stock_answers(folder: Path) -> list[tuple[int, ...]]:
    with GptOss.load(folder, dtype="float32", backend="stock") as llm:
        return answers(llm, PROMPTS)


def load(
    folder: Path, backend: Backend, monkeypatch: pytest.MonkeyPatch, reports: tuple[KernelReport, ...] = ()
) -> GptOss:
    """The model on `backend`, all of whose kernels have passed their check but those in `reports`."""
    monkeypatch.setattr(path, "backend_named", lambda _name: backend)
    monkeypatch.setattr(path, "self_check", lambda found, _shapes: SelfCheck(found, reports))
    return GptOss.load(folder, dtype="float32")


def warnings_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


@pytest.mark.parametrize("fault", ["named", "mlx_names_it", "nameless"])
@pytest.mark.parametrize(
    ("victim", "after"),
    [
        ("qkv_rope", 3),
        ("attention_full", 1),
        ("attention_sliding", 1),
        ("moe_down", 7),
        ("head", 2),
        ("prefill_rope", 1),
    ],
)
def test_it_is_switched_off_with_one_line_and_the_request_goes_on(
    fault: str,
    victim: str,
    after: int,
    folder: Path,
    stock_answers: list[tuple[int, ...]],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    backend = FailingBackend(fault, victim, after)
    with load(folder, backend, monkeypatch) as llm:
        assert answers(llm, PROMPTS[:1]) == stock_answers[:1]
        assert backend.failed in ((1,) if fault != "nameless" else (1, 2))
        lines = warnings_of(caplog)
        assert len(lines) == 1
        assert f"kernel {victim} failed while running and is off now" in lines[0]
        launched = backend.bench.launches.count(victim)
        assert answers(llm, PROMPTS[:1]) == stock_answers[:1]
        assert backend.bench.launches.count(victim) == launched
        assert len(set(backend.bench.launches)) >= 8


@pytest.mark.parametrize("fault", ["named", "nameless", "nan"])
def test_every_request_of_the_batch_goes_on(
    fault: str, folder: Path, stock_answers: list[tuple[int, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = stock_answers
    if fault == "nan":
        # All kernels are off then, and what stands in for them rounds activations to bfloat16.
        reports = tuple(off(kernel, "off") for kernel in kernel_names())
        with load(folder, BenchBackend(), monkeypatch, reports) as llm:
            wanted = answers(llm, PROMPTS)
    with load(folder, FailingBackend(fault, "moe_gate_up", 4), monkeypatch) as llm:
        assert answers(llm, PROMPTS) == wanted


def test_numbers_that_are_not_finite_switch_all_kernels_off(
    folder: Path,
    stock_answers: list[tuple[int, ...]],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    backend = FailingBackend("nan", "attention_full", 2)
    with load(folder, backend, monkeypatch) as llm:
        assert answers(llm, PROMPTS[:1]) == stock_answers[:1]
        assert not warnings_of(caplog)
        assert len(llm.generate("Hello", temperature=0, max_tokens=PROBATION, repetition_stop=False).token_ids) > TOKENS
        assert ["the kernels failed while running" in line for line in warnings_of(caplog)] == [True]
        launched = len(backend.bench.launches)
        assert answers(llm, PROMPTS[:1]) == stock_answers[:1]
        assert len(backend.bench.launches) == launched


def test_a_lack_of_memory_is_no_kernels_fault(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    backend = FailingBackend("no_memory", "router", 2, times=1)
    with load(folder, backend, monkeypatch) as llm:
        with pytest.raises(InternalError, match="malloc"):
            answers(llm, PROMPTS[:1])
        launched = backend.bench.launches.count("router")
        answers(llm, PROMPTS[:1])
        assert backend.bench.launches.count("router") > launched


def fused(backend: Backend, made: list[FusedModel], damage: float = 1.0) -> Callable[[], FusedModel]:
    """Makes a model on the engine's thread, and puts it into `made`. `damage` multiplies the last norm."""

    def build() -> FusedModel:
        config = tiny_config(**SMALL)
        weights = random_weights(config, seed=1, dtype=mx.float32)
        weights = type(weights)(weights.embed, weights.layers, weights.norm * damage, weights.head)
        made.append(FusedModel(config, weights, backend, mx.float32))
        return made[0]

    return build


def test_damaged_weights_leave_the_kernels_on(caplog: pytest.LogCaptureFixture) -> None:
    made: list[FusedModel] = []
    with Engine(fused(BenchBackend(guard="fast"), made, damage=math.nan)) as engine:
        for _ in range(5):
            finished = engine.submit(ask(range(10), 3)).wait(60)
            assert finished is not None
            assert isinstance(finished.error, InternalError)
            assert "not finite" in str(finished.error)
    assert not made[0].board.off
    assert not warnings_of(caplog)


class RoomyDevice:
    """A GPU with memory, as far as the engine's warm-up asks."""

    def working_set(self) -> int:
        return 1 << 40

    def active(self) -> int:
        return 0

    def cached(self) -> int:
        return 0

    def clear_cache(self) -> None:
        pass

    def set_wired_limit(self, limit: int) -> None:
        pass

    def set_cache_limit(self, limit: int) -> None:
        pass


def test_a_failure_in_the_warm_up_does_not_stop_loading() -> None:
    made: list[FusedModel] = []
    build = fused(FailingBackend("nameless", "head"), made)
    with Engine(build, EngineOptions(), memory=DeviceMemory(RoomyDevice())) as engine:
        assert made[0].board.off == {"head"}
        assert len(ids(engine.submit(ask(range(10), 3)))) == 3


def test_a_conversation_goes_on_from_a_cache_that_the_kernel_wrote() -> None:
    """Tails and rings written by a kernel are read by what stands in for it, after mending as before."""
    config = tiny_config(**SMALL)
    stock = GptOssModel(config, random_weights(config, seed=1, dtype=mx.float32), mx.float32)
    prompt = [(7 * i) % 300 for i in range(150)]
    plain, cache = stock.make_cache(), stock.make_cache()
    model = FusedModel(config, stock.weights, BenchBackend(guard="fast"), mx.float32, stock=stock, tail=8)
    model.prefill([prompt], cache)
    stock.prefill([prompt], plain)
    for step, token in enumerate([3, 141, 59, 26, 53, 58, 97, 93, 23, 84, 62]):
        if step == 4:
            assert model.mend(KernelError("broken", where="attention_full"))
        if step == 7:
            assert model.mend(KernelError("broken", where="attention_sliding"))
        got, want = (
            np.array(each.decode(mx.array([token]), [kept])) for each, kept in ((model, cache), (stock, plain))
        )
        finite = np.isfinite(want)
        assert np.abs(got[finite] - want[finite]).max() <= 1e-3 * np.abs(want[finite]).max()


def test_what_is_no_kernels_doing_is_left_alone() -> None:
    mender = Mender(StockBackend(), ())
    for error in (ValueError("x"), InvalidRequestError("x"), MemoryError(), RuntimeError("cudaMalloc: out of memory")):
        assert not mender.mend(error)
    assert not mender.off


def test_mending_ends() -> None:
    """Whatever goes on failing, the number of times work is begun anew is bounded."""
    for errors in ([RuntimeError("x")], [InternalError("nan")], [RuntimeError("x"), InternalError("nan")]):
        mender = Mender(StockBackend(), ())
        assert sum(mender.mend(error) for error in errors * 100) <= 12
        assert not mender.off
    mender = Mender(StockBackend(), ())
    assert all(mender.mend(KernelError("x", where=name)) for name in kernel_names())
    assert not any(mender.mend(KernelError("x", where=name)) for name in kernel_names())


def test_a_failure_that_a_watch_never_sees_ends_with_all_kernels_off(caplog: pytest.LogCaptureFixture) -> None:
    mender = Mender(StockBackend(), ())
    for _ in range(3):
        assert mender.mend(RuntimeError("x"))
        assert mender.backend.name == "watched"
        changed = [mender.survived() for _ in range(PROBATION)]
        assert changed == [False] * (PROBATION - 1) + [True]
        assert mender.backend.name == "stock"
    assert mender.mend(RuntimeError("x"))
    assert mender.off == set(kernel_names())
    for _ in range(PROBATION):
        mender.survived()
    assert mender.off == set(kernel_names())
    assert len(warnings_of(caplog)) == 1
    assert not mender.mend(RuntimeError("x"))
