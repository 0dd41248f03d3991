"""YaRN: frequencies, concentration, tables."""

from __future__ import annotations

import dataclasses
import math

import mlx.core as mx
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlx_gptoss.config import YarnConfig
from mlx_gptoss.rope import RotaryTable, inverse_frequencies, rotate
from tests.tiny import tiny_config

RELEASED = tiny_config(head_dim=64)


def _exact(turns_fast: float, turns_slow: float, *, truncate: bool) -> npt.NDArray[np.float64]:
    """The paper's formula in float64 for head size 64, base 150000, factor 32, 4096 positions."""
    index = np.arange(32)
    plain = 150_000.0 ** (-index / 32)

    def pair(turns: float) -> float:
        return 32 * math.log(4096 / (turns * 2 * math.pi)) / math.log(150_000.0)

    low, high = pair(turns_fast), pair(turns_slow)
    if truncate:
        low, high = math.floor(low), math.ceil(high)
    ramp = np.clip((index - low) / (high - low), 0, 1)
    return np.asarray(plain / 32 * ramp + plain * (1 - ramp), dtype=np.float64)


def test_released_frequencies() -> None:
    got = inverse_frequencies(RELEASED)
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, _exact(32, 1, truncate=False), rtol=5e-7)
    assert got[0] == 1.0


def test_truncation_rounds_the_blend_to_whole_pairs() -> None:
    yarn = YarnConfig(32.0, 4096, 32.0, 1.0, truncate=True)
    got = inverse_frequencies(dataclasses.replace(RELEASED, yarn=yarn))
    np.testing.assert_allclose(got, _exact(32, 1, truncate=True), rtol=5e-7)
    ratio = got / inverse_frequencies(RELEASED)
    # The blend runs over pairs 8.09 to 17.40: the mistake shows there and nowhere else.
    assert np.abs(ratio[9:18] - 1).max() > 0.2
    np.testing.assert_allclose(ratio[:8], 1)
    np.testing.assert_allclose(ratio[18:], 1)


def test_without_yarn() -> None:
    got = inverse_frequencies(dataclasses.replace(RELEASED, yarn=None))
    np.testing.assert_allclose(got, 150_000.0 ** (-np.arange(32) / 32), rtol=5e-7)


def test_concentration_is_not_rounded_to_bfloat16() -> None:
    cos, sin = RotaryTable(RELEASED).span(0, 1)
    np.testing.assert_array_equal(np.array(cos), np.full((1, 32), np.float32(0.1 * math.log(32) + 1)))
    assert not np.array(sin).any()
    assert RotaryTable(dataclasses.replace(RELEASED, yarn=None)).concentration == 1.0


@pytest.mark.parametrize("position", [1, 4095, 4096, 8191, 131_071])
def test_tables_are_exact_at_any_position(position: int) -> None:
    table = RotaryTable(RELEASED)
    cos, sin = table.span(position, 1)
    angle = (np.float32(position) * inverse_frequencies(RELEASED)).astype(np.float64)
    np.testing.assert_allclose(np.array(cos)[0], np.cos(angle) * table.concentration, atol=1e-7, rtol=1e-6)
    np.testing.assert_allclose(np.array(sin)[0], np.sin(angle) * table.concentration, atol=1e-7, rtol=1e-6)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(0, 9000), min_size=1, max_size=6))
def test_rows_are_the_spans_of_their_positions(positions: list[int]) -> None:
    table = RotaryTable(RELEASED)
    rows = table.rows(positions)
    for part in (0, 1):
        got = mx.broadcast_to(rows[part], (len(positions), 1, 1, 32))
        for row, position in enumerate(positions):
            assert mx.array_equal(got[row, 0], table.span(position, 1)[part]).item()


def test_rotation_keeps_lengths_and_depends_on_distance_only() -> None:
    config = dataclasses.replace(RELEASED, yarn=None)
    table = RotaryTable(config)
    rng = np.random.default_rng(0)
    q, k = (mx.array(rng.standard_normal((1, 1, 1, 64)).astype(np.float32)) for _ in range(2))

    def at(x: mx.array, position: int) -> mx.array:
        return rotate(x, *table.span(position, 1), mx.float32)

    near = (at(q, 107) * at(k, 100)).sum().item()
    far = (at(q, 1007) * at(k, 1000)).sum().item()
    assert near == pytest.approx(far, abs=2e-3)
    assert mx.linalg.norm(at(q, 777)).item() == pytest.approx(mx.linalg.norm(q).item(), rel=1e-5)


def test_rotation_rounds_once() -> None:
    rng = np.random.default_rng(1)
    x = mx.array(rng.standard_normal((1, 2, 3, 64)).astype(np.float32)).astype(mx.bfloat16)
    cos, sin = RotaryTable(RELEASED).span(50, 3)
    exact = rotate(x.astype(mx.float32), cos, sin, mx.float32)
    assert mx.array_equal(rotate(x, cos, sin, mx.bfloat16), exact.astype(mx.bfloat16)).item()
