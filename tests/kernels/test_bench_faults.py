"""Every kind of bug that the bench promises to catch, planted and seen caught where it says it would be."""

from __future__ import annotations

from collections.abc import Sequence

import mlx.core as mx
import numpy as np
import pytest

from tests.bench import KernelSpec, RunResult, ShaderCompileError, ShaderFaultError, run_kernel
from tests.bench.executor import THREADGROUP_LIMIT, Schedule

X = np.arange(64, dtype=np.float32)
ID = "uint i = thread_position_in_grid.x;\n"
SCHEDULES: tuple[Schedule, ...] = ("forward", "reverse", "random")


def run(
    source: str,
    inputs: Sequence[object] = (X,),
    *,
    header: str = "",
    grid: int = 64,
    group: int = 64,
    size: int = 64,
    dtype: mx.Dtype = mx.float32,
    schedule: Schedule = "forward",
    checked: bool = False,
    count_bytes: bool = False,
    start: bool = False,
    timeout_s: float = 20.0,
    init_value: float | None = None,
    threadgroup_limit: int = THREADGROUP_LIMIT,
) -> RunResult:
    spec = KernelSpec("planted", [f"x{k}" for k in range(len(inputs))], ["y"], source, header)
    return run_kernel(
        spec,
        inputs,
        grid=(grid, 1, 1),
        threadgroup=(group, 1, 1),
        output_shapes=[(size,)],
        output_dtypes=[dtype],
        schedule=schedule,
        checked=checked,
        count_bytes=count_bytes,
        guard="start" if start else "end",
        timeout_s=timeout_s,
        init_value=init_value,
        threadgroup_limit=threadgroup_limit,
    )


def fault(source: str, kind: str, **options: object) -> ShaderFaultError:
    with pytest.raises(ShaderFaultError) as caught:
        run(source, **options)  # type: ignore[arg-type]  # the options of `run`, by name
    assert caught.value.kind == kind, str(caught.value)
    return caught.value


def test_read_past_the_end_names_buffer_offset_and_lane() -> None:
    error = fault(ID + "y[i] = x0[i + 40];", "fault")
    assert (error.buffer, error.offset) == ("x0", 256)
    assert (error.threadgroup, error.simdgroup, error.lane) == ((0, 0, 0), 0, 24)
    assert error.line is not None
    assert "kernel custom_kernel_planted" in str(error)


def test_write_past_the_end() -> None:
    error = fault(ID + "y[i + 1] = 0;", "fault")
    assert (error.buffer, error.offset, error.simdgroup, error.lane) == ("y", 256, 1, 31)


def test_read_before_the_start() -> None:
    error = fault(ID + "y[i] = x0[int(i) - 1];", "fault", start=True)
    assert (error.buffer, error.offset) == ("x0", -4)


def test_write_into_the_slack_of_a_buffer() -> None:
    # 3 floats leave 4 bytes up to the guard page.
    error = fault(ID + "if (i < 4) y[i] = 1;", "out_of_bounds", size=3)
    assert (error.buffer, error.offset) == ("y", 12)


def test_read_in_the_slack_of_a_buffer_when_checked() -> None:
    error = fault(ID + "y[i] = x0[min(i, 3u)];", "out_of_bounds", inputs=(np.ones(3, np.float32),), checked=True)
    assert (error.buffer, error.offset, error.lane) == ("x0", 12, 3)


def test_write_to_an_input_when_checked() -> None:
    error = fault(ID + "y[i] = 1; ((device float*)(ulong)x0)[i] = 2;", "read_only", checked=True)
    assert error.buffer == "x0"


def test_null_pointer() -> None:
    error = fault(ID + "const device float* p = nullptr; y[i] = p[i];", "fault")
    assert error.buffer is None


def test_past_a_threadgroup_array() -> None:
    error = fault(ID + "threadgroup float part[32]; part[i] = 1; y[i] = part[0];", "fault")
    assert "threadgroup variable" in str(error)
    assert (error.simdgroup, error.lane) == (1, 0)


def test_one_threadgroup_array_into_the_next_when_checked() -> None:
    source = ID + "threadgroup float a[7]; threadgroup float b[9]; if (i < 8) a[i] = 1; b[i % 9] = 1; y[i] = 1;"
    error = fault(source, "out_of_bounds", checked=True)
    assert error.lane == 7


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_diverging_simd_sum(schedule: Schedule) -> None:
    source = ID + "if (i < 16) { y[i] = simd_sum(1.0f); } else { y[i] = simd_max(1.0f); }"
    error = fault(source, "divergence", schedule=schedule)
    assert error.simdgroup == 0
    assert "lanes 0-15 at simd_sum" in str(error)
    assert "lanes 16-31 at simd_max" in str(error)


