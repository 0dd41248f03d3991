"""Each kernel can be switched off by itself, and a kernel that fails on a machine is: the answer stays right."""

from __future__ import annotations

import functools
import logging
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from mlx_gptoss import path
from mlx_gptoss.config import ModelConfig
from mlx_gptoss.errors import ConfigError, KernelError
from mlx_gptoss.fused import FusedModel
from mlx_gptoss.kernels.cases import CASES
from mlx_gptoss.kernels.expert_rows import takes_halves
from mlx_gptoss.kernels.selfcheck import self_check
from mlx_gptoss.kernels.switchboard import Switchboard
from mlx_gptoss.kernels.tuning import Rows, packaged_tuning
from mlx_gptoss.kernels.user_tuning import on_trial
from mlx_gptoss.llm import GptOss
from mlx_gptoss.model import GptOssModel
from tests.bench.backend import BenchBackend
from tests.kernels.faulty_backend import FaultyBackend
from tests.tiny import quantize_linear, random_weights, tiny_config, write_model_folder

PROMPT = [(7 * i) % 300 for i in range(40)]
STEPS = [3, 141, 59]


def small(**overrides: object) -> ModelConfig:
    fields: dict[str, object] = {"head_dim": 64, "num_heads": 8, "num_kv_heads": 2, "num_layers": 2}
    return tiny_config(**(fields | overrides))


def logits_of(model: GptOssModel | FusedModel, rows: int = 1) -> np.ndarray:
    """Logits after the prompt and after each step, of `rows` sequences that differ in their first token."""
    caches = [model.make_cache() for _ in range(rows)]
    first = [model.prefill([[row, *PROMPT]], cache) for row, cache in enumerate(caches)]
    seen = [np.concatenate([np.array(logits) for logits in first])]
    seen += [np.array(model.decode(mx.array([token] * rows), caches)) for token in STEPS]
    return np.stack(seen)


def assert_close(got: np.ndarray, want: np.ndarray, tolerance: float) -> None:
    finite = np.isfinite(want)
    assert np.array_equal(np.isfinite(got), finite)
    assert np.abs(got[finite] - want[finite]).max() <= tolerance * np.abs(want[finite]).max()


@functools.cache
def reference(dtype: mx.Dtype) -> tuple[GptOssModel, np.ndarray]:
    """The stock path over the weights of `dtype`, and its logits for two sequences."""
    config = small()
    stock = GptOssModel(config, random_weights(config, seed=3, dtype=dtype), dtype)
    return stock, logits_of(stock, rows=2)


@pytest.mark.parametrize("kernel", CASES)
def test_a_kernel_that_is_off_is_not_launched_and_not_missed(kernel: str) -> None:
    """bfloat16 for the prompt's kernels, which tile nothing finer; float32, and closeness, for a step's."""
    prompt = kernel.startswith("prefill")
    stock, want = reference(mx.bfloat16 if prompt else mx.float32)
    backend = BenchBackend(guard="fast")
    model = FusedModel(stock.config, stock.weights, backend, stock.dtype, stock=stock, off={kernel})
    assert_close(logits_of(model, rows=2), want, 0.05 if prompt else 1e-3)
    assert kernel not in backend.launches
    assert len(set(backend.launches)) >= 8


@pytest.mark.parametrize("fmt", ["bf16", "mxfp8", "q8", "q4"])
def test_with_every_kernel_off_the_model_still_answers(fmt: str) -> None:
    config = small()
    weights = random_weights(config, seed=3)
    if fmt != "bf16":
        head = quantize_linear(weights.head, fmt, 32)  # type: ignore[arg-type]  # one of the formats
        layers = tuple(
            type(layer)(
                layer.attn_norm,
                quantize_linear(layer.qkv, fmt, 32),  # type: ignore[arg-type]  # one of the formats
                layer.sinks,
                quantize_linear(layer.out, fmt, 32),  # type: ignore[arg-type]  # one of the formats
                layer.mlp_norm,
                layer.router,
                layer.gate_up,
                layer.down,
            )
            for layer in weights.layers
        )
        weights = type(weights)(weights.embed, layers, weights.norm, head)
    stock = GptOssModel(config, weights)
    backend = BenchBackend()
    model = FusedModel(config, weights, backend, stock=stock, off=set(CASES))
    assert_close(logits_of(model, rows=3), logits_of(stock, rows=3), 0.05)
    assert backend.launches == []


def test_dense_experts_have_a_stand_in() -> None:
    config = small(num_experts=8)
    weights = random_weights(config, seed=4, dense_experts=True)
    stock = GptOssModel(config, weights, mx.float32)
    off = {"moe_gate_up", "moe_down"}
    model = FusedModel(config, weights, BenchBackend(), mx.float32, stock=stock, off=off)
    assert_close(logits_of(model), logits_of(stock), 1e-3)


