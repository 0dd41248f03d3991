"""The draw's kernels on the shader bench draw what plain mx draws, and the sampler launches no more than they need."""

from __future__ import annotations

from collections.abc import Sequence

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mlx_gptoss.bench.launches import count_launches
from mlx_gptoss.engine.row_sampler import RowSampler
from mlx_gptoss.engine.sampling import Sampler
from mlx_gptoss.errors import KernelError
from mlx_gptoss.kernels.backend import MetalBackend, StockBackend
from mlx_gptoss.kernels.draw import draw, draw_parts
from mlx_gptoss.kernels.draw_twin import draw_parts_twin
from mlx_gptoss.kernels.draws import Draws
from mlx_gptoss.request import SamplingParams
from tests.bench.backend import BenchBackend
from tests.bench.executor import Schedule
from tests.kernels.decode_data import close

VOCAB = 1000
"""Four of the bench's chunks, the last a short one."""


def rows_of(
    *rows: tuple[float, float], top_k: Sequence[int] = (), top_p: Sequence[float] = (), min_p: Sequence[float] = ()
) -> Draws:
    """(inverse, number) of each row; what is not given keeps all."""
    inverse, number = zip(*rows, strict=True)
    keep = len(rows)
    return Draws(
        inverse, number, tuple(top_k) or (0,) * keep, tuple(top_p) or (1.0,) * keep, tuple(min_p) or (0.0,) * keep
    )


def assert_draws_alike(logits: mx.array, draws: Draws, backend: BenchBackend | None = None) -> list[int]:
    got = draw(logits, draws, logprobs=True, backend=backend or BenchBackend())
    want = draw(logits, draws, logprobs=True, backend=StockBackend())
    tokens = np.array(got.tokens).tolist()
    assert tokens == np.array(want.tokens).tolist()
    for ours, theirs in ((got.peaks, want.peaks), (got.logprobs, want.logprobs), (got.totals, want.totals)):
        assert ours is not None
        assert theirs is not None
        close(ours, theirs)
    return [int(token) for token in tokens]


row = st.tuples(
    st.sampled_from([0.5, 1.0, 3.3]),
    st.floats(0.0, 1.0, exclude_max=True, width=32),
    st.sampled_from([0, 0, 1, 2, 40, 64, 65, 300, VOCAB]),
    st.sampled_from([0.0, 0.1, 0.5, 0.9, 0.99, 1.0]),
    st.sampled_from([0.0, 0.0, 0.02, 0.3, 1.0]),
)


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    rows=st.lists(row, min_size=1, max_size=4),
    spread=st.sampled_from([0.0, 0.5, 3.0, 10.0]),
    steps=st.sampled_from([0, 3]),
    seed=st.integers(0, 2**32 - 1),
)
def test_every_row_is_drawn_as_plain_mx_draws_it(
    rows: list[tuple[float, float, int, float, float]], spread: float, steps: int, seed: int
) -> None:
    """`steps` rounds the logits, so that many are equal."""
    logits = np.random.default_rng(seed).normal(size=(len(rows), VOCAB)) * spread
    logits = np.round(logits * steps) / steps if steps else logits
    scores, draws = mx.array(logits.astype(np.float32)), Draws(*zip(*rows, strict=True))
    got = np.array(draw(scores, draws, backend=BenchBackend()).tokens)
    want = np.array(draw(scores, draws, backend=StockBackend()).tokens)
    for line, inverse, number, ours, theirs in zip(logits, draws.inverse, draws.number, got, want, strict=True):
        if ours != theirs:
            # Sums in different orders: the number lies on an edge, or an end of what is kept does.
            weights = np.exp((line.astype(np.float32).astype(np.float64) - line.max()) * inverse)
            between = weights[min(ours, theirs) + 1 : max(ours, theirs)].sum()
            assert between <= 1e-4 * weights.sum(), number


@pytest.mark.parametrize("schedule", ["forward", "reverse", "random"])
def test_any_order_of_lanes_draws_the_same(schedule: Schedule) -> None:
    """Every access checked: greedy, plain, from the candidates, and from the whole row."""
    logits = mx.array(np.random.default_rng(3).normal(size=(4, VOCAB)).astype(np.float32) * 2)
    draws = rows_of((1e30, 0.0), (1.0, 0.4), (1.0, 0.7), (0.5, 0.9), top_k=(0, 0, 40, 200), top_p=(1.0, 1.0, 0.8, 0.9))
    backend = BenchBackend(checked=True, strict=True, schedule=schedule)
    assert_draws_alike(logits, draws, backend)
    assert backend.launches == ["draw_parts", "top_tokens", "top_tokens", "draw_token"]


def test_ties_at_an_end_are_kept_beyond_the_candidates() -> None:
    """All logits are equal: top-k of 40 and a nucleus of nothing keep all 1,000."""
    logits = mx.zeros((3, VOCAB))
    draws = rows_of((1.0, 0.9995), (1.0, 0.5005), (1.0, 0.0), top_k=(40, 0, 40), top_p=(1.0, 0.0, 0.5))
    assert assert_draws_alike(logits, draws) == [999, 500, 0]


def test_what_is_forbidden_is_never_drawn() -> None:
    logits = np.full((3, VOCAB), -np.inf, dtype=np.float32)
    logits[:, [5, 300, 999]] = 1.0
    draws = rows_of((1.0, 0.0), (1.0, 0.34), (1.0, 1.0), top_k=(0, 50, 0), top_p=(1.0, 1.0, 0.99))
    assert assert_draws_alike(mx.array(logits), draws) == [5, 300, 999]
    assert (
        np.array(draw(mx.array(logits), rows_of(*[(1.0, 1.0)] * 3), backend=BenchBackend()).tokens).tolist()
        == [999] * 3
    )


