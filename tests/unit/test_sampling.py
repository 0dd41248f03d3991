"""Sampling against numpy in float64: the same uniform number must pick the same token."""

from __future__ import annotations

from collections import Counter
from typing import Any

import mlx.core as mx
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlx_gptoss.engine.constraint import single_token_mask, stack_masks
from mlx_gptoss.engine.repetition import RepetitionDetector
from mlx_gptoss.engine.row_sampler import RowSampler
from mlx_gptoss.engine.sampling import Sampler
from mlx_gptoss.kernels.draw_twin import top_candidates
from mlx_gptoss.request import SamplingParams

Floats = npt.NDArray[np.float64]


def keep(logits: Floats, params: SamplingParams) -> tuple[Floats, Floats]:
    """Scaled logits and the probabilities that truncation leaves, by sorting everything."""
    scaled = (logits - logits.max()) / params.temperature
    kept = np.exp(scaled)
    if 0 < params.top_k < len(logits):
        kept[scaled < np.sort(scaled)[-params.top_k]] = 0
    if params.top_p < 1:
        order = np.argsort(-scaled, kind="stable")
        mass = np.cumsum(kept[order]) / kept.sum()
        floor = scaled[order][min(int((mass < params.top_p).sum()), len(order) - 1)]
        kept[scaled < floor] = 0
    if params.min_p > 0:
        kept[np.exp(scaled) < params.min_p] = 0
    return scaled, kept / kept.sum()


def draw(logits: Floats, *rows: RowSampler, **options: Any) -> list[int]:
    device = mx.array(logits.astype(np.float32))
    answers = [
        np.array(Sampler(blocking).sample(device, rows, **options).tokens).tolist() for blocking in (True, False)
    ]
    assert answers[0] == answers[1], "the two ways to find the nucleus agree"
    tokens: list[int] = answers[0]
    return tokens


params_strategy = st.builds(
    SamplingParams,
    temperature=st.sampled_from([0.3, 0.7, 1.0, 1.8]),
    top_p=st.sampled_from([0.0, 0.1, 0.5, 0.9, 0.99, 1.0]),
    top_k=st.sampled_from([0, 0, 1, 2, 40, 128, 129, 500]),
    min_p=st.sampled_from([0.0, 0.0, 0.02, 0.3, 1.0]),
    seed=st.integers(-(2**70), 2**70),
)


@settings(max_examples=150, deadline=None)
@given(
    params=st.lists(params_strategy, min_size=1, max_size=5),
    vocab=st.sampled_from([1, 2, 63, 64, 65, 300, 1000, 6000]),
    spread=st.sampled_from([0.0, 0.5, 3.0, 10.0]),
    data_seed=st.integers(0, 2**32 - 1),
)
def test_every_row_draws_what_numpy_draws(
    params: list[SamplingParams], vocab: int, spread: float, data_seed: int
) -> None:
    logits = np.random.default_rng(data_seed).normal(size=(len(params), vocab)) * spread
    logits = logits.astype(np.float32).astype(np.float64)
    rows = [RowSampler(one) for one in params]
    tokens = draw(logits, *rows)
    for row, token, line, one in zip(rows, tokens, logits, params, strict=True):
        assert 0 <= token < vocab
        if one.top_k == 1:
            assert line[token] == line.max()
            continue
        scaled, kept = keep(line, one)
        # Rounding may move the nucleus's end by a token whose mass is next to nothing.
        floor = scaled[kept > 0].min()
        assert scaled[token] >= floor - 2e-5
        edge = np.abs(scaled - floor) < 2e-5
        if not edge.any() or edge.sum() == (edge & (kept > 0)).sum():
            below, above = kept[:token].sum(), kept[: token + 1].sum()
            assert below - 1e-4 <= row.uniform() <= above + 1e-4


@pytest.mark.parametrize("vocab", [200, 201_088])
def test_a_greedy_row_among_others_takes_the_first_of_the_best(vocab: int) -> None:
    logits = np.random.default_rng(1).normal(size=(2, vocab)).astype(np.float32)
    logits[0, [50, 150]] = logits[0].max() + 1e-6
    rows = [RowSampler(SamplingParams(temperature=0.0)), RowSampler(SamplingParams(seed=1))]
    assert draw(logits.astype(np.float64), *rows)[0] == int(logits[0].argmax())


