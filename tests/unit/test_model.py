"""The stock model: one answer however the tokens arrive, clear errors, every weight format."""

from __future__ import annotations

import dataclasses
from functools import cache
from typing import Any

import mlx.core as mx
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlx_gptoss import attention
from mlx_gptoss.attention import attend_causal, attend_window
from mlx_gptoss.cache import SequenceCache
from mlx_gptoss.errors import ContextOverflowError, InternalError, InvalidRequestError
from mlx_gptoss.model import PREFILL_CHUNK, GptOssModel
from mlx_gptoss.moe import route, swiglu
from mlx_gptoss.weights import Experts, Linear, LinearFormat
from tests.tiny import quantize_linear, random_weights, tiny_config

CONFIG = tiny_config(sliding_window=8, vocab_size=64)
LENGTH = 60
Array = npt.NDArray[np.float32]


@cache
def _model(dtype: mx.Dtype = mx.float32) -> GptOssModel:
    return GptOssModel(CONFIG, random_weights(CONFIG, 5, dtype=dtype), dtype)


def _ids(seed: int, batch: int = 1, length: int = LENGTH) -> mx.array:
    return mx.array(np.random.default_rng(seed).integers(0, CONFIG.vocab_size, (batch, length)))


@cache
def _whole(seed: int) -> Array:
    return np.array(_model()(_ids(seed))[0])


def _close(got: mx.array, expected: Array) -> None:
    np.testing.assert_allclose(np.array(got), expected, rtol=1e-3, atol=1e-4)


_CHUNKS = st.lists(st.integers(1, 25), min_size=1, max_size=8)


@settings(max_examples=30, deadline=None)
@given(_CHUNKS)
def test_chunked_prefill_is_whole_prefill(chunks: list[int]) -> None:
    model, ids = _model(), _ids(0)
    kept, start, parts = model.make_cache(), 0, []
    for chunk in [*chunks, LENGTH]:
        if start == LENGTH:
            break
        parts.append(model(ids[:, start : start + chunk], kept))
        start = min(start + chunk, LENGTH)
    assert kept.offset == LENGTH
    _close(mx.concatenate(parts, axis=1)[0], _whole(0))


@settings(max_examples=20, deadline=None)
@given(_CHUNKS, st.booleans())
def test_prefill_gives_the_last_logits_and_the_same_cache(chunks: list[int], last_needs: bool) -> None:
    model, ids = _model(), _ids(1)
    kept, start = model.make_cache(), 0
    for chunk in chunks:
        piece = ids[:, start : min(start + chunk, LENGTH - 3)]
        if piece.shape[1] == 0:
            break
        logits = model.prefill(piece, kept, need_logits=last_needs)
        start += piece.shape[1]
        if last_needs:
            assert logits is not None
            _close(logits[0], _whole(1)[start - 1])
        else:
            assert logits is None
    _close(model(ids[:, start : start + 3], kept)[0], _whole(1)[start : start + 3])


@settings(max_examples=15, deadline=None)
@given(st.lists(st.integers(1, 40), min_size=1, max_size=4))
def test_decode_of_several_sequences_is_prefill_of_each(starts: list[int]) -> None:
    model = _model()
    caches = []
    for row, start in enumerate(starts):
        kept = model.make_cache()
        model.prefill(_ids(row)[:, :start], kept, need_logits=False)
        caches.append(kept)
    for step in range(12):
        tokens = mx.stack([_ids(row)[0, start + step] for row, start in enumerate(starts)])
        logits = model.decode(tokens, caches)
        for row, start in enumerate(starts):
            _close(logits[row], _whole(row)[start + step])


def test_decode_is_lazy() -> None:
    """The call returns before anything runs: no memory has been asked for."""
    model = _model()
    kept, token = model.make_cache(), mx.array([1])
    mx.eval(model.decode(token, [kept]), kept.arrays())
    before = mx.get_active_memory()
    logits = model.decode(token, [kept])
    assert mx.get_active_memory() - before < 4096
    assert kept.offset == 2
    mx.eval(logits)


