"""What a step may spend on prefill, from what passes and steps took."""

from __future__ import annotations

import pytest

from mlx_gptoss.engine.pace import BUSY_SECONDS, FIRST_BUSY_CHUNK, LARGEST_CHUNK, SMALLEST_CHUNK, Pace, cost


def test_nothing_is_known_at_first() -> None:
    pace = Pace()
    assert pace.idle_budget() == LARGEST_CHUNK
    assert pace.busy_budget() == FIRST_BUSY_CHUNK
    pace.stepped(10.0, 64)
    assert pace.busy_budget() == FIRST_BUSY_CHUNK


@pytest.mark.parametrize(
    ("tokens", "seconds", "expected"),
    [
        (1000, 1.0, int(1000 * BUSY_SECONDS) // SMALLEST_CHUNK * SMALLEST_CHUNK),
        (10, 0.01, int(64 / 0.01 * BUSY_SECONDS) // SMALLEST_CHUNK * SMALLEST_CHUNK),
        (2048, 100.0, SMALLEST_CHUNK),
        (2048, 0.001, LARGEST_CHUNK),
        (0, 0.0, FIRST_BUSY_CHUNK),
    ],
)
def test_the_budget_follows_the_speed_of_prefill(tokens: int, seconds: float, expected: int) -> None:
    pace = Pace()
    pace.prefilled(tokens, seconds)
    assert pace.busy_budget() == expected


@pytest.mark.parametrize(
    ("seconds", "expected"), [(0.5, LARGEST_CHUNK), (4.0, 512), (20.0, FIRST_BUSY_CHUNK), (3.9, 512)]
)
def test_a_chunk_alone_takes_about_a_second_on_a_slow_machine(seconds: float, expected: int) -> None:
    pace = Pace()
    pace.prefilled(2048, seconds)
    assert pace.idle_budget() == expected


def test_slow_steps_leave_more_to_prefill_without_counting_prefill_itself() -> None:
    pace = Pace()
    pace.prefilled(640, 1.0)
    pace.stepped(1.5, 640)  # of which half a second is the step's own
    assert pace.busy_budget() == 320
    for _ in range(20):
        pace.stepped(0.01, 0)
    assert pace.busy_budget() == SMALLEST_CHUNK


def test_small_passes_cost_as_much_as_they_take() -> None:
    assert [cost(tokens) for tokens in (0, 1, SMALLEST_CHUNK, 65)] == [SMALLEST_CHUNK] * 3 + [65]
