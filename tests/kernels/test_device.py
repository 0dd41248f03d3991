"""On a machine with a GPU: every kernel against its twin at the released shapes, and what doctor says of them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from click.testing import CliRunner

from mlx_gptoss.bench.spec import BenchSpec
from mlx_gptoss.bench.subject import load_ours
from mlx_gptoss.cli.doctor_cmd import doctor
from mlx_gptoss.engine import Engine, EngineOptions, GenerationRequest
from mlx_gptoss.kernels import attention, attention_out, head, moe, qkv, router
from mlx_gptoss.kernels.attention import attention_full, attention_full_twin, attention_merge, attention_merge_twin
from mlx_gptoss.kernels.backends import backend_named
from mlx_gptoss.kernels.cases import CASES
from mlx_gptoss.kernels.check import check_kernel
from mlx_gptoss.kernels.prefill_attention import prefill_attention
from mlx_gptoss.kernels.selfcheck import self_check
from mlx_gptoss.kernels.shapes import Shapes
from mlx_gptoss.kernels.tuning import tuning_for
from mlx_gptoss.stand_ins import prefill_attention_stand_in
from mlx_gptoss.weights import LinearFormat
from tests.kernels.decode_data import HALVES, PARAMS, close, floats, linear

MODELS = {"20b": Shapes(), "120b": Shapes(experts=128)}
KERNELS = [
    (kernel, tokens) for kernel in CASES for tokens in ((17, 512, 2048) if kernel.startswith("prefill_") else (512,))
]
"""Kernels and prompt lengths; a decode kernel sees no prompt."""
DEVICES = [pytest.param("metal", marks=pytest.mark.metal), pytest.param("cuda", marks=pytest.mark.cuda)]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize(("kernel", "tokens"), KERNELS)
def test_every_kernel_agrees_with_its_twin(kernel: str, model: str, tokens: int, device: str) -> None:
    shapes = replace(MODELS[model], tokens=tokens, keys=8192)
    report = check_kernel(kernel, shapes, backend_named(device), measure=False)
    assert report.status == "ok", report.reason


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("batch", [2, 3, 4, 5, 6, 7, 8])
@pytest.mark.parametrize("kernel", [qkv.NAME, attention_out.NAME, router.NAME, moe.GATE_UP, moe.DOWN, head.NAME])
def test_every_batch_agrees_with_its_twin(kernel: str, batch: int, device: str) -> None:
    report = check_kernel(kernel, Shapes(batch=batch), backend_named(device), measure=False)
    assert report.status == "ok", report.reason


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("batch", [1, 4])
@pytest.mark.parametrize("fmt", ["mxfp8", "q8", "q6", "q4"])
def test_packed_projections_agree_with_their_twins(fmt: LinearFormat, batch: int, device: str) -> None:
    backend, rng = backend_named(device), np.random.default_rng(batch)
    x, a = floats(rng, batch, 2880), floats(rng, batch, 4096)
    norm, rope = floats(rng, 2880, dtype=mx.bfloat16), floats(rng, batch, 64)
    shape: dict[str, Any] = {"heads": 64, "kv_heads": 8, "dtype": mx.float32}
    weight = linear(rng, 80 * 64, 2880, fmt, 64 if fmt[0] == "q" else 32)
    got = qkv.qkv_rope(x, norm, weight, rope, PARAMS, **shape, backend=backend)
    tuning = tuning_for(backend.family)
    halves = tuning.halves and batch == 1
    for g, w in zip(got, qkv.qkv_rope_twin(x, norm, weight, rope, PARAMS, **shape), strict=True):
        close(g, w, HALVES if halves and tuning.qkv_halves else 1e-4)
    weight = linear(rng, 2880, 4096, fmt, 64 if fmt[0] == "q" else 32)
    got_out = attention_out.attention_out(a, weight, x, backend=backend)
    close(got_out, attention_out.attention_out_twin(a, weight, x), HALVES if halves and tuning.out_halves else 1e-4)


@pytest.mark.parametrize("device", DEVICES)
def test_an_engine_of_sixteen(device: str) -> None:
    """Random weights of the released shape in two layers, requests that join and leave: each ends at its length."""
    spec = BenchSpec(random="20b", layers=2, backend=device)
    rng = np.random.default_rng(0)
    with Engine(lambda: load_ours(spec).model, EngineOptions(max_batch=16)) as engine:
        asked = [
            GenerationRequest(
                tuple(rng.integers(0, 199_000, 100 + 13 * i).tolist()),
                max_tokens=8 + i,
                stop_ids=(),
                repetition_stop=False,
            )
            for i in range(24)
        ]
        for request, generation in [(request, engine.submit(request)) for request in asked]:
            assert len(list(generation)) == request.max_tokens


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("keys", [1, 127, 128, 1023, 8191, 32_768, 131_000])
def test_decode_attention_at_any_context(keys: int, device: str) -> None:
    backend, rng = backend_named(device), np.random.default_rng(keys)
    q, sinks = floats(rng, 1, 64, 64, std=2.0), floats(rng, 64, dtype=mx.bfloat16)
    k, v = (floats(rng, 1, 8, 64, dtype=mx.bfloat16) for _ in range(2))
    main_k, main_v = (floats(rng, 8, keys + 72, 64, dtype=mx.bfloat16) for _ in range(2))
    tail_k, tail_v = (floats(rng, 8, 64, 64, dtype=mx.bfloat16) for _ in range(2))
    lengths = attention.cache_lengths(offset=keys + 9, n_main=keys, n_tail=9, capacity=keys + 72, row=0)
    args = (q, k, v, main_k, main_v, tail_k, tail_v, sinks, lengths)
    want = attention_full_twin(*args)
    for parts in {None, attention.parts_for(keys, tuning_for(backend.family))}:
        out, new_k, new_v = attention_full(*args, parts=parts, backend=backend)
        if parts is not None:
            out = attention_merge([out], sinks, backend=backend)[0]
        close(out, want[0], 1e-4)
        assert mx.array_equal(new_k[:, :10], want[1][:, :10])
        assert mx.array_equal(new_v[:, :10], want[2][:, :10])


@pytest.mark.parametrize("device", DEVICES)
def test_merge_of_a_batch(device: str) -> None:
    rng = np.random.default_rng(0)
    parts = [mx.abs(floats(rng, 64, count, 68)) + 0.5 for count in (1, 32, 8, 2, 64, 1, 4, 16)]
    sinks = floats(rng, 64, dtype=mx.bfloat16)
    close(attention_merge(parts, sinks, backend=backend_named(device)), attention_merge_twin(parts, sinks), 1e-4)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("window", [None, 128], ids=["full", "sliding"])
@pytest.mark.parametrize(("length", "offset"), [(1, 31_999), (129, 0), (512, 8000), (300, 130_000)])
def test_prompt_attention_at_any_context(length: int, offset: int, window: int | None, device: str) -> None:
    rng = np.random.default_rng(length)
    q = floats(rng, 1, length, 64, 64, dtype=mx.bfloat16)
    k, v = (floats(rng, 1, 8, offset + length, 64, dtype=mx.bfloat16) for _ in range(2))
    sinks = floats(rng, 64, dtype=mx.bfloat16)
    backend = backend_named(device)
    got = prefill_attention(q, k, v, sinks, offset=offset, window=window, backend=backend)
    want = prefill_attention_stand_in(q, k, v, sinks, offset=offset, window=window, backend=backend)
    close(got, want, 2e-2)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("model", MODELS)
def test_the_self_check_finds_nothing(model: str, device: str, tmp_path: Path) -> None:
    check = self_check(backend_named(device), MODELS[model], folder=tmp_path)
    assert [(report.kernel, report.reason) for report in check.reports if report.status == "off"] == []
    assert len(check.reports) == len(CASES)


@pytest.mark.parametrize("device", DEVICES)
def test_doctor_finds_the_machine_healthy(device: str) -> None:
    result = CliRunner().invoke(doctor, ["--backend", device, "--json"])
    assert result.exit_code == 0, result.output
    data = json.loads(result.output)
    assert data["healthy"] is True
    assert data["backend"] == device
    assert {row["kernel"] for row in data["kernels"]} == set(CASES)
    assert all(row["gigabytes_per_second"] > 0 for row in data["kernels"])
