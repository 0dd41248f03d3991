"""The matrix kernels of a decode step on the shader bench, against their twins and an independent float64 oracle."""

from __future__ import annotations

import dataclasses

import mlx.core as mx
import numpy as np
import pytest
from numpy.typing import NDArray

from mlx_gptoss.errors import KernelError
from mlx_gptoss.kernels.attention import attention_merge_twin
from mlx_gptoss.kernels.attention_out import attention_out, attention_out_twin
from mlx_gptoss.kernels.backend import StockBackend
from mlx_gptoss.kernels.halves import unpack_activation
from mlx_gptoss.kernels.head import head, head_twin
from mlx_gptoss.kernels.layout import dense_weight, permute_activation, tile_chunks, unpermute_activation
from mlx_gptoss.kernels.qkv import qkv_rope, qkv_rope_twin
from mlx_gptoss.kernels.router import router, router_twin
from mlx_gptoss.kernels.tuning import Rows, Tuning
from mlx_gptoss.weights import LinearFormat
from tests.bench.backend import BenchBackend
from tests.bench.executor import Schedule
from tests.kernels.decode_data import HALVES, PARAMS, TOLERANCE, close, floats, linear

IN_HALVES = Tuning(out_halves=Rows(2, 3, 4), halves=True)
FORMATS: tuple[LinearFormat, ...] = ("f32", "bf16", "mxfp8", "q8", "q6", "q4")


def wide(array: mx.array) -> NDArray[np.float64]:
    return np.array(array.astype(mx.float32)).astype(np.float64)


@pytest.mark.parametrize(("fmt", "batch", "columns"), [
    ("bf16", 1, 2880), ("f32", 2, 96), ("mxfp8", 1, 160), ("q8", 3, 160), ("q6", 1, 96), ("q4", 2, 320),
    ("bf16", 8, 160),
])  # fmt: skip
def test_qkv_rope(fmt: LinearFormat, batch: int, columns: int) -> None:
    rng = np.random.default_rng(columns + batch)
    heads, kv_heads = 3, 1
    weight = linear(rng, (heads + 2 * kv_heads) * 64, columns, fmt)
    x, norm = floats(rng, batch, columns, std=3.0), floats(rng, columns, dtype=mx.bfloat16)
    rope = floats(rng, batch, 64)
    backend = BenchBackend()
    got = qkv_rope(x, norm, weight, rope, PARAMS, heads=heads, kv_heads=kv_heads, dtype=mx.float32, backend=backend)
    assert backend.launches == ["qkv_rope"]
    want = qkv_rope_twin(x, norm, weight, rope, PARAMS, heads=heads, kv_heads=kv_heads, dtype=mx.float32)
    for g, w in zip(got, want, strict=True):
        close(g, w)
    # The oracle: the textbook formulas in float64.
    t = wide(x) / np.sqrt((wide(x) ** 2).mean(axis=-1, keepdims=True) + 1e-5) * wide(norm)
    bias = weight.bias
    assert bias is not None
    y = (t @ wide(dense_weight(weight)).T + wide(bias)).reshape(batch, -1, 64)
    turned = y[..., :32] + 1j * y[..., 32:]
    turned = turned * (wide(rope)[:, None, :32] + 1j * wide(rope)[:, None, 32:])
    q = np.concatenate([turned.real, turned.imag], axis=-1)[:, :heads]
    np.testing.assert_allclose(wide(got[0]), q, atol=2e-5 * np.abs(q).max())
    np.testing.assert_allclose(wide(got[2]), y[:, -1:], atol=2e-5 * np.abs(y).max())


