"""The bench compiles exactly what MLX would: the generated text equals the one `mx.export_function` reports."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import mlx.core as mx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.bench import KernelSpec
from tests.bench.attributes import BUILTINS
from tests.bench.dtypes import element_type
from tests.bench.spec import Template, generate

DTYPES = (
    mx.bool_,
    mx.uint8,
    mx.int8,
    mx.uint16,
    mx.int16,
    mx.uint32,
    mx.int32,
    mx.uint64,
    mx.int64,
    mx.float16,
    mx.bfloat16,
    mx.float32,
)


def exported(
    spec: KernelSpec, inputs: Sequence[mx.array], outputs: Sequence[mx.Dtype], template: Template
) -> tuple[str, str]:
    """(function name, text) as MLX generates them."""
    kernel: Any = mx.fast.metal_kernel(
        name=spec.name,
        input_names=list(spec.input_names),
        output_names=list(spec.output_names),
        source=spec.source,
        header=spec.header,
        ensure_row_contiguous=spec.ensure_row_contiguous,
        atomic_outputs=spec.atomic_outputs,
    )
    seen: list[Any] = []

    def call(*arrays: mx.array) -> list[mx.array]:
        result: list[mx.array] = kernel(
            inputs=list(arrays),
            template=list(template),
            grid=(32, 1, 1),
            threadgroup=(32, 1, 1),
            output_shapes=[(32,)] * len(outputs),
            output_dtypes=list(outputs),
        )
        return result

    def watch(event: dict[str, Any]) -> None:
        if event.get("type") == "primitive" and event["name"] == "CustomKernel":
            seen.extend(event["arguments"])

    mx.export_function(watch, call, *inputs)
    return seen[0], seen[1]


def same(spec: KernelSpec, inputs: Sequence[mx.array], outputs: Sequence[mx.Dtype], template: Template = ()) -> None:
    ours = generate(
        spec, [(tuple(a.shape), element_type(a.dtype)) for a in inputs], [element_type(d) for d in outputs], template
    )
    name, text = exported(spec, inputs, outputs, template)
    assert ours.function == name
    assert ours.text == text


def test_every_dtype() -> None:
    names = [f"x{i}" for i in range(len(DTYPES))]
    spec = KernelSpec("dtypes", names, ["a", "b"], "a[0] = 1;")
    same(spec, [mx.zeros((16,), d) for d in DTYPES], [mx.bfloat16, mx.bool_])


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_dtype_as_template(dtype: mx.Dtype) -> None:
    same(KernelSpec("t", ["x"], ["y"], "y[0] = T(x[0]);"), [mx.zeros((16,))], [dtype], [("T", dtype)])


@pytest.mark.parametrize("name", sorted(BUILTINS))
def test_attribute_found_by_substring(name: str) -> None:
    same(KernelSpec("a", ["x"], ["y"], f"y[0] = 1; // my_{name}s"), [mx.zeros((16,))], [mx.float32])


def test_header_alone_declares_nothing() -> None:
    spec = KernelSpec("h", ["x"], ["y"], "y[0] = 1;", "// thread_position_in_grid x_shape\n")
    same(spec, [mx.zeros((16,))], [mx.float32])


def test_atomic_outputs() -> None:
    spec = KernelSpec("atomic", ["x"], ["y"], "y;", atomic_outputs=True)
    same(spec, [mx.zeros((16,))], [mx.uint32], [("N", 3)])


SHAPES = st.sampled_from([(), (1,), (7,), (8,), (0,), (2, 3), (2, 4), (1, 1, 7), (3, 5)])
WORDS = st.sampled_from(["x0_shape", "x1_strides", "x0_ndim", "x1_ndim", *BUILTINS])
VALUES = st.one_of(st.booleans(), st.integers(0, 4096), st.sampled_from(DTYPES))


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.tuples(SHAPES, st.sampled_from(DTYPES)), min_size=2, max_size=2),
    st.lists(VALUES, max_size=3),
    st.lists(WORDS, max_size=4),
    st.booleans(),
)
def test_any_signature(
    arrays: list[tuple[tuple[int, ...], mx.Dtype]], values: list[int | bool | mx.Dtype], words: list[str], header: bool
) -> None:
    spec = KernelSpec("any", ["x0", "x1"], ["y"], "y[0] = 1; // " + " ".join(words), "struct Q {};" if header else "")
    same(spec, [mx.zeros(s, d) for s, d in arrays], [mx.float32], [(f"P{i}", v) for i, v in enumerate(values)])