@settings(max_examples=15, deadline=None)
@given(st.integers(1, 40), st.integers(1, 15), st.integers(1, 15))
def test_copies_snapshots_and_restores_are_fresh(start: int, aside: int, more: int) -> None:
    model, ids, other = _model(), _ids(2), _ids(3)
    kept = model.make_cache()
    model(ids[:, :start], kept)
    snapshot, twin = kept.snapshot(), kept.copy()
    model(other[:, :aside], kept)
    kept.restore(snapshot)
    for reused in (kept, twin):
        _close(model(ids[:, start : start + more], reused)[0], _whole(2)[start : start + more])


@pytest.mark.parametrize(("length", "positions"), [(8, 8), (8, 3), (5, 4), (30, 1), (30, 0)])
def test_trim_is_fresh(length: int, positions: int) -> None:
    model, ids = _model(), _ids(4)
    kept = model.make_cache()
    mixed = mx.concatenate([ids[:, : length - positions], _ids(9)[:, :positions]], axis=1)
    model(mixed, kept)
    kept.trim(positions)
    rest = ids[:, length - positions : length + 20]
    _close(model(rest, kept)[0], _whole(4)[length - positions : length + 20])


def test_batch_rows_are_independent() -> None:
    ids = mx.concatenate([_ids(row) for row in range(3)], axis=0)
    model = _model()
    kept = model.make_cache(batch=3)
    logits = mx.concatenate([model(ids[:, :21], kept), model(ids[:, 21:], kept)], axis=1)
    for row in range(3):
        _close(logits[row], _whole(row))
    kept = model.make_cache(batch=3)
    last = model.prefill(ids, kept)
    assert last is not None
    _close(last, np.stack([_whole(row)[-1] for row in range(3)]))


@pytest.mark.slow
def test_longer_than_one_pass() -> None:
    """Two and a half passes at once equal the same tokens in other pieces; prefill agrees."""
    model = _model()
    length = PREFILL_CHUNK * 2 + 700
    ids = _ids(7, length=length)
    whole = np.array(model(ids)[0])
    kept = model.make_cache()
    for start in range(0, length - 5, 1500):
        model.prefill(ids[:, start : min(start + 1500, length - 5)], kept, need_logits=False)
    _close(model(ids[:, length - 5 :], kept)[0], whole[-5:])
    last = model.prefill(ids, model.make_cache())
    assert last is not None
    _close(last[0], whole[-1])


def test_bfloat16_stays_near_float32() -> None:
    logits = np.array(_model(mx.bfloat16)(_ids(0))[0])
    error = np.linalg.norm(logits - _whole(0)) / np.linalg.norm(_whole(0))
    assert 0 < error < 0.02


def test_padding_ids_are_masked() -> None:
    config = tiny_config(num_layers=1, hidden_size=32, vocab_size=200_064, num_experts=2, experts_per_token=1)
    model = GptOssModel(config, random_weights(config, 0))
    for logits in (model([[1, 2]])[0], model.decode(mx.array([3]), [model.make_cache()])):
        assert mx.all(logits[:, 200_014:] == -mx.inf).item()
        assert mx.all(mx.isfinite(logits[:, :200_014])).item()


@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16])
@pytest.mark.parametrize(("fmt", "worst"), [("mxfp8", 0.2), ("q8", 0.02), ("q6", 0.08), ("q4", 0.4)])
def test_quantised_formats(fmt: LinearFormat, worst: float, dtype: mx.Dtype) -> None:
    weights = random_weights(CONFIG, 5)
    layers = tuple(
        dataclasses.replace(layer, qkv=quantize_linear(layer.qkv, fmt, 32), out=quantize_linear(layer.out, fmt, 32))
        for layer in weights.layers
    )
    packed = dataclasses.replace(
        weights,
        layers=layers,
        embed=quantize_linear(weights.embed, fmt, 32),
        head=quantize_linear(weights.head, fmt, 32),
    )
    logits = np.array(GptOssModel(CONFIG, packed, dtype)(_ids(0))[0])
    error = np.linalg.norm(logits - _whole(0)) / np.linalg.norm(_whole(0))
    assert 0 < error < worst