@pytest.mark.parametrize("fmt", FORMATS)
@pytest.mark.parametrize(
    ("columns", "batch", "rows"),
    [
        # Fewer steps than are in flight; steps that end within the row; more threads than values.
        (96, 1, Rows(2, 3, 4)),
        (1376, 1, Rows(4, 5, 2)),
        (2880, 1, Rows(2, 4, 3)),
        (320, 2, Rows(2, 3, 4)),
    ],
)
def test_qkv_rope_without_a_pause(fmt: LinearFormat, columns: int, batch: int, rows: Rows) -> None:
    rng = np.random.default_rng(columns)
    weight = linear(rng, 3 * 64, columns, fmt)
    x, norm, rope = (
        floats(rng, batch, columns, std=3.0),
        floats(rng, columns, dtype=mx.bfloat16),
        floats(rng, batch, 64),
    )
    tuning = Tuning(qkv=rows)
    got = qkv_rope(
        x, norm, weight, rope, PARAMS, heads=1, kv_heads=1, dtype=mx.float32, backend=BenchBackend(), tuning=tuning
    )
    want = qkv_rope_twin(x, norm, weight, rope, PARAMS, heads=1, kv_heads=1, dtype=mx.float32)
    for g, w in zip(got, want, strict=True):
        close(g, w)


@pytest.mark.parametrize(
    ("fmt", "halves"),
    [("f32", False), ("bf16", False), ("q8", True), ("mxfp8", True), ("q6", True), ("q4", True)],
)
@pytest.mark.parametrize(
    ("columns", "rows"),
    [
        # More lanes than values; a last simdgroup of stagers that has none; as many steps as are in flight, and fewer.
        (96, Rows(2, 3, 4, stagers=2)),
        (1376, Rows(4, 5, 2, stagers=3)),
        (2880, Rows(2, 4, 6, stagers=1)),
        (2880, Rows(4, 4, 2)),  # none beside those that multiply
        (2880, Rows(2, 3, 4, stagers=4)),
        (3072, Rows(2, 4, 4, stagers=2)),  # whole steps, 6-bit ones twice as large, two of them in flight
    ],
)
def test_qkv_whose_activation_others_bring(fmt: LinearFormat, halves: bool, columns: int, rows: Rows) -> None:
    rng = np.random.default_rng(columns)
    weight = linear(rng, 3 * 64, columns, fmt)
    x, norm, rope = floats(rng, 1, columns, std=3.0), floats(rng, columns, dtype=mx.bfloat16), floats(rng, 1, 64)
    tuning, backend = Tuning(qkv_alone=rows, qkv_halves=rows, halves=halves), BenchBackend()
    got = qkv_rope(x, norm, weight, rope, PARAMS, heads=1, kv_heads=1, dtype=mx.float32, backend=backend, tuning=tuning)
    want = qkv_rope_twin(x, norm, weight, rope, PARAMS, heads=1, kv_heads=1, dtype=mx.float32)
    for g, w in zip(got, want, strict=True):
        close(g, w, HALVES if halves else TOLERANCE)


@pytest.mark.parametrize("fmt", ["q8", "q6", "q4"])
@pytest.mark.parametrize("group", [32, 64, 128])
@pytest.mark.parametrize("dtype", [mx.bfloat16, mx.float16, mx.float32])
# A step that few lanes have; a last step of most; more than 32 groups; whole steps, 6-bit ones twice as large.
@pytest.mark.parametrize("columns", [128, 896, 2432, 3072])
def test_halves_of_every_group_and_scale(fmt: LinearFormat, group: int, dtype: mx.Dtype, columns: int) -> None:
    """Lanes hold scales of 16 bits (others go in floats); each row and group has its own, no other's would do."""
    rng = np.random.default_rng(columns + group)
    weight = linear(rng, 9, columns, fmt, group)
    assert weight.scales is not None
    assert weight.biases is not None
    spread = mx.array(2.0 ** rng.integers(-2, 3, weight.scales.shape))
    weight = dataclasses.replace(
        weight, scales=(weight.scales * spread).astype(dtype), biases=(weight.biases * spread).astype(dtype)
    )
    a, x = floats(rng, 1, columns), floats(rng, 1, 9)
    got = attention_out(a, weight, x, backend=BenchBackend(), tuning=IN_HALVES)
    close(got, attention_out_twin(a, weight, x), TOLERANCE if dtype == mx.float32 else HALVES)