def test_greedy_takes_the_first_of_the_best() -> None:
    logits = np.random.default_rng(1).normal(size=(2, VOCAB)).astype(np.float32)
    logits[0, [300, 301, 900]] = 9.0
    logits[1, [255, 256]] = 9.0
    assert assert_draws_alike(mx.array(logits), rows_of((1e30, 0.0), (1e30, 0.0))) == [300, 255]


def test_the_tail_of_a_large_vocabulary_keeps_its_mass() -> None:
    logits = np.full((1, 201_088), np.log(1e-9), dtype=np.float32)
    logits[0, 0] = 0.0
    tail = 1 - 1 / (1 + 201_087e-9)
    drawn = draw(mx.array(logits), rows_of((1.0, 1 - tail * 0.5)), backend=BenchBackend(family="m4-max"))
    assert abs(int(np.array(drawn.tokens)[0]) - 100_544) < 201_088 * 0.1


@pytest.mark.parametrize(("value", "check"), [(np.nan, np.isnan), (-np.inf, np.isneginf)])
@pytest.mark.parametrize("top_p", [1.0, 0.5])
def test_broken_logits_show_in_the_peak(value: float, check: np.ufunc, top_p: float) -> None:
    logits = np.zeros((2, VOCAB), dtype=np.float32)
    logits[0] = value
    drawn = draw(mx.array(logits), rows_of((1.0, 0.5), (1.0, 0.5), top_p=(top_p, top_p)), backend=BenchBackend())
    assert check(np.array(drawn.peaks)).tolist() == [True, False]
    assert 0 <= np.array(drawn.tokens)[0] < VOCAB
    logits[0] = 0.0
    logits[0, 700] = np.nan
    assert np.isnan(np.array(draw(mx.array(logits), rows_of((1.0, 0.5), (1.0, 0.5)), backend=BenchBackend()).peaks)[0])


@pytest.mark.parametrize("vocab", [63, 64, 65, 256, 257])
@pytest.mark.parametrize("top_k", [0, 5])
def test_small_vocabularies(vocab: int, top_k: int) -> None:
    logits = mx.array(np.random.default_rng(vocab).normal(size=(1, vocab)).astype(np.float32))
    for number in (0.0, 0.3, 0.9999):
        assert_draws_alike(logits, rows_of((1.0, number), top_k=(top_k,)))


def test_the_parts_of_a_row() -> None:
    logits = np.random.default_rng(2).normal(size=(2, VOCAB)).astype(np.float32)
    logits[0, :300] = -np.inf
    table = rows_of((0.5, 0.0), (2.0, 0.0)).settings(VOCAB)
    got = draw_parts(mx.array(logits), table, backend=BenchBackend())
    close(got[..., 1:], draw_parts_twin(mx.array(logits), table, 256)[..., 1:])
    assert np.array_equal(np.array(got[..., 0]), np.array(draw_parts_twin(mx.array(logits), table, 256)[..., 0]))
    with pytest.raises(KernelError, match="settings"):
        draw_parts(mx.array(logits), table[:1], backend=BenchBackend())


PLAIN, BIAS = SamplingParams(seed=1), SamplingParams(seed=1, logit_bias={3: 1.0, 70: -4.0, 9: 2.0})


@pytest.mark.parametrize(
    ("params", "kernels", "others"),
    [
        (SamplingParams(temperature=0.0), 2, 0),
        (PLAIN, 2, 0),
        (SamplingParams(logprobs=0), 2, 0),
        (SamplingParams(logprobs=5), 4, 1),
        (SamplingParams(top_p=0.9), 4, 0),
        (SamplingParams(top_k=40, min_p=0.1, temperature=0.7), 4, 0),
        (BIAS, 2, 8),
    ],
)
def test_a_draw_is_a_handful_of_launches(params: SamplingParams, kernels: int, others: int) -> None:
    sampler = Sampler(backend=MetalBackend("m4-max"))
    rows = [RowSampler(params) for _ in range(3)]
    counts = count_launches(lambda logits: sampler.sample(logits, rows).arrays(), mx.zeros((3, 201_088)))
    assert counts.pop("CustomKernel") == kernels
    assert counts.total() <= others


def test_the_engines_sampler_draws_on_the_kernels_as_without() -> None:
    logits = mx.array(np.random.default_rng(5).normal(size=(4, VOCAB)).astype(np.float32) * 3)
    params = [SamplingParams(temperature=0.0), PLAIN, SamplingParams(seed=2, top_p=0.8, logprobs=4), BIAS]
    bench, answers = BenchBackend(), []
    for sampler in (Sampler(backend=bench), Sampler(blocking=False), Sampler(blocking=True)):
        sampled = sampler.sample(logits, [RowSampler(one) for one in params], [None, None, None, mask(VOCAB)])
        answers.append([np.array(array) for array in sampled.arrays()])
    assert bench.launches.count("draw_token") == 1
    for other in answers[1:]:
        for ours, theirs in zip(answers[0], other, strict=True):
            np.testing.assert_allclose(ours, theirs, atol=1e-4)


def mask(vocab: int) -> np.ndarray:
    """Allows every second id."""
    return np.full((vocab + 31) // 32, 0x55555555, dtype=np.uint32)