def _attention_by_hand(q: Array, k: Array, v: Array, sinks: Array, window: int | None) -> Array:
    """The definition, one query at a time in float64."""
    batch, heads, length, dim = q.shape
    total, share = k.shape[2], heads // k.shape[1]
    out = np.zeros_like(q, dtype=np.float64)
    for row in range(batch):
        for head in range(heads):
            for query in range(length):
                position = total - length + query
                first = 0 if window is None else max(0, position - window + 1)
                keys = k[row, head // share, first : position + 1].astype(np.float64)
                scores = keys @ q[row, head, query] / np.sqrt(dim)
                weights = np.exp(scores)
                weights /= weights.sum() + np.exp(float(sinks[head]))
                out[row, head, query] = weights @ v[row, head // share, first : position + 1]
    return out.astype(np.float32)


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 3), st.integers(1, 70), st.integers(0, 40), st.sampled_from([1, 2, 7, 33]), st.integers(0, 99))
def test_attention_is_its_definition(batch: int, length: int, before: int, window: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    q = rng.standard_normal((batch, 4, length, 8), dtype=np.float32)
    k, v = (rng.standard_normal((batch, 2, before + length, 8), dtype=np.float32) for _ in range(2))
    sinks = rng.standard_normal(4, dtype=np.float32)
    _close(
        attend_causal(mx.array(q), mx.array(k), mx.array(v), mx.array(sinks)), _attention_by_hand(q, k, v, sinks, None)
    )
    short = min(before, window - 1)
    k, v = k[:, :, before - short :], v[:, :, before - short :]
    got = attend_window(mx.array(q), mx.array(k), mx.array(v), mx.array(sinks), window)
    _close(got, _attention_by_hand(q, k, v, sinks, window))


def test_long_causal_attention_is_cut_into_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    q, k, v = (mx.array(rng.standard_normal((1, 2, n, 8), dtype=np.float32)) for n in (50, 90, 90))
    sinks = mx.zeros(2)
    whole = np.array(attend_causal(q, k, v, sinks))
    monkeypatch.setattr(attention, "MAX_SCORES", 2 * 90 * 7)
    _close(attend_causal(q, k, v, sinks), whole)


def test_routing_takes_the_best_and_softmaxes_over_them_alone() -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((50, 16), dtype=np.float32)
    weight = rng.standard_normal((7, 16), dtype=np.float32)
    bias = rng.standard_normal(7, dtype=np.float32)
    logits = x @ weight.T + bias
    experts, weights = route(mx.array(x), Linear(mx.array(weight), mx.array(bias)), 3)
    for row in range(50):
        best = np.argsort(-logits[row])[:3]
        order = np.argsort(-np.array(weights[row]))
        assert np.array(experts[row])[order].tolist() == best.tolist()
        exact = np.exp(logits[row][best] - logits[row].max())
        np.testing.assert_allclose(np.array(weights[row])[order], exact / exact.sum(), rtol=1e-4)


@pytest.mark.parametrize(
    ("gate", "linear", "expected"),
    [
        (0.0, 3.0, 0.0),
        (100.0, 0.0, 7.0),
        (100.0, 100.0, 56.0),
        (100.0, -100.0, -42.0),
        (-100.0, 5.0, 0.0),
        (1.0, -1.0, 0.0),
        (1.0, 1.0, 2.0 / (1.0 + np.exp(-1.702))),
    ],
)
def test_swiglu_clamps(gate: float, linear: float, expected: float) -> None:
    got = swiglu(mx.array([gate]), mx.array([linear]), 7.0, 1.702).item()
    assert got == pytest.approx(expected, rel=1e-4, abs=1e-6)


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ([], "shape"),
        ([[]], "shape"),
        ([[1, 2], [3]], "differ in length"),
        ([[64]], "out of range.*63.*64"),
        ([[-1]], "out of range"),
        ([1, 2], "rows of ids"),
        (None, "rows of ids"),
        ("hi", "no whole number"),
        ([["a"]], "no whole number"),
        ([[1.5]], "no whole number"),
        (mx.array([1, 2]), "shape"),
        (mx.array([[1.0]]), "integers"),
    ],
)
def test_bad_ids(ids: Any, message: str) -> None:
    for call in (_model(), lambda ids: _model().prefill(ids, _model().make_cache())):
        with pytest.raises(InvalidRequestError, match=message):
            call(ids)