def test_the_same_function_on_two_lines_diverges() -> None:
    error = fault(ID + "if (i % 2) y[i] = simd_sum(1.0f);\nelse y[i] = simd_sum(2.0f);", "divergence")
    assert "line" in str(error)


def test_barrier_in_one_branch() -> None:
    source = ID + "if (i < 32) threadgroup_barrier(mem_flags::mem_threadgroup);\ny[i] = 1;"
    error = fault(source, "divergence")
    assert "simdgroup 1: lanes 0-31 finished" in str(error)
    assert "threadgroup_barrier" in str(error)


def test_simdgroups_at_different_barriers() -> None:
    source = (
        ID + "if (simdgroup_index_in_threadgroup == 0) { threadgroup_barrier(mem_flags::mem_none); }\n"
        "else { threadgroup_barrier(mem_flags::mem_none); }\ny[i] = 1;"
    )
    fault(source, "divergence")


def test_early_return_before_a_barrier() -> None:
    source = ID + "if (i == 5) return;\nthreadgroup_barrier(mem_flags::mem_none); y[i] = 1;"
    error = fault(source, "divergence")
    assert "lane 5 finished" in str(error)


def test_different_trip_counts_around_a_barrier() -> None:
    source = ID + "for (uint k = 0; k <= i / 32; k++) threadgroup_barrier(mem_flags::mem_none);\ny[i] = 1;"
    fault(source, "divergence")


def test_shuffle_from_a_lane_that_returned() -> None:
    error = fault(ID + "y[i] = 0; if (i > 3) return; y[i] = simd_shuffle(x0[i], 9);", "inactive_lane")
    assert "lane 9" in str(error)


def test_shuffle_from_beyond_the_simdgroup() -> None:
    fault(ID + "y[i] = simd_shuffle(x0[i], ushort(40));", "inactive_lane")


def test_matrix_multiply_without_all_lanes() -> None:
    source = ID + "y[i] = 0; simdgroup_float8x8 a, b, c; if (i > 30) return; simdgroup_multiply(c, a, b);"
    fault(source, "inactive_lane", grid=32, group=32, size=32)


def test_matrix_load_without_all_lanes_when_checked() -> None:
    source = (
        ID + "y[i] = 0; simdgroup_float8x8 a; if (i % 2) { simdgroup_load(a, x0, 8); }\n"
        "y[i] = simd_sum(a.thread_elements()[0]);"
    )
    fault(source, "divergence", grid=32, group=32, size=32, checked=True)


def test_threadgroup_memory_over_the_limit() -> None:
    source = ID + "threadgroup float a[4096]; threadgroup float b[4097]; a[i] = b[i] = 1; y[i] = 1;"
    error = fault(source, "threadgroup_memory")
    assert "32768" in str(error)


def test_threadgroup_memory_at_the_limit() -> None:
    source = ID + "threadgroup float a[4096]; threadgroup float b[4096]; a[i] = b[i] = x0[i]; y[i] = a[i] + b[i];"
    result = run(source)
    assert result.threadgroup_bytes == 32768
    assert np.array_equal(result.outputs[0], 2 * X)


def test_threadgroup_memory_of_a_larger_gpu() -> None:
    source = ID + "threadgroup float a[57344]; a[57343 - i] = x0[i]; y[i] = a[57343 - i];"
    assert run(source, threadgroup_limit=229376).threadgroup_bytes == 229376
    fault(source, "threadgroup_memory", threadgroup_limit=229360)
    fault(source.replace("a[57343 - i] = x0", "a[57344 + i] = x0"), "fault", threadgroup_limit=229376)


def test_missing_barrier_poisons_the_sum() -> None:
    source = ID + "threadgroup float part[64]; part[i] = x0[i]; y[i] = part[63 - i];"
    assert np.isnan(run(source).outputs[0]).any()


def test_missing_barrier_is_a_race_or_uninitialised_when_checked() -> None:
    source = ID + "threadgroup float part[64]; part[i] = x0[i]; y[i] = part[63 - i];"
    fault(source, "uninitialised", checked=True)
    error = fault(
        ID + "threadgroup float part[64]; part[i] = part[i / 2 * 0 + i] = x0[i]; y[i] = i > 31 ? part[63 - i] : 0;",
        "race",
        checked=True,
    )
    assert "lane 32 reads what was written by lane 31" in str(error)


