"""The rules by which a kernel's rows follow from a family's constants."""

from __future__ import annotations

import mlx.core as mx
import pytest

from mlx_gptoss.kernels.halves import rows_in_halves
from mlx_gptoss.kernels.layout import MXFP4, MXFP8, Q4, Q6, Q8, WeightArguments
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


def weights_of(weight_format: int, *, group: int = 64, scales: mx.Dtype = mx.bfloat16) -> WeightArguments:
    array = mx.zeros((8,), dtype=scales)
    return WeightArguments(array, array, array, weight_format, group)


@pytest.mark.parametrize(
    ("weight_format", "columns", "unroll"),
    [(Q8, 2880, 4), (MXFP8, 4096, 4), (Q4, 2880, 2), (Q4, 4096, 2), (Q6, 2880, 4), (Q6, 4096, 2)],
)
def test_dense_rows_in_halves(weight_format: int, columns: int, unroll: int) -> None:
    """As many values in flight, whether a lane takes 16 or 32 at a time; at least one step."""
    weights = weights_of(weight_format, scales=mx.uint8 if weight_format == MXFP8 else mx.bfloat16)
    tuning = Tuning(halves=True)
    assert rows_in_halves(Rows(1, 12, 4), tuning, weights, columns) == Rows(1, 12, unroll)
    assert rows_in_halves(Rows(1, 12, 1), tuning, weights, columns) == Rows(1, 12, 1)


def test_dense_rows_that_do_not_go_in_halves() -> None:
    rows, tuning, q6 = Rows(1, 12, 4), Tuning(halves=True), weights_of(Q6)
    assert rows_in_halves(rows, tuning, weights_of(MXFP4), 2880) is None
    assert rows_in_halves(rows, Tuning(), q6, 2880) is None
    assert rows_in_halves(None, tuning, q6, 2880) is None
    assert rows_in_halves(rows, tuning, weights_of(Q6, scales=mx.float32), 2880) is None
    assert rows_in_halves(rows, tuning, weights_of(Q6, group=96), 2880) is None