@pytest.mark.parametrize("power", [-30, 0, 30])
@pytest.mark.parametrize("columns", [256, 1024])
@pytest.mark.parametrize("fmt", ["q8", "mxfp8", "q6", "q4"])
def test_halves_of_dense_weights_neither_overflow_nor_vanish(fmt: LinearFormat, columns: int, power: int) -> None:
    """The largest weights against the largest activations, all of one sign, and one activation far above the others."""
    rng = np.random.default_rng(power + 40)
    weight = linear(rng, 64, columns, fmt)
    words = np.array(weight.weight)
    words[:8] = 0 if fmt != "mxfp8" else 0x7E7E7E7E
    words[8:16] = 0xFFFFFFFF if fmt != "mxfp8" else 0xFEFEFEFE
    weight = dataclasses.replace(weight, weight=mx.array(words))
    a = np.full((1, columns), np.nextafter(np.float32(2), np.float32(0)) * 2.0**power, np.float32)
    a[0, 64:] = rng.standard_normal(columns - 64) * 2.0**power
    a[0, 130] *= 1000.0
    for activations in (a, -a):
        got = attention_out(mx.array(activations), weight, mx.zeros((1, 64)), backend=BenchBackend(), tuning=IN_HALVES)
        want = attention_out_twin(mx.array(activations), weight, mx.zeros((1, 64)))
        close(got * 2.0**-power, want * 2.0**-power, HALVES)


def test_qkv_takes_pairs_of_rows() -> None:
    rng = np.random.default_rng(0)
    weight, x, norm, rope = linear(rng, 3 * 64, 96), floats(rng, 1, 96), floats(rng, 96), floats(rng, 1, 64)
    with pytest.raises(KernelError, match="pairs of rows"):
        qkv_rope(
            x, norm, weight, rope, PARAMS,
            heads=1, kv_heads=1, dtype=mx.float32, backend=BenchBackend(), tuning=Tuning(qkv=Rows(1, 2, 2)),
        )  # fmt: skip


def test_qkv_rounds_to_the_cache_dtype_once() -> None:
    rng = np.random.default_rng(1)
    weight, x, norm, rope = linear(rng, 3 * 64, 96), floats(rng, 1, 96), floats(rng, 96), floats(rng, 1, 64)
    got = qkv_rope(x, norm, weight, rope, PARAMS, heads=1, kv_heads=1, dtype=mx.bfloat16, backend=BenchBackend())
    full = qkv_rope(x, norm, weight, rope, PARAMS, heads=1, kv_heads=1, dtype=mx.float32, backend=BenchBackend())
    for g, w in zip(got[1:], full[1:], strict=True):
        assert g.dtype == mx.bfloat16
        assert mx.array_equal(g, w.astype(mx.bfloat16))


@pytest.mark.parametrize("fmt", FORMATS)
@pytest.mark.parametrize("halves", [False, True])
@pytest.mark.parametrize(("rows", "columns", "batch"), [(97, 160, 1), (33, 1056, 3)])
def test_attention_out(fmt: LinearFormat, halves: bool, rows: int, columns: int, batch: int) -> None:
    rng = np.random.default_rng(rows)
    weight = linear(rng, rows, columns, fmt)
    a, x = floats(rng, batch, columns), floats(rng, batch, rows)
    got = attention_out(a, weight, x, backend=BenchBackend(), tuning=IN_HALVES if halves else Tuning())
    close(got, attention_out_twin(a, weight, x), HALVES if halves and batch == 1 else TOLERANCE)


@pytest.mark.parametrize("fmt", FORMATS)
@pytest.mark.parametrize("halves", [False, True])
@pytest.mark.parametrize(("heads", "parts"), [(5, 2), (16, 4), (3, 13)])
def test_attention_out_merges_parts(fmt: LinearFormat, halves: bool, heads: int, parts: int) -> None:
    """As attention_merge would; one part is empty, another carries nearly all, and padding is never read."""
    rng = np.random.default_rng(heads)
    weight, x = linear(rng, 97, 64 * heads, fmt), floats(rng, 1, 97)
    a = np.abs(np.array(floats(rng, heads, parts, 68, std=2.0)))
    a[0, 0, :64], a[0, 0, 64:66] = 0.0, (-1e30, 0.0)
    a[1, 1, 64] = 40.0
    a[..., 66:] = np.nan
    sinks = floats(rng, heads, dtype=mx.bfloat16)
    merged = attention_merge_twin([mx.array(a)], sinks)
    tuning = IN_HALVES if halves else Tuning()
    got = attention_out(mx.array(a), weight, x, sinks=sinks, backend=BenchBackend(), tuning=tuning)
    close(got, attention_out_twin(merged, weight, x), HALVES if halves else TOLERANCE)
    assert mx.array_equal(
        attention_out(mx.array(a), weight, x, sinks=sinks, backend=StockBackend()),
        attention_out_twin(merged, weight, x),
    )


