"""The shader loader: what it derives, and that MLX would compile the same."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import pytest

from mlx_gptoss.errors import KernelError
from mlx_gptoss.kernels.backend import MetalBackend, StockBackend, check_launch
from mlx_gptoss.kernels.source import kernel_names, load_kernel, parse_kernel, text_names

ENTRY = """
// A comment with a { brace.
#include "helper.h"
#include <metal_simdgroup_matrix>
template <typename T, int N, bool FLAG>
[[kernel]] void scale(
    const device T* x [[buffer(0)]],
    device T* y [[buffer(1)]],
    uint3 thread_position_in_grid [[thread_position_in_grid]]) {
  if (FLAG) {
    y[thread_position_in_grid.x] = twice(x[thread_position_in_grid.x]) * T(N);
  }
}
"""
HELPER = '#pragma once\n#include "helper.h.inner"\ntemplate <typename T> METAL_FUNC T twice(T x) { return x + x; }\n'
FILES = {"scale.metal": ENTRY, "helper.h": HELPER, "helper.h.inner": "/* nothing */\n"}


def test_parts() -> None:
    kernel = parse_kernel("scale", FILES)
    assert kernel.input_names == ["x"]
    assert kernel.output_names == ["y"]
    assert [(p.kind, p.name) for p in kernel.template] == [("typename", "T"), ("int", "N"), ("bool", "FLAG")]
    assert kernel.builtins == ("thread_position_in_grid",)
    assert kernel.system_includes == ("metal_simdgroup_matrix",)
    assert "twice" in kernel.header
    assert "#include" not in kernel.header
    assert kernel.source.strip().startswith("if (FLAG)")
    assert kernel.source.strip().endswith("}")


def test_include_twice_comes_once() -> None:
    files = FILES | {"scale.metal": '#include "helper.h"\n' + ENTRY}
    assert parse_kernel("scale", files).header.count("twice") == 1


def changed(old: str, new: str) -> dict[str, str]:
    assert old in ENTRY
    return FILES | {"scale.metal": ENTRY.replace(old, new)}


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"scale.metal": ENTRY}, "missing"),
        ({}, "missing"),
        (FILES | {"helper.h": '#include "helper.h"\n'}, "circle"),
        (changed("[[kernel]] void scale", "[[kernel]] void other"), "named as its file"),
        (changed("[[kernel]] ", ""), "one [[kernel]]"),
        (changed("device T* y [[buffer(1)]]", "device T* y [[buffer(2)]]"), "numbered in order"),
        (changed("device T* y [[buffer(1)]]", "const device T* y [[buffer(1)]]"), "has an output"),
        (changed("const device T* x [[buffer(0)]]", "device T* x [[buffer(0)]]").copy() | {}, "differ"),
        (changed("const device T* x [[buffer(0)]]", "T x [[buffer(0)]]"), "not a buffer"),
        (changed("[[thread_position_in_grid]]", "[[thread_index_in_simdgroup]]"), "named and typed"),
        (changed("uint3 thread_position_in_grid [[", "uint thread_position_in_grid [["), "named and typed"),
        (changed("  if (FLAG) {", "  uint lane = thread_index_in_simdgroup;\n  if (FLAG) {"), "differ"),
        (changed("  if (FLAG) {", "  int x_shape = 0;\n  if (FLAG) {"), "MLX would add"),
        (changed("typename T, int N", "typename T, float N"), "typename, int or bool"),
        (FILES | {"scale.metal": ENTRY + "void more();\n"}, "may follow"),
        (FILES | {"scale.metal": ENTRY.rstrip()[:-1]}, "no '}'"),
    ],
)
def test_malformed(files: dict[str, str], message: str) -> None:
    if message == "differ" and "    device T* x" in files["scale.metal"]:
        files["scale.metal"] = files["scale.metal"].replace("thread_position_in_grid.x", "0", 1)
        files["scale.metal"] = files["scale.metal"].replace("thread_position_in_grid.x", "0", 1)
    with pytest.raises(KernelError) as caught:
        parse_kernel("scale", files)
    assert message in str(caught.value)


@pytest.mark.parametrize("name", text_names())
def test_every_text_loads_and_is_small(name: str) -> None:
    kernel = load_kernel(name)
    assert kernel.name == name.partition(".")[0]
    assert kernel.name in kernel_names()
    # MLX puts a Metal text together anew for every call outside a compiled step: about 1 us a kilobyte. Those in halves
    # are for NVIDIA's GPUs, where a call takes the compiled kernel.
    assert len(kernel.header) + len(kernel.source) < (25_000 if "halves" in name else 20_000)
    assert "//" not in kernel.header + kernel.source


def test_generated_text_is_what_mlx_compiles() -> None:
    """MLX, traced on this machine, writes exactly the signature that the entry file declares."""
    kernel = parse_kernel("scale", FILES)
    built: Any = MetalBackend("m4")._build(kernel)
    seen: list[str] = []

    def call(x: mx.array) -> mx.array:
        out: mx.array = built(
            inputs=[x],
            template=[("T", mx.float32), ("N", 3), ("FLAG", True)],
            grid=(16, 1, 1),
            threadgroup=(16, 1, 1),
            output_shapes=[(16,)],
            output_dtypes=[mx.float32],
        )[0]
        return out

    def listen(record: dict[str, Any]) -> None:
        if record.get("type") == "primitive":
            seen.append(str(record.get("arguments", "")))

    mx.export_function(listen, call, mx.zeros((16,)))
    text = "".join(seen).replace("\\n", "\n")
    assert "const device float* x [[buffer(0)]]" in text
    assert "device float* y [[buffer(1)]]" in text
    assert "uint3 thread_position_in_grid [[thread_position_in_grid]]" in text
    assert kernel.source.strip() in text


def launch_arguments() -> dict[str, Any]:
    return {
        "inputs": [mx.zeros((16,))],
        "template": [("T", mx.float32), ("N", 3), ("FLAG", True)],
        "grid": (32, 1, 1),
        "threadgroup": (16, 1, 1),
        "output_shapes": [(16,)],
        "output_dtypes": [mx.float32],
    }


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"inputs": []}, "number of inputs"),
        ({"inputs": [mx.zeros((7,))]}, "fewer than 8"),
        ({"output_shapes": []}, "number of outputs"),
        ({"template": [("N", 3)]}, "template"),
        ({"grid": (33, 1, 1)}, "whole threadgroups"),
        ({"grid": (0, 1, 1)}, "whole threadgroups"),
    ],
)
def test_launch_checks(change: dict[str, Any], message: str) -> None:
    kernel = parse_kernel("scale", FILES)
    check_launch(kernel, **launch_arguments())
    with pytest.raises(KernelError) as caught:
        check_launch(kernel, **(launch_arguments() | change))
    assert message in str(caught.value)


def test_stock_launches_nothing() -> None:
    with pytest.raises(KernelError):
        StockBackend().launch(parse_kernel("scale", FILES), **launch_arguments())