@pytest.mark.parametrize("rows", [1, 2])
@pytest.mark.parametrize("off", [set(), {"router"}, {"moe_gate_up"}, {"moe_down"}, {"moe_gate_up", "moe_down"}])
def test_stand_ins_take_and_give_packed_activations(off: set[str], rows: int) -> None:
    stock, _ = reference(mx.float32)
    backend = BenchBackend(guard="fast")
    one, pairs = Rows(1, 2, 1), Rows(1, 2, 1, passes=2)
    halves = packaged_tuning(backend.family).having(
        halves=True, gate_up_alone=pairs, down_alone=one, gate_up_several=pairs, down_several=one
    )
    model = FusedModel(stock.config, stock.weights, backend, stock.dtype, stock=stock, off=off)
    assert takes_halves(stock.weights.layers[0].gate_up, stock.weights.layers[0].down, 2, halves, rows)
    with on_trial(backend.family, halves):
        assert_close(logits_of(model, rows), logits_of(stock, rows), 5e-3)


def test_unknown_kernels_are_refused_and_some_chips_prefer_mlx() -> None:
    with pytest.raises(KernelError, match="no such kernel"):
        Switchboard(BenchBackend(), {"nonsense"})
    assert Switchboard(BenchBackend(family="m5-max")).off == {
        "prefill_attention",
        "prefill_moe_gate_up",
        "prefill_moe_down",
    }
    assert not Switchboard(BenchBackend(family="m4-max")).off


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random model that knows the whole vocabulary."""
    made = tmp_path_factory.mktemp("tiny") / "model"
    write_model_folder(made, small(vocab_size=201_088, hidden_size=64))
    return made


@pytest.fixture(scope="module")
def stock_answer(folder: Path) -> tuple[int, ...]:
    return answer(folder, "stock")


def answer(folder: Path, backend: str) -> tuple[int, ...]:
    with GptOss.load(folder, dtype="float32", backend=backend) as llm:
        return tuple(llm.generate("Hello", effort="low", temperature=0, max_tokens=3).token_ids)


FAULTS = {
    "compile_error": ("text", "head", "undeclared", 60.0),
    "wrong_numbers": ("wrong", "moe_down", "disagrees with its twin", 60.0),
    "nan": ("nan", "attention_full", "not finite", 60.0),
    "time_out": ("hang", "qkv_rope", "no result after 15 s", 15.0),
    "crash": ("crash", "prefill_rope", "SIGABRT", 60.0),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_kernel_that_fails_costs_one_line_and_nothing_else(
    fault: str,
    folder: Path,
    stock_answer: tuple[int, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    kind, victim, reason, limit = FAULTS[fault]
    monkeypatch.setenv("FAULTY_BACKEND", f"{kind}:{victim}")
    backend = FaultyBackend(kind, victim)
    checks: list[str] = []

    def check(*args: object, **options: object) -> object:
        checks.append("checked")
        return self_check(
            *args,  # type: ignore[arg-type]  # passed on as given
            **options,  # type: ignore[arg-type]
            kernels=(victim, "router"),
            spec="tests.kernels.faulty_backend:from_environment",
            time_limit_s=limit,
            folder=tmp_path,
        )

    monkeypatch.setattr(path, "backend_named", lambda _name: backend)
    monkeypatch.setattr(path, "self_check", check)
    with caplog.at_level(logging.WARNING):
        got = answer(folder, "auto")
    assert got == stock_answer
    assert checks == ["checked"]
    lines = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert len(lines) == 1
    assert victim in lines[0]
    assert reason in lines[0]
    assert "\n" not in lines[0]
    # The others ran as kernels, and the verdict was kept.
    assert victim not in backend.bench.launches
    assert len(set(backend.bench.launches)) >= 8
    assert len(list(tmp_path.iterdir())) == 1


def test_a_model_of_another_shape_runs_on_stock(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    config = tiny_config()
    model = GptOssModel(config, random_weights(config, seed=1), mx.float32)
    monkeypatch.setattr(path, "backend_named", lambda _name: BenchBackend())
    assert path.on_backend(model, "auto") is model
    assert "head_dim 64" in caplog.text
    with pytest.raises(ConfigError, match="head size"):
        path.on_backend(model, "metal")


def test_without_a_gpu_auto_is_the_stock_path() -> None:
    config = small()
    model = GptOssModel(config, random_weights(config, seed=1), mx.float32)
    if not (mx.metal.is_available() or mx.cuda.is_available()):
        assert path.on_backend(model, "auto") is model
    assert path.on_backend(model, "stock") is model