@pytest.mark.parametrize("batch", range(1, 9))
def test_every_batch_is_row_by_row_the_same(batch: int) -> None:
    """Joining a batch changes no bit of a sequence's numbers."""
    rng = np.random.default_rng(3)
    weight, a, x = linear(rng, 40, 1024), floats(rng, 8, 1024), floats(rng, 8, 40)
    together = attention_out(a[:batch], weight, x[:batch], backend=BenchBackend())
    close(together, attention_out_twin(a[:batch], weight, x[:batch]))


@pytest.mark.parametrize(("experts", "batch"), [(5, 1), (8, 8), (33, 2), (128, 1)])
def test_router(experts: int, batch: int) -> None:
    rng = np.random.default_rng(experts)
    weight, x, norm = linear(rng, experts, 160), floats(rng, batch, 160), floats(rng, 160, dtype=mx.bfloat16)
    t, logits = router(x, norm, weight, PARAMS, backend=BenchBackend())
    want_t, want = router_twin(x, norm, weight, PARAMS)
    close(t, want_t)
    close(logits, want)


@pytest.mark.parametrize(("columns", "batch"), [(96, 1), (160, 3), (2880, 1), (96, 8)])
def test_router_packs(columns: int, batch: int) -> None:
    rng = np.random.default_rng(columns)
    weight, x, norm = linear(rng, 9, columns), floats(rng, batch, columns, std=50.0), floats(rng, columns)
    got = router(x, norm, weight, PARAMS, packed=True, backend=BenchBackend())
    want = router_twin(x, norm, weight, PARAMS, packed=True)
    assert got[0].shape == want[0].shape
    close(unpack_activation(got[0], columns), unpack_activation(want[0], columns), 2.0**-10)
    close(got[1], want[1])


def test_router_in_half() -> None:
    rng = np.random.default_rng(0)
    weight, x, norm = linear(rng, 8, 96), floats(rng, 1, 96), floats(rng, 96)
    t, _ = router(x, norm, weight, PARAMS, dtype=mx.float16, backend=BenchBackend())
    close(t, router_twin(x, norm, weight, PARAMS)[0], 1e-3)


@pytest.mark.parametrize(
    ("fmt", "batch", "valid"), [("bf16", 1, 300), ("bf16", 4, 271), ("q8", 2, 256), ("mxfp8", 1, 1)]
)
def test_head(fmt: LinearFormat, batch: int, valid: int) -> None:
    rng = np.random.default_rng(valid)
    weight, x, norm = linear(rng, 300, 160, fmt), floats(rng, batch, 160), floats(rng, 160)
    got = head(x, norm, weight, PARAMS, valid=valid, backend=BenchBackend())
    close(got, head_twin(x, norm, weight, PARAMS, valid=valid))
    assert not np.isfinite(np.array(got)[:, valid:]).any()


def test_padding_rows_are_not_read() -> None:
    rng = np.random.default_rng(9)
    weight, x, norm = linear(rng, 300, 160), floats(rng, 1, 160), floats(rng, 160)
    backend = BenchBackend(count_bytes=True)
    head(x, norm, weight, PARAMS, valid=100, backend=backend)
    assert backend.results[0].unique_read["weight"] == 100 * 160 * 2