def test_missing_second_barrier_is_a_race_when_checked() -> None:
    source = (
        ID + "threadgroup float part[64]; part[i] = x0[i]; threadgroup_barrier(mem_flags::mem_threadgroup);\n"
        "y[i] = part[63 - i]; part[i] = 0;"
    )
    assert np.array_equal(run(source.replace("part[i] = 0;", "")).outputs[0], X[::-1])
    error = fault(source, "race", checked=True)
    assert "overwrites what was read" in str(error) or "reads what was written" in str(error)


def test_barrier_without_the_memory_flag_orders_nothing() -> None:
    source = (
        ID
        + "threadgroup float part[64]; part[i] = x0[i]; threadgroup_barrier(mem_flags::mem_none); y[i] = part[63 - i];"
    )
    fault(source, "race", checked=True)


def test_simdgroup_barrier_does_not_order_simdgroups() -> None:
    source = (
        ID + "threadgroup float part[64]; part[i] = x0[i]; simdgroup_barrier(mem_flags::mem_threadgroup);\n"
        "y[i] = part[63 - i];"
    )
    fault(source, "uninitialised", checked=True)


def test_simdgroup_barrier_orders_its_simdgroup() -> None:
    source = (
        ID + "threadgroup float part[64]; part[i] = x0[i]; simdgroup_barrier(mem_flags::mem_threadgroup);\n"
        "y[i] = part[i ^ 1];"
    )
    assert run(source, checked=True).outputs[0][0] == 1.0


def test_two_threadgroups_write_the_same_element_when_checked() -> None:
    error = fault("y[thread_position_in_threadgroup.x] = 1;", "race", group=32, size=32, checked=True)
    assert "another threadgroup" in str(error)
    assert error.buffer == "y"


def test_uninitialised_output_read_when_checked() -> None:
    fault(ID + "y[i] += 1;", "uninitialised", checked=True)
    assert run(ID + "y[i] += 1;", checked=True, init_value=2.0).outputs[0][0] == 3.0


@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16, mx.float16, mx.int32, mx.uint32, mx.uint16])
def test_unwritten_output(dtype: mx.Dtype) -> None:
    error = fault(
        ID + "if (i != 7) y[i] = 1;" if dtype not in (mx.bfloat16,) else ID + "if (i != 7) y[i] = bfloat(1.0f);",
        "unwritten",
        dtype=dtype,
    )
    assert "element 7" in str(error)


def test_unwritten_bytes_are_exact_when_checked() -> None:
    error = fault(ID + "if (i != 9) y[i] = 0xa5;", "unwritten", dtype=mx.uint8, checked=True)
    assert error.offset == 9


def test_misaligned_vector_load() -> None:
    fault(ID + "y[i] = ((const device float2*)(x0 + 1))[i / 4].x;", "misaligned", checked=True)


def test_integer_division_by_zero() -> None:
    error = fault(ID + "y[i] = 5 / int(i);", "arithmetic")
    assert error.lane == 0


def test_endless_loop() -> None:
    source = ID + "while (simd_any(x0[i] >= 0.0f)) { y[i] = x0[i]; }"
    fault(source, "timeout", timeout_s=0.3)
    source = ID + "volatile device float* v = y; while (x0[0] == 0.0f) { v[i] = 1; }"
    fault(source, "timeout", timeout_s=0.3)


def test_private_memory_exhausted() -> None:
    source = ID + "float a[60000]; for (int k = 0; k < 60000; k++) a[k] = x0[(k + i) % 64]; y[i] = a[int(x0[i])];"
    fault(source, "stack")


def test_threadgroup_too_large() -> None:
    fault(ID + "y[i] = 1;", "launch", grid=2048, group=1025, size=2048)


def test_compile_error_shows_the_line() -> None:
    with pytest.raises(ShaderCompileError) as caught:
        run(ID + "y[i] = swish(x0[i]);")
    assert caught.value.diagnostics[0].source == "y[i] = swish(x0[i]);"
    assert "swish" in str(caught.value)


def test_the_process_survives_a_hundred_faults() -> None:
    for _ in range(100):
        fault(ID + "y[i] = x0[i + 40];", "fault")
    assert np.array_equal(run(ID + "y[i] = x0[i];").outputs[0], X)