def test_rows_do_not_see_each_other() -> None:
    logits = np.random.default_rng(0).normal(size=(4, 1000)) * 3
    params = [
        SamplingParams(seed=1),
        SamplingParams(seed=2, top_p=0.5),
        SamplingParams(seed=3, top_k=5, logprobs=4),
        SamplingParams(temperature=0.0),
    ]
    together = draw(logits, *(RowSampler(one) for one in params))
    assert together == [draw(logits[i : i + 1], RowSampler(one))[0] for i, one in enumerate(params)]


def test_draws_follow_the_distribution() -> None:
    logits = np.log(np.array([0.5, 0.25, 0.125, 0.0625, 0.0625]))
    row = RowSampler(SamplingParams(seed=11))
    sampler, counts, device = Sampler(), Counter[int](), mx.array(logits.astype(np.float32))[None]
    for _ in range(4000):
        counts[int(np.array(sampler.sample(device, [row]).tokens)[0])] += 1
        row.step()
    expected = np.exp(logits) * 4000
    found = np.array([counts[i] for i in range(5)])
    assert ((found - expected) ** 2 / expected).sum() < 18.5  # chi-squared, 4 degrees of freedom, p = 0.001


def test_the_tail_of_a_large_vocabulary_keeps_its_mass() -> None:
    """One float32 sum over 200,000 small terms beside one of mass 1 would lose a part of them."""
    logits = np.full(201_088, np.log(1e-9))
    logits[0] = 0.0
    tail = 1 - 1 / (1 + 201_087e-9)
    row = RowSampler(SamplingParams(seed=0))
    sampler, device = Sampler(blocking=False), mx.array(logits.astype(np.float32))[None]
    row.uniform = lambda: 1 - tail * 0.5  # type: ignore[method-assign]
    token = int(np.array(sampler.sample(device, [row]).tokens)[0])
    assert abs(token - 100_544) < 201_088 * 0.1


def test_the_stream_of_numbers_depends_on_seed_and_place_alone() -> None:
    first, second = RowSampler(SamplingParams(seed=5)), RowSampler(SamplingParams(seed=5))
    numbers = []
    for _ in range(1000):
        numbers.append(first.uniform())
        first.step()
    second.rewind(500)
    assert second.uniform() == numbers[500]
    assert len(set(numbers)) == 1000
    assert all(0 <= number < 1 for number in numbers)
    assert abs(np.mean(numbers) - 0.5) < 0.05
    assert RowSampler(SamplingParams(seed=6)).uniform() != numbers[0]
    assert RowSampler(SamplingParams()).uniform() != RowSampler(SamplingParams()).uniform()


@pytest.mark.parametrize("count", [1, 5, 20, 64, 300])
@pytest.mark.parametrize("vocab", [300, 64, 6400])
def test_top_candidates_are_the_largest(count: int, vocab: int) -> None:
    count = min(count, vocab)
    scores = np.random.default_rng(count).normal(size=(3, vocab)).astype(np.float32)
    scores[1, 10:20] = 9.0
    scores[2, 5:] = -np.inf
    values, ids = (np.array(array) for array in top_candidates(mx.array(scores), count))
    assert (values == -np.sort(-scores, axis=-1)[:, :count]).all()
    assert (np.take_along_axis(scores, ids.astype(np.int64), axis=-1) == values).all()
    assert all(len(set(row)) == count for row in ids[:2].tolist())


def test_penalties_follow_their_definitions() -> None:
    logits = np.array([[2.0, -2.0, 1.0, 0.5, 0.0]])
    row = RowSampler(
        SamplingParams(
            temperature=0.0,
            repetition_penalty=2.0,
            presence_penalty=0.1,
            frequency_penalty=0.25,
            logit_bias={3: 5.0},
        ),
        prompt_ids=[0, 1],
    )
    for token in (2, 2):
        row.observe(token)
    edit = row.edit()
    assert edit is not None
    changed = logits[0].copy()
    for token, factor, shift in zip(edit.ids, edit.factors, edit.shifts, strict=True):
        changed[token] = (changed[token] / factor if changed[token] > 0 else changed[token] * factor) + shift
    assert changed == pytest.approx([1.0, -4.0, 0.5 - 0.5 - 0.1, 5.5, 0.0])
    assert draw(logits, row) == [3]
    # Beside a row without edits of its own, and with more edits than it.
    plain = RowSampler(SamplingParams(temperature=0.0))
    assert draw(np.concatenate([logits, logits]), row, plain) == [3, 0]