def test_rows_of_numpy_are_welcome() -> None:
    ids = np.array([[1, 2, 3]])
    assert mx.array_equal(_model()(ids.tolist()), _model()(ids))  # type: ignore[arg-type]  # rows are sequences too


def test_what_is_no_cache_is_refused() -> None:
    with pytest.raises(InvalidRequestError, match="no cache"):
        _model()([[1]], 5)  # type: ignore[arg-type]  # wrong on purpose
    for batch in (0, -1, 1.5, True):
        with pytest.raises(InvalidRequestError, match="one sequence"):
            _model().make_cache(batch)  # type: ignore[arg-type]  # as above


def test_cache_of_another_batch_size() -> None:
    with pytest.raises(InvalidRequestError, match="batch"):
        _model()([[1]], _model().make_cache(batch=2))
    with pytest.raises(InvalidRequestError, match="batch"):
        _model().decode(mx.array([1]), [_model().make_cache(batch=2)])


@pytest.mark.parametrize(("tokens", "count"), [([], 0), ([1, 2], 1), ([1], 2)])
def test_decode_wants_one_token_per_cache(tokens: list[int], count: int) -> None:
    caches = [_model().make_cache() for _ in range(count)]
    with pytest.raises(InvalidRequestError, match="one token id per cache"):
        _model().decode(mx.array(tokens, dtype=mx.int32), caches)


def test_the_context_has_an_end() -> None:
    config = dataclasses.replace(CONFIG, max_position_embeddings=10)
    model = GptOssModel(config, random_weights(config, 5))
    kept = model.make_cache()
    with pytest.raises(ContextOverflowError, match="<= 10 tokens; got 11"):
        model([[1] * 11], kept)
    assert kept.offset == 0
    model.prefill([[1] * 10], kept)
    with pytest.raises(ContextOverflowError):
        model.decode(mx.array([1]), [kept])


def test_the_last_position_of_the_full_context() -> None:
    """Position 131,071 behind an (empty but full) cache: finite, and no table ends before it."""
    config = tiny_config(num_layers=2, num_heads=2, num_kv_heads=1, head_dim=8, vocab_size=32)
    model = GptOssModel(config, random_weights(config, 0))
    kept: SequenceCache = model.make_cache()
    kept.reserve(config.max_position_embeddings)
    for layer in kept.layers:
        if hasattr(layer, "n_main"):
            layer.n_main = config.max_position_embeddings - 1
    kept.advance(config.max_position_embeddings - 1)
    assert mx.all(mx.isfinite(model.decode(mx.array([1]), [kept]))).item()
    assert kept.offset == config.max_position_embeddings


def test_experts_without_weights() -> None:
    weights = random_weights(CONFIG, 5)
    hollow = dataclasses.replace(weights.layers[0], down=Experts(weights.layers[0].down.bias))
    model = GptOssModel(CONFIG, dataclasses.replace(weights, layers=(hollow, *weights.layers[1:])))
    with pytest.raises(InternalError, match="neither"):
        model([[1]])
