"""What the bench computes, against numpy: rounding, geometry of a launch, simd functions, matrices, traffic."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from tests.bench import Bfloat16, KernelSpec, RunResult, bench_metal_kernel, run_kernel
from tests.bench.executor import Schedule, Size3

ID = "uint i = thread_position_in_grid.x;\n"
SCHEDULES: tuple[Schedule, ...] = ("forward", "reverse", "random")
BITS = np.arange(65536, dtype=np.uint16)


def run(
    source: str,
    inputs: Sequence[object],
    shape: tuple[int, ...],
    dtype: mx.Dtype = mx.float32,
    *,
    grid: Size3 | None = None,
    group: Size3 = (32, 1, 1),
    schedule: Schedule = "forward",
    count_bytes: bool = False,
    header: str = "",
    seed: int = 0,
) -> RunResult:
    spec = KernelSpec("semantics", [f"x{k}" for k in range(len(inputs))], ["y"], source, header)
    return run_kernel(
        spec,
        inputs,
        grid=grid or (shape[0], 1, 1),
        threadgroup=group,
        output_shapes=[shape],
        output_dtypes=[dtype],
        schedule=schedule,
        seed=seed,
        count_bytes=count_bytes,
    )


def bfloat_bits(x: NDArray[np.float32]) -> NDArray[np.uint16]:
    """float32 to bfloat16, round to nearest even, by integer arithmetic in 64 bits."""
    bits = x.view(np.uint32).astype(np.uint64)
    rounded = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    quiet = ((bits >> 16) | 0x40).astype(np.uint16)
    return np.where(np.isnan(x), quiet, rounded)


def floats(rng: np.random.Generator, n: int) -> NDArray[np.float32]:
    """Floats of all magnitudes, ties of bfloat16 and half among them."""
    bits = rng.integers(0, 2**32, n, dtype=np.uint64).astype(np.uint32)
    bits[::4] = (bits[::4] & 0xFFFF0000) | 0x8000
    bits[1::8] &= 0xFFFFF000
    x = bits.view(np.float32)
    return np.where(np.isnan(x), np.float32(0), x)


def test_float_rounds_to_bfloat() -> None:
    x = floats(np.random.default_rng(0), 4096)
    got = run(ID + "y[i] = bfloat(x0[i]);", [x], (4096,), mx.bfloat16, group=(256, 1, 1)).outputs[0]
    assert np.array_equal(got, bfloat_bits(x))


def test_every_bfloat_becomes_its_float() -> None:
    got = run(ID + "y[i] = float(x0[i]);", [Bfloat16(BITS)], (65536,), group=(1024, 1, 1)).outputs[0]
    want = (BITS.astype(np.uint32) << 16).view(np.float32)
    assert np.array_equal(np.isnan(got), np.isnan(want))
    assert np.array_equal(got[~np.isnan(want)], want[~np.isnan(want)])


def test_float_rounds_to_half() -> None:
    x = floats(np.random.default_rng(1), 4096)
    with np.errstate(over="ignore"):
        want = x.astype(np.float16)
    got = run(ID + "y[i] = half(x0[i]);", [x], (4096,), mx.float16, group=(256, 1, 1)).outputs[0]
    assert np.array_equal(got, want)


@pytest.mark.parametrize("operation", ["+", "-", "*"])
def test_bfloat_arithmetic_rounds_every_operation(operation: str) -> None:
    rng = np.random.default_rng(2)
    a, b, c = (bfloat_bits(rng.standard_normal(1024).astype(np.float32)) for _ in range(3))

    def wide(bits: NDArray[np.uint16]) -> NDArray[np.float32]:
        return (bits.astype(np.uint32) << 16).view(np.float32)

    apply: dict[str, Callable[[NDArray[np.float32], NDArray[np.float32]], NDArray[np.float32]]] = {
        "+": np.add,
        "-": np.subtract,
        "*": np.multiply,
    }
    first = bfloat_bits(apply[operation](wide(a), wide(b)))
    want = bfloat_bits(apply[operation](wide(first), wide(c)))
    inputs = [Bfloat16(a), Bfloat16(b), Bfloat16(c)]
    got = run(ID + f"y[i] = x0[i] {operation} x1[i] {operation} x2[i];", inputs, (1024,), mx.bfloat16)
    assert np.array_equal(got.outputs[0], want)


def test_half_arithmetic_rounds_every_operation() -> None:
    rng = np.random.default_rng(3)
    a, b, c = (rng.standard_normal(1024).astype(np.float16) for _ in range(3))
    got = run(ID + "y[i] = x0[i] * x1[i] + x2[i];", [a, b, c], (1024,), mx.float16).outputs[0]
    assert np.array_equal(got, a * b + c)


def test_mlx_bfloat_goes_in_and_out() -> None:
    x = mx.arange(64).astype(mx.bfloat16)
    result = run(ID + "y[i] = x0[i] + x0[i];", [x], (64,), mx.bfloat16)
    assert np.array_equal(result.floats(0), 2 * np.arange(64, dtype=np.float32))


GEOMETRY = """
uint3 p = thread_position_in_grid, q = thread_position_in_threadgroup, g = threadgroup_position_in_grid;
uint at = (p.z * threads_per_grid.y + p.y) * threads_per_grid.x + p.x;
device int* o = y + at * 16;
o[0] = p.x; o[1] = p.y; o[2] = p.z; o[3] = q.x; o[4] = q.y; o[5] = q.z; o[6] = g.x; o[7] = g.y; o[8] = g.z;
o[9] = threads_per_threadgroup.x; o[10] = threads_per_threadgroup.y; o[11] = thread_index_in_threadgroup;
o[12] = thread_index_in_simdgroup; o[13] = simdgroup_index_in_threadgroup; o[14] = simdgroups_per_threadgroup;
o[15] = dispatch_threads_per_threadgroup.x;
"""


@settings(max_examples=25, deadline=None)
@given(
    st.tuples(st.integers(1, 40), st.integers(1, 5), st.integers(1, 3)),
    st.tuples(st.integers(1, 70), st.integers(1, 3), st.integers(1, 2)),
    st.sampled_from(SCHEDULES),
)
def test_geometry_of_any_grid(grid: Size3, group: Size3, schedule: Schedule) -> None:
    got = run(GEOMETRY, [], (*grid[::-1], 16), mx.int32, grid=grid, group=group, schedule=schedule).outputs[0]
    nominal = [min(g, n) for g, n in zip(group, grid, strict=True)]
    for z, y, x in np.ndindex(grid[::-1]):
        p = (x, y, z)
        at = [a // g for a, g in zip(p, nominal, strict=True)]
        size = [min(g, n - k * g) for g, n, k in zip(nominal, grid, at, strict=True)]
        inside = [a - k * g for a, k, g in zip(p, at, nominal, strict=True)]
        index = (inside[2] * size[1] + inside[1]) * size[0] + inside[0]
        count = size[0] * size[1] * size[2]
        want = [*p, *inside, *at, size[0], size[1], index, index % 32, index // 32, -(-count // 32), nominal[0]]
        assert got[z, y, x].tolist() == want


REDUCTIONS: dict[str, Callable[[NDArray[np.int32]], int]] = {
    "simd_sum": lambda v: int(v.sum()),
    "simd_product": lambda v: int(v.prod(dtype=np.int32)),
    "simd_min": lambda v: int(v.min()),
    "simd_max": lambda v: int(v.max()),
    "simd_and": lambda v: int(np.bitwise_and.reduce(v)),
    "simd_or": lambda v: int(np.bitwise_or.reduce(v)),
    "simd_xor": lambda v: int(np.bitwise_xor.reduce(v)),
}


@pytest.mark.parametrize("name", sorted(REDUCTIONS))
@pytest.mark.parametrize("lanes", [32, 19])
def test_reduction(name: str, lanes: int) -> None:
    x = np.random.default_rng(4).integers(-9, 10, 32 + lanes).astype(np.int32)
    got = run(ID + f"y[i] = {name}(x0[i]);", [x], (32 + lanes,), mx.int32, group=(64, 1, 1)).outputs[0]
    want = [REDUCTIONS[name](x[:32])] * 32 + [REDUCTIONS[name](x[32:])] * lanes
    assert got.tolist() == want


LANES = np.arange(32)
MOVES: dict[str, tuple[str, NDArray[np.int64]]] = {
    "shuffle": ("simd_shuffle(v, ushort((i * 7 + 3) % 32))", (LANES * 7 + 3) % 32),
    "xor": ("simd_shuffle_xor(v, 5)", LANES ^ 5),
    "up": ("simd_shuffle_up(v, 3)", np.where(LANES < 3, LANES, LANES - 3)),
    "down": ("simd_shuffle_down(v, 3)", np.where(LANES > 28, LANES, LANES + 3)),
    "rotate_up": ("simd_shuffle_rotate_up(v, 3)", (LANES - 3) % 32),
    "rotate_down": ("simd_shuffle_rotate_down(v, 3)", (LANES + 3) % 32),
    "broadcast": ("simd_broadcast(v, 13)", np.full(32, 13)),
    "broadcast_first": ("simd_broadcast_first(v)", np.zeros(32, np.int64)),
    "quad_xor": ("quad_shuffle_xor(v, 3)", LANES ^ 3),
    "quad_broadcast": ("quad_broadcast(v, 2)", LANES // 4 * 4 + 2),
    "quad_up": ("quad_shuffle_up(v, 1)", np.where(LANES % 4 < 1, LANES, LANES - 1)),
}


@pytest.mark.parametrize("name", sorted(MOVES))
@pytest.mark.parametrize("kind", ["int", "float", "ushort", "uint2", "float4"])
def test_move(name: str, kind: str) -> None:
    """In two simdgroups of a threadgroup, with every access looked at: none is misaligned."""
    expression, source = MOVES[name]
    last = {"uint2": ".y", "float4": ".w"}.get(kind, "")
    read = f"{kind} r = {expression}; y[i] = int(r{last});"
    x = np.arange(64, dtype=np.int32) * 100
    text = ID + f"{kind} v = {kind}(x0[i]); {read}"
    got = run(text, [x], (64,), mx.int32, group=(64, 1, 1), count_bytes=True).outputs[0]
    assert got.tolist() == np.concatenate([source * 100, source * 100 + 3200]).tolist()


def test_prefix_sums_and_votes() -> None:
    x = np.random.default_rng(5).integers(0, 9, 32).astype(np.int32)
    source = ID + (
        "y[i * 6] = simd_prefix_inclusive_sum(x0[i]); y[i * 6 + 1] = simd_prefix_exclusive_sum(x0[i]);\n"
        "y[i * 6 + 2] = int(ulong(simd_ballot(x0[i] > 4)));\n"
        "y[i * 6 + 3] = simd_any(x0[i] > 4) + 2 * simd_all(x0[i] >= 0) + 4 * simd_all(x0[i] > 4);\n"
        "y[i * 6 + 4] = simd_is_first(); y[i * 6 + 5] = quad_sum(x0[i]);"
    )
    got = run(source, [x], (32, 6), mx.int32).outputs[0]
    ballot = int(np.array([sum(1 << k for k in range(32) if x[k] > 4)], np.uint32).view(np.int32)[0])
    assert got[:, 0].tolist() == np.cumsum(x).tolist()
    assert got[:, 1].tolist() == (np.cumsum(x) - x).tolist()
    assert set(got[:, 2].tolist()) == {ballot}
    assert set(got[:, 3].tolist()) == {3}
    assert got[:, 4].tolist() == [1] + [0] * 31
    assert got[:, 5].tolist() == np.repeat(x.reshape(8, 4).sum(1), 4).tolist()


def test_reduction_after_early_return_counts_the_active_lanes() -> None:
    got = run(ID + "y[i] = -1; if (i >= 20) return; y[i] = simd_sum(1);", [], (32,), mx.int32).outputs[0]
    assert got.tolist() == [20] * 20 + [-1] * 12


MATRIX = """
simdgroup_matrix<T, 8, 8> a, b;
simdgroup_matrix<float, 8, 8> c = make_filled_simdgroup_matrix<float, 8, 8>(0.5f);
for (uint k = 0; k < 24; k += 8) {
  simdgroup_load(a, x0, 24, ulong2(k, 8));
  simdgroup_load(b, x1, 24, ulong2(k, 0), true);
  simdgroup_multiply_accumulate(c, a, b, c);
}
threadgroup float part[64];
simdgroup_store(c, part, 8);
simdgroup_barrier(mem_flags::mem_threadgroup);
uint lane = thread_index_in_simdgroup;
y[lane] = part[lane];
y[lane + 32] = part[lane + 32];
"""


@pytest.mark.parametrize("dtype", [mx.float32, mx.float16, mx.bfloat16])
def test_matrix_multiply(dtype: mx.Dtype) -> None:
    rng = np.random.default_rng(6)
    a = mx.array(rng.standard_normal((16, 24)).astype(np.float32)).astype(dtype)
    b = mx.array(rng.standard_normal((8, 24)).astype(np.float32)).astype(dtype)
    spec = KernelSpec("matrix", ["x0", "x1"], ["y"], MATRIX)
    result = run_kernel(
        spec,
        [a, b],
        template=[("T", dtype)],
        grid=(32, 1, 1),
        threadgroup=(32, 1, 1),
        output_shapes=[(8, 8)],
        output_dtypes=[mx.float32],
        checked=True,
    )
    wide_a, wide_b = np.array(a.astype(mx.float32), np.float64), np.array(b.astype(mx.float32), np.float64)
    np.testing.assert_allclose(result.outputs[0], wide_a[8:] @ wide_b.T + 0.5, atol=2e-5)


def test_matrix_elements_are_apples_lane_layout() -> None:
    source = """
    simdgroup_float8x8 m;
    simdgroup_load(m, x0, 8);
    uint lane = thread_index_in_simdgroup, quad = lane / 4;
    uint row = (quad & 4) + (lane / 2) % 4, col = (quad & 2) * 2 + (lane % 2) * 2;
    y[lane * 2] = m.thread_elements()[0] - float(row * 8 + col);
    y[lane * 2 + 1] = m.thread_elements()[1] - float(row * 8 + col + 1);
    """
    assert not run(source, [np.arange(64, dtype=np.float32)], (64,), grid=(32, 1, 1)).outputs[0].any()


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_tree_reduction_under_every_schedule(schedule: Schedule) -> None:
    source = (
        ID + "threadgroup float part[256]; uint t = thread_position_in_threadgroup.x; part[t] = x0[i];\n"
        "for (uint s = 128; s > 0; s /= 2) {\n  threadgroup_barrier(mem_flags::mem_threadgroup);\n"
        "  if (t < s) part[t] += part[t + s];\n}\nif (t == 0) y[threadgroup_position_in_grid.x] = part[0];"
    )
    x = np.arange(1024, dtype=np.float32)
    got = run(source, [x], (4,), grid=(1024, 1, 1), group=(256, 1, 1), schedule=schedule, seed=9).outputs[0]
    assert got.tolist() == x.reshape(4, 256).sum(1).tolist()


def test_schedules_differ() -> None:
    source = ID + "y[i] = atomic_fetch_add_explicit((device atomic_int*)y + 64, 1, memory_order_relaxed);"
    spec = KernelSpec("order", [], ["y"], source)
    seen = []
    for schedule in SCHEDULES:
        result = run_kernel(
            spec,
            [],
            grid=(64, 1, 1),
            threadgroup=(32, 1, 1),
            output_shapes=[(65,)],
            output_dtypes=[mx.int32],
            init_value=0,
            schedule=schedule,
            seed=3,
        )
        seen.append(tuple(result.outputs[0][:64].tolist()))
        assert sorted(seen[-1]) == list(range(64))
    assert seen[0] == tuple(range(64))
    assert seen[1] == tuple(reversed(range(64)))
    assert len(set(seen)) == 3


def test_traffic_is_counted_by_width() -> None:
    source = ID + (
        "float4 v = ((const device float4*)x0)[i];\ny[i] = v.x + v.y + v.z + v.w + float(x1[i / 8]) + x0[0];\n"
    )
    x, scales = np.ones((128,), np.float32), np.ones(8, np.uint8)
    result = run(source, [x, scales], (32,), count_bytes=True)
    assert result.bytes_read == {"x0": 32 * 16 + 32 * 4, "x1": 32, "y": 0}
    assert result.unique_read == {"x0": 512, "x1": 4, "y": 0}
    assert result.bytes_written == {"x0": 0, "x1": 0, "y": 128}
    assert result.unique_written["y"] == 128
    assert result.loads["x0"] == 64


def test_strided_input_without_copy() -> None:
    x = np.arange(24, dtype=np.float32).reshape(4, 6).T
    source = ID + "y[i] = x[(i / 4) * x_strides[0] + (i % 4) * x_strides[1]] + x_shape[0] * 1000 + x_ndim * 10000;"
    for contiguous, strided in ((True, x), (False, x)):
        spec = KernelSpec("strided", ["x"], ["y"], source, ensure_row_contiguous=contiguous)
        result = run_kernel(
            spec, [strided], grid=(24, 1, 1), threadgroup=(24, 1, 1), output_shapes=[(24,)], output_dtypes=[mx.float32]
        )
        assert result.outputs[0].tolist() == (x.reshape(-1) + 26000).tolist()


def test_drop_in_has_the_call_of_mlx_and_little_overhead() -> None:
    kernel = bench_metal_kernel("scale", ["x", "s"], ["y"], ID + "y[i] = T(float(x[i]) * s);")

    def call() -> mx.array:
        (y,) = kernel(
            inputs=[mx.arange(64).astype(mx.bfloat16), mx.array(3.0)],
            template=[("T", mx.bfloat16)],
            grid=(64, 1, 1),
            threadgroup=(32, 1, 1),
            output_shapes=[(8, 8)],
            output_dtypes=[mx.bfloat16],
            stream=mx.cpu,
            verbose=False,
        )
        return y

    y = call()
    assert (y.dtype, y.shape) == (mx.bfloat16, (8, 8))
    assert y.reshape(-1).tolist() == [3.0 * k for k in range(64)]
    times = []
    for _ in range(20):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    assert min(times) < 0.005