def test_the_repetition_penalty_forgets() -> None:
    row = RowSampler(SamplingParams(repetition_penalty=2.0, repetition_context=2), prompt_ids=[9])
    for token in (1, 2, 3):
        row.observe(token)
    edit = row.edit()
    assert edit is not None
    assert edit.ids.tolist() == [2, 3]


def test_masks_allow_exactly_their_bits() -> None:
    mask = single_token_mask(70)
    assert stack_masks([mask, None], 100).tolist() == [[0, 0, 64, 0], [0xFFFFFFFF] * 4]
    logits = np.zeros((2, 100))
    rows = [RowSampler(SamplingParams(seed=n)) for n in range(2)]
    for _ in range(5):
        assert draw(logits, *rows, masks=[mask, None])[0] == 70
    # A mask shorter than the vocabulary forbids the rest; a longer one is cut.
    logits[0, 99] = 50.0
    assert draw(logits, *rows, masks=[np.array([0xFFFFFFFF], dtype=np.uint32), None])[0] < 32
    assert draw(logits, *rows, masks=[np.full(9, 0xFFFFFFFF, dtype=np.uint32), None])[0] == 99


@pytest.mark.parametrize("params", [SamplingParams(temperature=0.0), SamplingParams(), SamplingParams(top_p=0.5)])
def test_broken_logits_show_in_the_peak(params: SamplingParams) -> None:
    for value, check in ((np.nan, np.isnan), (-np.inf, np.isneginf)):
        for blocking in (True, False):
            sampled = Sampler(blocking).sample(mx.full((1, 100), value), [RowSampler(params)])
            assert check(np.array(sampled.peak)).all()


def test_logprobs_are_the_models_own() -> None:
    """Before temperature, truncation, penalties and masks."""
    logits = np.random.default_rng(3).normal(size=(1, 500)) * 2
    row = RowSampler(SamplingParams(seed=1, temperature=0.2, top_k=3, logprobs=7, logit_bias={4: 30.0}))
    sampled = Sampler().sample(mx.array(logits.astype(np.float32)), [row])
    expected = logits[0] - np.log(np.exp(logits[0]).sum())
    assert sampled.logprobs is not None
    assert sampled.top_ids is not None
    assert sampled.top_logprobs is not None
    assert int(np.array(sampled.tokens)[0]) == 4
    assert np.array(sampled.logprobs)[0] == pytest.approx(expected[4], abs=1e-4)
    assert np.array(sampled.top_ids)[0].tolist() == np.argsort(-expected)[:7].tolist()
    assert np.array(sampled.top_logprobs)[0] == pytest.approx(np.sort(expected)[::-1][:7], abs=1e-4)


def test_half_precision_logits_are_read_in_full() -> None:
    logits = mx.array([[1.0, 2.0, 3.0]], dtype=mx.bfloat16)
    for params in (SamplingParams(temperature=0.0), SamplingParams(top_k=1)):
        assert np.array(Sampler().sample(logits, [RowSampler(params)]).tokens).tolist() == [2]


@settings(max_examples=60, deadline=None)
@given(period=st.integers(1, 60), before=st.integers(0, 1500), seed=st.integers(0, 1000))
def test_repetition_is_seen_at_eight_copies_and_not_before(period: int, before: int, seed: int) -> None:
    generator = np.random.default_rng(seed)
    detector = RepetitionDetector()
    for token in generator.integers(1000, 100_000, size=before):
        assert not detector.update(int(token))
    motif = [1, *generator.integers(2, 900, size=period - 1).tolist()]
    seen = 0
    while not detector.update(motif[seen % period]):
        seen += 1
        assert seen < 5000
    assert seen + 1 >= max(256, 8 * period)
    assert seen + 1 <= max(256, 8 * period) + period


def test_lists_of_similar_lines_are_no_repetition() -> None:
    detector = RepetitionDetector()
    assert not any(detector.update(token) for n in range(500) for token in (10, 11, 5000 + n, 12, 13))
