"""The trained demo checkpoint answers token for token alike through the stock path and through every back end."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from mlx_gptoss.cache import FullLayerCache
from mlx_gptoss.convert import convert
from mlx_gptoss.demo import unpack_demo
from mlx_gptoss.fused import FusedModel
from mlx_gptoss.harmony.render import render
from mlx_gptoss.harmony.vocabulary import load_vocabulary
from mlx_gptoss.kernels.backends import backend_named
from mlx_gptoss.kernels.draw import DRAW_KERNELS
from mlx_gptoss.kernels.expert_rows import takes_halves
from mlx_gptoss.kernels.source import kernel_names
from mlx_gptoss.kernels.tuning import Rows, packaged_tuning
from mlx_gptoss.kernels.user_tuning import on_trial
from mlx_gptoss.llm import GptOss, as_request
from mlx_gptoss.loader import load_model
from mlx_gptoss.model import GptOssModel

QUESTION = "What is 17 + 25?"
STEPS = 8


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("demo")
    return convert_demo(root)


@pytest.fixture(scope="module")
def stock(folder: Path) -> Iterator[GptOssModel]:
    yield load_model(folder, "bfloat16")
    mx.clear_cache()


def convert_demo(root: Path) -> Path:
    convert(unpack_demo(root / "source"), root / "model")
    return root / "model"


def prompt(question: str) -> list[int]:
    return list(render(as_request(question, {"effort": "low"}), load_vocabulary()).token_ids)


def greedy(model: GptOssModel | FusedModel, ids: list[int], count: int) -> tuple[list[int], list[np.ndarray]]:
    """The greedy continuation and the logits it was drawn from."""
    cache = model.make_cache()
    logits = model.prefill([ids], cache)
    tokens, seen = [], []
    for step in range(count):
        assert logits is not None
        seen.append(np.array(logits)[0])
        tokens.append(int(seen[-1].argmax()))
        if step + 1 < count:
            logits = model.decode(mx.array(tokens[-1:]), [cache])
    return tokens, seen


@pytest.mark.parametrize("halves", [False, True])
def test_the_bench_answers_as_stock_does(stock: GptOssModel, halves: bool) -> None:
    """Prompt and answer on the kernels' text: 76 positions of prefill, 8 greedy tokens, the whole vocabulary."""
    from tests.bench.backend import BenchBackend

    backend = BenchBackend(guard="fast")
    fused = FusedModel(stock.config, stock.weights, backend, stock.dtype, stock=stock, tail=4)
    ids = prompt(QUESTION)
    assert len(ids) > 64
    tuning = packaged_tuning(backend.family)
    # As on a GPU that multiplies two halves at a time, with simdgroups that only bring activations.
    apart = Rows(2, 3, 2, stagers=1)
    in_halves = tuning.having(halves=True, down_alone=Rows(2, 4, 1), qkv_alone=apart, staged_bytes=16_384)
    layer = stock.weights.layers[0]
    assert takes_halves(layer.gate_up, layer.down, stock.config.experts_per_token, in_halves)
    with on_trial(backend.family, in_halves if halves else tuning):
        ours, logits = greedy(fused, ids, STEPS)
    theirs, wanted = greedy(stock, ids, STEPS)
    assert ours == theirs
    used = stock.config.used_vocab_size
    for a, b in zip(logits, wanted, strict=True):
        assert np.isneginf(a[used:]).all()
        assert np.abs(a[:used] - b[:used]).max() < 0.12 * np.abs(b[:used]).max()  # bfloat16 on both ways
    # All kernels took part but these: the draw is the engine's, and 83 positions need one part of a full layer.
    assert set(kernel_names()) - set(backend.launches) <= {*DRAW_KERNELS, "attention_merge"}


def test_a_long_prompt_in_chunks_is_one_prompt(stock: GptOssModel) -> None:
    """Chunks that end inside and beyond the window leave the cache that one pass leaves (on the twins)."""
    from mlx_gptoss.kernels.backend import StockBackend

    ids = (prompt(QUESTION) * 3)[:170]
    caches = []
    for chunk in (2048, 60):
        model = FusedModel(stock.config, stock.weights, StockBackend(), stock.dtype, stock=stock, chunk=chunk)
        cache = model.make_cache()
        logits = model.prefill([ids], cache)
        assert logits is not None
        caches.append((int(np.array(logits)[0].argmax()), cache))
    assert caches[0][0] == caches[1][0]
    for a, b in zip(caches[0][1].layers, caches[1][1].layers, strict=True):
        assert isinstance(a, FullLayerCache) == isinstance(b, FullLayerCache)
        if isinstance(a, FullLayerCache) and isinstance(b, FullLayerCache):
            assert a.length == b.length == 170
            found, wanted = (np.array(c.view()[0].astype(mx.float32)) for c in (a, b))
            assert np.abs(found - wanted).max() < 0.1 * np.abs(wanted).max()


def whole_answer(folder: Path, backend: str) -> None:
    """Stock and device answer the same questions alike, to the end."""
    backend_named(backend)
    questions = (QUESTION, "Hello", "What is the weather in Paris?")
    answers = []
    for name in ("stock", backend, "auto"):
        with GptOss.load(folder, backend=name) as llm:
            answers.append([llm.generate(q, effort="low", temperature=0, max_tokens=200).token_ids for q in questions])
    assert answers[1] == answers[2]
    assert answers[0] == answers[1]


@pytest.mark.metal
def test_metal_answers_as_stock_does(folder: Path) -> None:
    whole_answer(folder, "metal")


@pytest.mark.cuda
def test_cuda_answers_as_stock_does(folder: Path) -> None:
    whole_answer(folder, "cuda")