@pytest.mark.parametrize("schedule", ["forward", "reverse", "random"])
def test_schedules(schedule: Schedule) -> None:
    rng = np.random.default_rng(5)
    weight, norm, x, rope = linear(rng, 3 * 64, 1056), floats(rng, 1056), floats(rng, 4, 1056), floats(rng, 4, 64)
    got = qkv_rope(
        x, norm, weight, rope, PARAMS, heads=1, kv_heads=1, dtype=mx.float32, backend=BenchBackend(schedule=schedule)
    )
    want = qkv_rope_twin(x, norm, weight, rope, PARAMS, heads=1, kv_heads=1, dtype=mx.float32)
    for g, w in zip(got, want, strict=True):
        close(g, w)


@pytest.mark.parametrize(("fmt", "batch"), [("bf16", 1), ("q6", 1), ("bf16", 4), ("q4", 8)])
def test_weights_are_read_once(fmt: LinearFormat, batch: int) -> None:
    """Whatever the batch, each byte of the weight is loaded once; scales are 2 bytes a group, loaded chunk by chunk."""
    rng = np.random.default_rng(2)
    weight, a, x = (
        linear(rng, 64, 320, fmt, 64 if fmt != "bf16" else 32),
        floats(rng, batch, 320),
        floats(rng, batch, 64),
    )
    backend = BenchBackend(count_bytes=True)
    attention_out(a, weight, x, backend=backend)
    result = backend.results[0]
    assert result.bytes_read["weight"] == weight.weight.nbytes
    total = sum(result.unique_read.values()) + sum(result.unique_written.values())
    bias = weight.bias
    assert bias is not None
    parts = (weight.weight, weight.scales, weight.biases, bias, a, x, x)
    assert total <= 1.05 * sum(part.nbytes for part in parts if part is not None)


def test_permutation_is_undone() -> None:
    x = mx.arange(2 * 96).reshape(2, 96)
    assert mx.array_equal(unpermute_activation(permute_activation(x)), x)
    # Lane c of the kernels reads float4 j of its block at [j, c].
    assert permute_activation(x)[1, 5, 2].tolist() == [96 + 64 + 20 + i for i in range(4)]


@pytest.mark.parametrize("weight_format", [4, 6, 8, 16, 32, 108])
@pytest.mark.parametrize("batch", [1, 3, 8])
def test_staged_tiles_fit_threadgroup_memory(weight_format: int, batch: int) -> None:
    chunk = 16 if weight_format == 6 else 128 // (weight_format % 100)
    tile = tile_chunks(weight_format, 4096, batch, 24_576)
    assert 1 <= tile <= 4096 // chunk
    assert batch * (chunk // 4) * (tile | 1) * 16 <= 24_576


def test_mistakes_are_named() -> None:
    rng = np.random.default_rng(0)
    weight, a, x = linear(rng, 64, 160), floats(rng, 1, 160), floats(rng, 1, 64)
    bench = BenchBackend()
    with pytest.raises(KernelError, match="wrong shape"):
        attention_out(a[:, :96], weight, x, backend=bench)
    with pytest.raises(KernelError, match="wrong shape"):
        attention_out(mx.zeros((3, 4, 64)), weight, x[:1], sinks=mx.zeros((3,)), backend=bench)
    with pytest.raises(KernelError, match="wrong dtype"):
        attention_out(a, weight, x.astype(mx.bfloat16), backend=bench)
    with pytest.raises(KernelError, match="1 to 8"):
        attention_out(mx.zeros((9, 160)), weight, mx.zeros((9, 64)), backend=bench)
    with pytest.raises(KernelError, match="multiple of 32"):
        attention_out(floats(rng, 1, 72), linear(rng, 64, 72), x, backend=bench)
    with pytest.raises(KernelError, match="counts rows"):
        head(a, floats(rng, 160), weight, PARAMS, valid=65, backend=bench)
    assert bench.launches == []


def test_stock_back_end_answers_with_twins() -> None:
    rng = np.random.default_rng(0)
    weight, a, x = linear(rng, 64, 160), floats(rng, 1, 160), floats(rng, 1, 64)
    assert mx.array_equal(attention_out(a, weight, x, backend=StockBackend()), attention_out_twin(a, weight, x))
