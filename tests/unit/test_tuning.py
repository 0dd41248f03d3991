"""The rules by which a kernel's rows follow from a family's constants."""

from __future__ import annotations

import pytest

from mlx_gptoss.kernels.halves import rows_in_halves
from mlx_gptoss.kernels.layout import HALVES_FORMATS, MXFP4, Q4
from mlx_gptoss.kernels.tuning import Rows, Tuning, packaged_tuning


@pytest.mark.parametrize(
    ("rows", "batch", "steps", "want"),
    [
        (Rows(2, 8, 4), 1, 2, Rows(2, 8, 4)),
        (Rows(2, 8, 4), 2, 2, Rows(4, 8, 2)),
        (Rows(8, 8, 1), 8, 2, Rows(8, 8, 1)),
        (Rows(4, 10, 4), 8, 1, Rows(4, 10, 1)),
        (Rows(1, 8, 8), 3, 2, Rows(1, 8, 2)),
    ],
)
def test_several_sequences_have_more_rows_and_fewer_steps(rows: Rows, batch: int, steps: int, want: Rows) -> None:
    assert rows.for_batch(batch, steps=steps) == want


def test_a_kernel_may_take_more_rows_for_several_than_the_one_it_takes_alone() -> None:
    assert Rows(1, 8, 8).for_batch(2, fewest=2) == Rows(2, 8, 2)
    assert Rows(1, 8, 8).for_batch(1, fewest=2) == Rows(1, 8, 8)


def test_only_an_h100_has_fewer_steps_for_more_than_four() -> None:
    assert [packaged_tuning("h100").batch_steps(batch) for batch in (2, 4, 5, 8)] == [2, 2, 1, 1]
    assert [packaged_tuning("m4-max").batch_steps(batch) for batch in (2, 4, 5, 8)] == [2, 2, 2, 2]


def test_dense_rows_in_halves() -> None:
    rows, tuning = Rows(1, 12, 4), Tuning(halves=True)
    for weight_format in HALVES_FORMATS - {Q4}:
        assert rows_in_halves(rows, tuning, weight_format) == rows
    assert rows_in_halves(rows, tuning, Q4) == Rows(1, 12, 2)
    assert rows_in_halves(Rows(1, 12, 1), tuning, Q4) == Rows(1, 12, 1)
    assert rows_in_halves(rows, tuning, MXFP4) is None
    assert rows_in_halves(rows, Tuning(), Q4) is None
    assert rows_in_halves(None, tuning, Q4) is None
