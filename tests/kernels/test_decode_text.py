"""The text of every decode kernel at the released models' shapes, type-checked as Apple's compiler would."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import mlx.core as mx
import pytest

from mlx_gptoss.kernels.attention import attention_full, attention_merge, attention_sliding
from mlx_gptoss.kernels.attention_out import attention_out
from mlx_gptoss.kernels.backend import Size3, Template, check_launch
from mlx_gptoss.kernels.draw import draw
from mlx_gptoss.kernels.draws import Draws
from mlx_gptoss.kernels.head import head
from mlx_gptoss.kernels.moe import moe_down, moe_gate_up
from mlx_gptoss.kernels.qkv import qkv_rope
from mlx_gptoss.kernels.router import router
from mlx_gptoss.kernels.source import KernelSource
from mlx_gptoss.kernels.top_tokens import top_tokens
from mlx_gptoss.weights import Experts, Linear, LinearFormat
from tests.bench import KernelSpec, check_kernel

H, HEADS, KV, VOCAB = 2880, 64, 8, 201_088
PARAMS = mx.zeros((8,))
BF16 = mx.bfloat16


@dataclass(slots=True)
class Checker:
    """A back end that checks the text of every launch and answers with zeros that nobody evaluates."""

    family: str
    found: list[str] = field(default_factory=list)
    checked: list[str] = field(default_factory=list)
    name: str = "checker"

    def launch(
        self,
        kernel: KernelSource,
        inputs: Sequence[mx.array],
        template: Template,
        grid: Size3,
        threadgroup: Size3,
        output_shapes: Sequence[tuple[int, ...]],
        output_dtypes: Sequence[mx.Dtype],
    ) -> list[mx.array]:
        check_launch(kernel, inputs, template, grid, threadgroup, output_shapes, output_dtypes)
        spec = KernelSpec(
            kernel.name, tuple(kernel.input_names), tuple(kernel.output_names), kernel.source, kernel.header
        )
        for found in check_kernel(spec, list(inputs), template=tuple(template), output_dtypes=list(output_dtypes)):
            self.found.append(f"{kernel.name}: {found}")
        self.checked.append(kernel.name)
        return [mx.zeros(shape, dtype) for shape, dtype in zip(output_shapes, output_dtypes, strict=True)]


def linear(rows: int, columns: int, fmt: LinearFormat) -> Linear:
    bias = mx.zeros((rows,), BF16)
    if fmt == "bf16":
        return Linear(mx.zeros((rows, columns), BF16), bias)
    if fmt == "mxfp8":
        scales = mx.zeros((rows, columns // 32), mx.uint8)
        return Linear(mx.zeros((rows, columns // 4), mx.uint32), bias, scales, None, fmt, 32)
    groups = mx.zeros((rows, columns // 64), BF16)
    return Linear(mx.zeros((rows, columns * int(fmt[1:]) // 32), mx.uint32), bias, groups, groups, fmt, 64)


def dense(checker: Checker, fmt: LinearFormat, batch: int) -> None:
    x, norm = mx.zeros((batch, H)), mx.zeros((H,), BF16)
    qkv = linear((HEADS + 2 * KV) * 64, H, fmt)
    qkv_rope(x, norm, qkv, mx.zeros((batch, 64)), PARAMS, heads=HEADS, kv_heads=KV, dtype=BF16, backend=checker)
    attention_out(mx.zeros((batch, HEADS * 64)), linear(H, HEADS * 64, fmt), x, backend=checker)
    if batch == 1:
        parts, sinks = mx.zeros((HEADS, 8, 68)), mx.zeros((HEADS,), BF16)
        attention_out(parts, linear(H, HEADS * 64, fmt), x, sinks=sinks, backend=checker)
    head(x, norm, linear(VOCAB, H, fmt), PARAMS, valid=200_014, backend=checker)


def experts(checker: Checker, count: int, batch: int) -> None:
    x, norm = mx.zeros((batch, H)), mx.zeros((H,), BF16)
    t, logits = router(x, norm, linear(count, H, "bf16"), PARAMS, backend=checker)

    def packed(rows: int) -> Experts:
        return Experts(
            mx.zeros((count, rows), BF16),
            mx.zeros((count, rows, H // 8), mx.uint32),
            mx.zeros((count, rows, H // 32), mx.uint8),
        )

    h, picks, weights = moe_gate_up(t, logits, packed(2 * H), PARAMS, top_k=4, backend=checker)
    moe_down(h, picks, weights, packed(H), x, backend=checker)


def attention(checker: Checker, batch: int) -> None:
    q, k, sinks = mx.zeros((batch, HEADS, 64)), mx.zeros((batch, KV, 64), BF16), mx.zeros((HEADS,), BF16)
    main, tail, ring = (mx.zeros((KV, size, 64), BF16) for size in (131_072, 64, 128))
    lengths = mx.zeros((8,), mx.int32)
    for parts in (None, 16):
        attention_full(q, k, k, main, main, tail, tail, sinks, lengths, parts=parts, backend=checker)
    attention_sliding(q, k, k, ring, ring, sinks, lengths, backend=checker)
    attention_merge([mx.zeros((HEADS, 16, 68))] * batch, sinks, lengths, backend=checker)
    top_tokens(mx.zeros((batch, VOCAB)), 8, backend=checker)
    for top_k in (0, 40):
        draws = Draws((1.0,) * batch, (0.5,) * batch, (top_k,) * batch, (1.0,) * batch, (0.0,) * batch)
        draw(mx.zeros((batch, VOCAB)), draws, backend=checker)


CASES: dict[str, Callable[[Checker], None]] = {
    "dense_bf16": lambda checker: dense(checker, "bf16", 1),
    "dense_mxfp8": lambda checker: dense(checker, "mxfp8", 1),
    "dense_q8": lambda checker: dense(checker, "q8", 2),
    "dense_q6": lambda checker: dense(checker, "q6", 8),
    "dense_q4": lambda checker: dense(checker, "q4", 4),
    "experts_20b": lambda checker: experts(checker, 32, 1),
    "experts_120b": lambda checker: experts(checker, 128, 8),
    "attention": lambda checker: attention(checker, 1),
    "attention_batch": lambda checker: attention(checker, 8),
}


@pytest.mark.parametrize("family", ["m1", "m4-max"])
@pytest.mark.parametrize("case", CASES)
def test_text_is_clean(case: str, family: str) -> None:
    checker = Checker(family)
    CASES[case](checker)
    assert checker.found == []
    assert checker.checked
