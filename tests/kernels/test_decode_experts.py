"""The expert kernels of a decode step on the shader bench."""

from __future__ import annotations

import dataclasses

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from mlx_gptoss.errors import KernelError
from mlx_gptoss.kernels.expert_rows import takes_halves
from mlx_gptoss.kernels.halves import pack_activation, packed_size, unpack_activation
from mlx_gptoss.kernels.layout import permute_activation, picked_weight, unpermute_activation
from mlx_gptoss.kernels.moe import moe_down, moe_down_twin, moe_gate_up, moe_gate_up_twin
from mlx_gptoss.kernels.top_tokens import top_tokens, top_tokens_twin
from mlx_gptoss.kernels.tuning import Rows, Tuning
from mlx_gptoss.weights import Experts
from tests.bench.backend import BenchBackend
from tests.bench.executor import Schedule
from tests.kernels.decode_data import HALVES, PARAMS, TOLERANCE, close, experts, floats
from tests.tiny import FP4_VALUES


def wide(array: mx.array) -> NDArray[np.float64]:
    return np.array(array.astype(mx.float32)).astype(np.float64)


def table(picks: mx.array, batch: int, top_k: int) -> NDArray[np.int32]:
    return np.array(picks)[: batch * top_k].reshape(batch, top_k)


@pytest.mark.parametrize(
    ("count", "top_k", "batch", "dense"),
    [(5, 2, 1, False), (32, 4, 1, False), (33, 4, 3, False), (5, 2, 8, False), (128, 4, 1, False), (5, 3, 2, True)],
)
def test_experts_match_twin_and_oracle(count: int, top_k: int, batch: int, dense: bool) -> None:
    rng = np.random.default_rng(count + batch)
    hidden, inner = 160, 96
    gate_up = experts(rng, count, 2 * inner, hidden, dense=dense)
    down = experts(rng, count, hidden + 1, inner, dense=dense)
    t, logits = floats(rng, batch, 8, hidden // 32, 4, std=2.0), floats(rng, batch, count)
    x = floats(rng, batch, hidden + 1)
    backend = BenchBackend()
    h, picks, weights = moe_gate_up(t, logits, gate_up, PARAMS, top_k=top_k, backend=backend)
    want_h, want_picks, want_weights = moe_gate_up_twin(t, logits, gate_up, PARAMS, top_k=top_k)
    assert np.array_equal(table(picks, batch, top_k), table(want_picks, batch, top_k))
    close(weights[: batch * top_k], want_weights[: batch * top_k])
    close(h, want_h)
    y = moe_down(h, picks, weights, down, x, backend=backend)
    close(y, moe_down_twin(want_h, want_picks, want_weights, down, x))
    assert backend.launches == ["moe_gate_up", "moe_down"]

    plain = wide(unpermute_activation(t))
    for s in range(batch):
        order = sorted(range(count), key=lambda e: (-float(wide(logits)[s, e]), e))[:top_k]
        powers = np.exp(wide(logits)[s, order])
        result = wide(x)[s]
        for expert, share in zip(order, powers / powers.sum(), strict=True):
            chosen = mx.array([expert])
            z = wide(picked_weight(gate_up, chosen))[0] @ plain[s] + wide(gate_up.bias)[expert]
            gate, line = np.minimum(z[::2], 7.0), np.clip(z[1::2], -7.0, 7.0)
            inner_value = gate / (1 + np.exp(-1.702 * gate)) * (line + 1)
            result = result + share * (wide(picked_weight(down, chosen))[0] @ inner_value + wide(down.bias)[expert])
        np.testing.assert_allclose(wide(y)[s], result, atol=3e-5 * np.abs(result).max())


@pytest.mark.parametrize(
    ("hidden", "inner", "batch", "gate_up_rows", "down_rows"),
    [
        # Rows that are one block, taken after each other; the last simdgroups have fewer, or none.
        (1088, 96, 1, Rows(2, 2, 2, passes=4), Rows(2, 2, 1, share=1)),
        (992, 96, 1, Rows(4, 1, 1, passes=5), Rows(4, 4, 1, share=2)),
        (160, 1056, 1, Rows(8, 2, 1, passes=3), Rows(8, 1, 2, share=1)),
        (160, 96, 1, Rows(1, 3, 1, passes=8), Rows(1, 2, 1, share=1)),
        # Rows of several blocks.
        (2112, 64, 1, Rows(2, 1, 1, passes=3), Rows(1, 3, 1, share=3)),
        (96, 2112, 1, Rows(2, 4, 1, passes=16), Rows(2, 2, 2, share=2)),
        # More simdgroups than picks; several sequences.
        (160, 96, 1, Rows(16, 1, 1, passes=2), Rows(4, 8, 1, share=8)),
        (160, 96, 3, Rows(2, 2, 1, passes=4), Rows(2, 2, 1, share=2)),
    ],
)
@pytest.mark.parametrize("dense", [False, True])
def test_any_shape_of_the_work(
    hidden: int, inner: int, batch: int, gate_up_rows: Rows, down_rows: Rows, dense: bool
) -> None:
    rng = np.random.default_rng(hidden)
    gate_up = experts(rng, 33, 2 * inner, hidden, dense=dense)
    down = experts(rng, 33, 97, inner, dense=dense)
    t, logits, x = floats(rng, batch, 8, hidden // 32, 4), floats(rng, batch, 33), floats(rng, batch, 97)
    tuning = Tuning(gate_up=gate_up_rows, down=down_rows)
    got = moe_gate_up(t, logits, gate_up, PARAMS, top_k=4, backend=BenchBackend(), tuning=tuning)
    want = moe_gate_up_twin(t, logits, gate_up, PARAMS, top_k=4)
    assert np.array_equal(table(got[1], batch, 4), table(want[1], batch, 4))
    close(got[2][: 4 * batch], want[2][: 4 * batch])
    close(got[0], want[0])
    close(moe_down(*want, down, x, backend=BenchBackend(), tuning=tuning), moe_down_twin(*want, down, x))


@pytest.mark.parametrize(
    ("hidden", "inner", "top_k", "gate_up_rows", "down_rows"),
    [
        (1024, 96, 4, Rows(2, 3, 1, passes=4), Rows(2, 5, 1)),  # the last simdgroups have fewer rows, or none
        (160, 256, 4, Rows(4, 8, 1, passes=3), Rows(4, 4, 1, share=2)),
        (96, 128, 3, Rows(2, 1, 2, passes=2), Rows(1, 6, 1, share=3)),  # three lanes have a block of a row
        (1056, 32, 1, Rows(2, 2, 2, passes=16), Rows(8, 1, 3)),
        (1088, 96, 4, Rows(1, 5, 2, passes=14), Rows(1, 3, 1)),  # the gate and the linear row after each other
    ],
)
@pytest.mark.parametrize("halves", [False, True])
def test_activations_through_threadgroup_memory(
    hidden: int, inner: int, top_k: int, gate_up_rows: Rows, down_rows: Rows, halves: bool
) -> None:
    rng = np.random.default_rng(hidden)
    gate_up, down = experts(rng, 9, 2 * inner, hidden), experts(rng, 9, 97, inner)
    t, logits, x = floats(rng, 1, 8, hidden // 32, 4), floats(rng, 1, 9), floats(rng, 1, 97)
    down_rows = dataclasses.replace(down_rows, share=1) if halves else down_rows
    tuning = Tuning(gate_up_alone=gate_up_rows, down_alone=down_rows, halves=halves)
    assert takes_halves(gate_up, down, top_k, tuning) == halves
    most = HALVES if halves else TOLERANCE
    t = pack_activation(unpermute_activation(t)) if halves else t
    backend = BenchBackend(count_bytes=True)
    got = moe_gate_up(t, logits, gate_up, PARAMS, top_k=top_k, backend=backend, tuning=tuning)
    want = moe_gate_up_twin(t, logits, gate_up, PARAMS, top_k=top_k)
    assert np.array_equal(table(got[1], 1, top_k), table(want[1], 1, top_k))
    close(got[2][:top_k], want[2][:top_k])
    assert got[0].shape == want[0].shape
    values = [unpack_activation(h, inner) if halves else h for h in (got[0], want[0])]
    close(values[0], values[1], most)
    close(moe_down(*want, down, x, backend=backend, tuning=tuning), moe_down_twin(*want, down, x), most)
    assert gate_up.blocks is not None
    groups = -(-2 * inner // (gate_up_rows.simdgroups * gate_up_rows.passes * gate_up_rows.rows))
    once = [t.nbytes * top_k * groups, h_bytes(want[0], down_rows)]
    assert [result.bytes_read[name] for result, name in zip(backend.results, ("t", "h"), strict=True)] == once


def h_bytes(h: mx.array, rows: Rows) -> int:
    """What the threadgroups of a down projection to 97 rows read of `h` when each takes it once."""
    return h.nbytes * -(-97 // (rows.simdgroups // rows.share * rows.rows))


@pytest.mark.parametrize(
    ("tuning", "why"),
    [
        (Tuning(gate_up_alone=Rows(2, 2, 1), down_alone=Rows(2, 4, 1, share=4), staged_bytes=512), "no room"),
        (Tuning(gate_up_alone=Rows(2, 2, 1), down_alone=Rows(2, 4, 1, share=4)), "rows of two blocks"),
        (Tuning(down_alone=Rows(2, 8, 2, share=8)), "more shares than picks"),
    ],
)
def test_activations_that_cannot_be_staged_are_not(tuning: Tuning, why: str) -> None:
    rng = np.random.default_rng(1)
    size = 160 if why == "no room" else 1056
    gate_up, down = experts(rng, 5, 2 * size, size), experts(rng, 5, 33, size)
    t, logits, x = floats(rng, 1, 8, size // 32, 4), floats(rng, 1, 5), floats(rng, 1, 33)
    got = moe_gate_up(t, logits, gate_up, PARAMS, top_k=4, backend=BenchBackend(), tuning=tuning)
    want = moe_gate_up_twin(t, logits, gate_up, PARAMS, top_k=4)
    close(got[0], want[0])
    close(moe_down(*want, down, x, backend=BenchBackend(), tuning=tuning), moe_down_twin(*want, down, x))


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 5), st.lists(st.integers(-60, 60), min_size=1, max_size=3), st.integers(0, 2**32 - 1))
def test_packing_keeps_what_a_half_keeps_of_each_block(rows: int, powers: list[int], seed: int) -> None:
    rng = np.random.default_rng(seed)
    x = (
        rng.standard_normal((rows, len(powers), 32)).astype(np.float32)
        * np.exp2(np.array(powers, np.float32))[None, :, None]
    )
    columns = 32 * len(powers)
    packed = pack_activation(mx.array(x.reshape(rows, columns)))
    assert packed.shape == (rows, packed_size(columns))
    assert packed.dtype == mx.float16
    back = wide(unpack_activation(packed, columns)).reshape(x.shape)
    largest = np.abs(x).max(axis=-1, keepdims=True)
    assert (np.abs(back - x) <= np.maximum(np.abs(x) * 2.0**-11, largest * 2.0**-38)).all()


def test_halves_lose_less_than_half_of_what_bfloat16_activations_lose() -> None:
    """Rows of the released length against float64."""
    rng = np.random.default_rng(12)
    down = dataclasses.replace(experts(rng, 1, 256, 2880), bias=mx.zeros((1, 256), mx.bfloat16))
    x = floats(rng, 1, 2880)
    y = moe_down(
        pack_activation(x), mx.zeros((8,), mx.int32), mx.ones((8,)), down, mx.zeros((1, 256)),
        backend=BenchBackend(guard="fast"), tuning=Tuning(down_alone=Rows(1, 4, 3), halves=True),
    )  # fmt: skip
    weight = wide(picked_weight(down, mx.array([0])))[0]
    want = weight @ wide(x)[0]
    rounded = weight @ wide(x.astype(mx.bfloat16))[0]

    def error(got: NDArray[np.float64]) -> float:
        return float(np.sqrt(((got - want) ** 2).mean() / (want**2).mean()))

    print(f"halves err by {error(wide(y)[0]):.1e}, bfloat16 activations by {error(rounded):.1e}")
    assert error(wide(y)[0]) < 0.5 * error(rounded)


def test_halves_of_every_size_multiply_alike() -> None:
    """Activations from 2^-40 to 2^40: no overflow, no loss."""
    rng = np.random.default_rng(5)
    gate_up, down = (
        dataclasses.replace(experts(rng, 2, 64, columns), bias=mx.zeros((2, 64), mx.bfloat16)) for columns in (64, 32)
    )
    tuning = Tuning(gate_up_alone=Rows(1, 1, 1, passes=2), down_alone=Rows(1, 2, 1), halves=True)
    logits, x = floats(rng, 1, 2), mx.zeros((1, 64))
    for power in (-40, -3, 0, 17, 40):
        h = pack_activation(floats(rng, 1, 32, std=2.0**power))
        routed = h, mx.array([1, 0, 0, 0, 0, 0, 0, 0]), mx.ones((8,))
        scale = 2.0**-power
        got = moe_down(*routed, down, x, backend=BenchBackend(), tuning=tuning)
        close(got * scale, moe_down_twin(*routed, down, x) * scale, HALVES)
        t = pack_activation(floats(rng, 1, 64, std=2.0**power))
        inner, *_ = moe_gate_up(t, logits, gate_up, PARAMS, top_k=1, backend=BenchBackend(), tuning=tuning)
        want, *_ = moe_gate_up_twin(t, logits, gate_up, PARAMS, top_k=1)
        # What is beside 2^-20 of the clamp's square is lost; a gate and a linear of 2^-40 have no more.
        assert float(mx.abs(unpack_activation(inner, 32) - unpack_activation(want, 32)).max()) <= 56 * 2e-3


SEVERAL = Tuning(gate_up_several=Rows(2, 2, 1, passes=2), down_several=Rows(1, 2, 1), halves=True)


@pytest.mark.parametrize(
    ("hidden", "inner", "top_k", "batch", "gate_up_rows", "down_rows"),
    [
        (1088, 96, 4, 3, Rows(2, 5, 2, passes=4), Rows(4, 3, 1)),  # the last simdgroups have fewer rows, or none
        (160, 256, 4, 8, Rows(4, 3, 1, passes=2), Rows(2, 4, 1)),
        (96, 128, 3, 2, Rows(1, 2, 2, passes=2), Rows(1, 6, 1)),
        (1056, 32, 1, 5, Rows(1, 3, 2, passes=6), Rows(1, 8, 3)),
    ],
)
@pytest.mark.parametrize("shared", [False, True])
def test_several_sequences_in_halves(
    hidden: int, inner: int, top_k: int, batch: int, gate_up_rows: Rows, down_rows: Rows, shared: bool
) -> None:
    """Experts that differ, and (`shared`) the same for all sequences: each one's rows are read once."""
    rng = np.random.default_rng(hidden)
    gate_up, down = experts(rng, 40, 2 * inner, hidden), experts(rng, 40, 97, inner)
    t, x = pack_activation(floats(rng, batch, hidden)), floats(rng, batch, 97)
    logits = floats(rng, batch, 40)
    logits = mx.repeat(logits[:1], batch, axis=0) if shared else logits
    tuning = Tuning(gate_up_several=gate_up_rows, down_several=down_rows, halves=True)
    assert takes_halves(gate_up, down, top_k, tuning, batch)
    backend = BenchBackend(count_bytes=True)
    got = moe_gate_up(t, logits, gate_up, PARAMS, top_k=top_k, backend=backend, tuning=tuning)
    want = moe_gate_up_twin(t, logits, gate_up, PARAMS, top_k=top_k)
    assert np.array_equal(table(got[1], batch, top_k), table(want[1], batch, top_k))
    close(got[2][: batch * top_k], want[2][: batch * top_k])
    assert got[0].shape == want[0].shape
    close(unpack_activation(got[0], inner), unpack_activation(want[0], inner), HALVES)
    close(moe_down(*want, down, x, backend=backend, tuning=tuning), moe_down_twin(*want, down, x), HALVES)
    distinct = len(np.unique(table(want[1], batch, top_k)))
    for result, matrix in zip(backend.results, (gate_up, down), strict=True):
        assert matrix.blocks is not None
        # The last simdgroup's rows beyond the end are its last row again.
        again = 97 % down_rows.rows and down_rows.rows - 97 % down_rows.rows if matrix is down else 0
        rows = matrix.rows + again
        assert result.bytes_read["weight"] == distinct * rows * matrix.columns // 2
        assert result.bytes_read["scales"] == distinct * rows * matrix.columns // 32


def test_not_a_number_stays_with_its_sequence() -> None:
    rng = np.random.default_rng(13)
    down, h = experts(rng, 3, 33, 64), floats(rng, 4, 64)
    h[2, 40] = mx.nan
    picks, shares = mx.array([0, 1, 1, 0, 0, 0, 0, 0], dtype=mx.int32), mx.ones((8,))
    y = moe_down(
        pack_activation(h), picks, shares, down, mx.zeros((2, 33)), backend=BenchBackend(), tuning=SEVERAL
    )  # fmt: skip
    assert bool(mx.isfinite(y[0]).all())
    assert bool(mx.isnan(y[1]).all())


@pytest.mark.parametrize("packed", [False, True])
def test_logits_that_are_no_numbers_stay_with_their_sequence(packed: bool) -> None:
    """What has no order gets one, so that every expert that a later sequence chose is someone's."""
    rng = np.random.default_rng(15)
    gate_up, t = experts(rng, 6, 64, 64), floats(rng, 3, 64)
    logits = floats(rng, 3, 6)
    logits[0] = mx.nan
    t = pack_activation(t) if packed else permute_activation(t)
    h, picks, shares = moe_gate_up(t, logits, gate_up, PARAMS, top_k=2, backend=BenchBackend(), tuning=SEVERAL)
    want, chosen, _ = moe_gate_up_twin(t[1:], logits[1:], gate_up, PARAMS, top_k=2)
    assert np.array_equal(table(picks, 3, 2)[1:], table(chosen, 2, 2))
    assert bool(mx.isfinite(shares[2:6]).all())
    if packed:
        close(unpack_activation(h[2:], 32), unpack_activation(want, 32), HALVES)
    else:
        close(h[1:], want)


@pytest.mark.parametrize(
    ("gate_up_rows", "down_rows"),
    [
        (Rows(3, 2, 1, passes=2), Rows(1, 2, 1)),
        (Rows(1, 2, 1, passes=5), Rows(1, 2, 1)),
        (Rows(2, 2, 1, passes=8), Rows(1, 2, 1)),  # more results than lanes of eight sequences
        (Rows(2, 2, 1, passes=2), Rows(8, 2, 1)),
        (Rows(2, 2, 1, passes=2), Rows(1, 2, 1, share=2)),
        (None, Rows(1, 2, 1)),
    ],
)
def test_rows_that_do_not_serve_every_batch_serve_none(gate_up_rows: Rows | None, down_rows: Rows | None) -> None:
    rng = np.random.default_rng(16)
    gate_up, down = experts(rng, 3, 64, 64), experts(rng, 3, 33, 32)
    tuning = SEVERAL.having(gate_up_several=gate_up_rows, down_several=down_rows)
    assert takes_halves(gate_up, down, 2, SEVERAL, 2)
    assert not any(takes_halves(gate_up, down, 2, tuning, batch) for batch in range(1, 9))


def test_more_picks_than_lanes_are_refused() -> None:
    rng = np.random.default_rng(14)
    down, x = experts(rng, 9, 33, 32), mx.zeros((7, 33))
    picks, shares = mx.zeros((35,), mx.int32), mx.ones((35,))
    assert not takes_halves(experts(rng, 9, 64, 64), down, 5, SEVERAL, 7)
    with pytest.raises(KernelError, match="at most 32 picks"):
        moe_down(floats(rng, 7, 5, 8, 1, 4), picks, shares, down, x, backend=BenchBackend(), tuning=Tuning())
    with pytest.raises(KernelError, match="do not fit the tuning"):
        moe_down(pack_activation(floats(rng, 35, 32)), picks, shares, down, x, backend=BenchBackend(), tuning=SEVERAL)


def test_not_a_number_comes_through_packed_activations() -> None:
    rng = np.random.default_rng(6)
    down, h = experts(rng, 1, 33, 64), floats(rng, 1, 64)
    h[0, 40] = mx.nan
    tuning = Tuning(down_alone=Rows(1, 2, 1), halves=True)
    y = moe_down(
        pack_activation(h), mx.zeros((8,), mx.int32), mx.ones((8,)), down, mx.zeros((1, 33)),
        backend=BenchBackend(), tuning=tuning,
    )  # fmt: skip
    assert bool(mx.isnan(y).all())


def test_packed_activations_that_do_not_fit_are_refused() -> None:
    rng = np.random.default_rng(7)
    gate_up, down = experts(rng, 2, 64, 64), experts(rng, 2, 64, 32)
    dense = experts(rng, 2, 64, 64, dense=True)
    logits, x, table = floats(rng, 1, 2), mx.zeros((1, 64)), mx.zeros((8,), mx.int32)
    t, h = pack_activation(floats(rng, 1, 64)), pack_activation(floats(rng, 1, 32))
    backend = BenchBackend()
    with pytest.raises(KernelError, match="do not fit the tuning"):
        moe_gate_up(t, logits, gate_up, PARAMS, top_k=1, backend=backend, tuning=Tuning())
    with pytest.raises(KernelError, match="do not fit the tuning"):
        moe_down(h, table, mx.ones((8,)), down, x, backend=backend, tuning=Tuning())
    tuning = Tuning(gate_up_alone=Rows(1, 1, 1, passes=2), down_alone=Rows(1, 2, 1), halves=True)
    assert not takes_halves(dense, down, 1, tuning)
    assert not takes_halves(gate_up, down, 1, tuning.having(halves=False))
    assert not takes_halves(gate_up, down, 1, tuning.having(staged_bytes=16))
    shared = tuning.having(down_alone=Rows(1, 2, 1, share=2))
    assert not takes_halves(gate_up, down, 2, shared)
    with pytest.raises(KernelError, match="not shared out"):
        moe_down(mx.concatenate([h, h]), table, mx.ones((8,)), down, x, backend=backend, tuning=shared)
    with pytest.raises(KernelError, match="do not fit the tuning"):
        moe_gate_up(t, logits, dense, PARAMS, top_k=1, backend=backend, tuning=tuning)
    with pytest.raises(KernelError, match="wrong shape"):
        moe_gate_up(t[:, 1:], logits, gate_up, PARAMS, top_k=1, backend=backend, tuning=tuning)


def test_every_mxfp4_code_and_scale_decodes_exactly() -> None:
    """One expert whose rows pick out single codes: all 16 codes in every place of a word, exponents from 1 to 240."""
    exponents = np.arange(1, 241)
    codes = (np.arange(32) * 7 + exponents[:, None]) % 16
    blocks = np.zeros((1, 240, 4), np.uint32)
    for k in range(32):
        blocks[0, :, k // 8] |= (codes[:, k] << (4 * (k % 8))).astype(np.uint32)
    down = Experts(
        mx.zeros((1, 240), mx.bfloat16), mx.array(blocks), mx.array(exponents[None, :, None].astype(np.uint8))
    )
    for k in (*range(8), 13, 18, 31):
        one = np.zeros((1, 1, 32), np.float32)
        one[0, 0, k] = 1.0
        y = moe_down(
            permute_activation(mx.array(one)),
            mx.zeros((8,), mx.int32),
            mx.ones((8,)),
            down,
            mx.zeros((1, 240)),
            backend=BenchBackend(),
        )
        want = FP4_VALUES[codes[:, k]].astype(np.float64) * 2.0 ** (exponents - 127.0)
        np.testing.assert_array_equal(wide(y)[0], want.astype(np.float32).astype(np.float64))


def test_clamp_is_one_sided_on_the_gate() -> None:
    rng = np.random.default_rng(0)
    gate_up = experts(rng, 1, 64, 32)
    bias = np.zeros((1, 64), np.float32)
    bias[0, 0:4] = [100.0, 100.0, -100.0, -100.0]
    gate_up = Experts(mx.array(bias), gate_up.blocks, gate_up.scales)
    t = permute_activation(mx.zeros((1, 32)))
    logits = mx.zeros((1, 1))
    h, _, _ = moe_gate_up(t, logits, gate_up, PARAMS, top_k=1, backend=BenchBackend())
    plain = np.array(unpermute_activation(h))[0, 0].tolist()
    assert plain[0] == pytest.approx(7.0 / (1 + np.exp(-1.702 * 7)) * 8.0, rel=1e-6)
    assert plain[1] == pytest.approx(0.0, abs=1e-30)
    assert plain[2:] == [0.0] * 30


@settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(st.sampled_from([-1.0, 0.0, 0.5, 2.0]), min_size=12, max_size=12))
def test_ties_go_to_the_lower_expert(values: list[float]) -> None:
    rng = np.random.default_rng(0)
    logits = mx.array(values).reshape(2, 6)
    gate_up = experts(rng, 6, 64, 32)
    _, picks, weights = moe_gate_up(
        permute_activation(floats(rng, 2, 32)), logits, gate_up, PARAMS, top_k=3, backend=BenchBackend()
    )
    for s in range(2):
        row = values[6 * s : 6 * s + 6]
        assert table(picks, 2, 3)[s].tolist() == sorted(range(6), key=lambda e: (-row[e], e))[:3]
    assert np.array(weights)[:6].reshape(2, 3).sum(axis=1) == pytest.approx([1.0, 1.0])


def test_shared_experts_are_one_stretch_of_memory() -> None:
    """Four sequences that choose the same two experts touch no other experts, and the distinct bytes are theirs."""
    rng = np.random.default_rng(4)
    gate_up, down = experts(rng, 6, 64, 96), experts(rng, 6, 96, 32)
    logits = mx.array([[0.0, 5.0, 0.0, 4.0, 0.0, 0.0]] * 4)
    t, x = floats(rng, 4, 8, 3, 4), floats(rng, 4, 96)
    backend = BenchBackend(count_bytes=True)
    h, picks, weights = moe_gate_up(t, logits, gate_up, PARAMS, top_k=2, backend=backend)
    moe_down(h, picks, weights, down, x, backend=backend)
    for result, matrix in zip(backend.results, (gate_up, down), strict=True):
        assert matrix.blocks is not None
        assert matrix.scales is not None
        assert result.unique_read["weight"] == matrix.blocks.nbytes // 3
        assert result.unique_read["scales"] == matrix.scales.nbytes // 3


def test_bytes_are_the_minimum() -> None:
    rng = np.random.default_rng(6)
    gate_up, down = experts(rng, 8, 256, 320), experts(rng, 8, 320, 128)
    t, logits, x = floats(rng, 1, 8, 10, 4), floats(rng, 1, 8), floats(rng, 1, 320)
    backend = BenchBackend(count_bytes=True)
    h, picks, weights = moe_gate_up(t, logits, gate_up, PARAMS, top_k=4, backend=backend)
    moe_down(h, picks, weights, down, x, backend=backend)
    for result, matrix, around in zip(
        backend.results, (gate_up, down), (t.nbytes + h.nbytes, h.nbytes + 2 * x.nbytes), strict=True
    ):
        assert matrix.blocks is not None
        assert matrix.scales is not None
        least = (matrix.blocks.nbytes + matrix.scales.nbytes + matrix.bias.nbytes) // 2 + around
        assert result.bytes_read["weight"] == matrix.blocks.nbytes // 2
        assert sum(result.unique_read.values()) + sum(result.unique_written.values()) <= 1.05 * least


@pytest.mark.parametrize("schedule", ["forward", "reverse", "random"])
def test_schedules(schedule: Schedule) -> None:
    rng = np.random.default_rng(8)
    gate_up, down = experts(rng, 5, 64, 96), experts(rng, 5, 97, 32)
    t, logits, x = floats(rng, 2, 8, 3, 4), floats(rng, 2, 5), floats(rng, 2, 97)
    backend = BenchBackend(schedule=schedule)
    got = moe_gate_up(t, logits, gate_up, PARAMS, top_k=2, backend=backend)
    want = moe_gate_up_twin(t, logits, gate_up, PARAMS, top_k=2)
    close(got[0], want[0])
    close(moe_down(*got, down, x, backend=backend), moe_down_twin(*want, down, x))


def test_mistakes_are_named() -> None:
    rng = np.random.default_rng(0)
    gate_up = experts(rng, 4, 64, 96)
    t, logits = floats(rng, 1, 8, 3, 4), floats(rng, 1, 4)
    with pytest.raises(KernelError, match="top_k"):
        moe_gate_up(t, logits, gate_up, PARAMS, top_k=5, backend=BenchBackend())
    with pytest.raises(KernelError, match="wrong shape"):
        moe_gate_up(t, logits[:, :3], gate_up, PARAMS, top_k=2, backend=BenchBackend())
    with pytest.raises(KernelError, match="blocks and scales"):
        moe_gate_up(t, logits, Experts(gate_up.bias), PARAMS, top_k=2, backend=BenchBackend())
    for rows in (Rows(1, 4, 1), Rows(6, 4, 1), Rows(4, 4, 1, passes=9)):
        with pytest.raises(KernelError, match="pairs of rows"):
            moe_gate_up(t, logits, gate_up, PARAMS, top_k=2, backend=BenchBackend(), tuning=Tuning(gate_up=rows))
    down = experts(rng, 4, 96, 32)
    h, picks, shares = floats(rng, 1, 4, 8, 1, 4), mx.zeros((8,), mx.int32), mx.zeros((8,))
    for rows in (Rows(3, 4, 1), Rows(16, 4, 1)):
        with pytest.raises(KernelError, match="rows of at most"):
            moe_down(h, picks, shares, down, floats(rng, 1, 96), backend=BenchBackend(), tuning=Tuning(down=rows))


@pytest.mark.parametrize(("size", "count", "batch"), [(300, 1, 1), (1000, 8, 2), (257, 20, 1), (8, 8, 1)])
def test_top_tokens(size: int, count: int, batch: int) -> None:
    rng = np.random.default_rng(size)
    logits = floats(rng, batch, size)
    got, want = top_tokens(logits, count, backend=BenchBackend()), top_tokens_twin(logits, count)
    assert mx.array_equal(got[0], want[0])
    assert mx.array_equal(got[1], want[1])


@settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(st.sampled_from([-np.inf, -1.0, 0.0, 3.0]), min_size=300, max_size=300))
def test_top_tokens_ties_and_ends(values: list[float]) -> None:
    got, ids = top_tokens(mx.array(values)[None], 5, backend=BenchBackend())
    order = [i for i in sorted(range(300), key=lambda i: (-values[i], i)) if values[i] > -np.inf][:5]
    assert np.array(ids)[0].tolist() == order + [-1] * (5 - len(order))
    assert np.array(got)[0].tolist() == [values[i] for i in order] + [-np.inf] * (5 - len(order))
