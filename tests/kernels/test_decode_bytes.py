"""Every decode kernel moves at most 1.05 times the bytes that it must, and asks for each weight once.

The bench counts distinct bytes of device memory. The minimum is summed here from what a call is about: the weights in
use, what comes in, what goes out. Tuning is a Mac's, or an H100's where that has other texts; the hidden size is the
released one, other sizes are cut.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import mlx.core as mx
import numpy as np
import pytest

from mlx_gptoss.kernels import attention, attention_out, draw, head, moe, qkv, router, top_tokens
from mlx_gptoss.kernels.draw_twin import draw_parts_twin
from mlx_gptoss.kernels.draws import Draws
from mlx_gptoss.kernels.halves import pack_activation
from mlx_gptoss.kernels.source import kernel_names
from mlx_gptoss.weights import Experts, Linear, LinearFormat
from tests.bench.backend import BenchBackend
from tests.kernels.decode_data import PARAMS, experts, floats, linear

H = 2880
FORMATS: tuple[LinearFormat, ...] = ("bf16", "mxfp8", "q8", "q6", "q4")
Counted = tuple[BenchBackend, int]
"""The bench after a call, and the least bytes of it."""


def bench(family: str = "m4-max") -> BenchBackend:
    return BenchBackend(family=family, count_bytes=True)


def nbytes(*arrays: mx.array | None) -> int:
    return sum(array.nbytes for array in arrays if array is not None)


def of_linear(weight: Linear, rows: int | None = None) -> int:
    """Bytes of the first rows of a matrix, with bias."""
    whole = nbytes(weight.weight, weight.scales, weight.biases, weight.bias)
    return whole if rows is None else whole * rows // weight.rows


def of_experts(weights: Experts, used: int) -> int:
    return nbytes(weights.blocks, weights.scales, weights.weight, weights.bias) * used // weights.num_experts


def qkv_rope(fmt: LinearFormat, batch: int, family: str = "m4-max") -> Counted:
    rng, backend = np.random.default_rng(0), bench(family)
    heads = 8 if family == "h100" else 4  # whole threadgroups
    weight, norm = linear(rng, (heads + 2) * 64, H, fmt, 64), floats(rng, H, dtype=mx.bfloat16)
    x, rope = floats(rng, batch, H), floats(rng, batch, 64)
    out = qkv.qkv_rope(x, norm, weight, rope, PARAMS, heads=heads, kv_heads=1, dtype=mx.bfloat16, backend=backend)
    return backend, of_linear(weight) + nbytes(norm, x, rope, *out)


def out_projection(fmt: LinearFormat, batch: int, family: str = "m4-max") -> Counted:
    rng, backend = np.random.default_rng(1), bench(family)
    rows = 264 if family == "h100" else 256
    weight, a, x = linear(rng, rows, 4096, fmt, 64), floats(rng, batch, 4096), floats(rng, batch, rows)
    return backend, of_linear(weight) + nbytes(a, x, attention_out.attention_out(a, weight, x, backend=backend))


def out_of_parts(parts: int) -> Counted:
    rng, backend = np.random.default_rng(12), bench()
    weight, a, x = linear(rng, 256, 4096), mx.abs(floats(rng, 64, parts, 68)) + 0.5, floats(rng, 1, 256)
    sinks = floats(rng, 64, dtype=mx.bfloat16)
    y = attention_out.attention_out(a, weight, x, sinks=sinks, backend=backend)
    return backend, of_linear(weight) + nbytes(a, sinks, x, y)


def router_logits(count: int, batch: int, packed: bool = False) -> Counted:
    rng, backend = np.random.default_rng(2), bench()
    weight, norm, x = linear(rng, count, H), floats(rng, H, dtype=mx.bfloat16), floats(rng, batch, H)
    out = router.router(x, norm, weight, PARAMS, packed=packed, backend=backend)
    return backend, of_linear(weight) + nbytes(norm, x, *out)


def vocabulary(fmt: LinearFormat, batch: int) -> Counted:
    rng, backend = np.random.default_rng(3), bench()
    weight, norm, x = linear(rng, 400, H, fmt, 64), floats(rng, H, dtype=mx.bfloat16), floats(rng, batch, H)
    weight = Linear(weight.weight, None, weight.scales, weight.biases, weight.format, weight.group_size)
    logits = head.head(x, norm, weight, PARAMS, valid=384, backend=backend)
    return backend, of_linear(weight, 384) + nbytes(norm, x, logits)


def best_tokens(count: int) -> Counted:
    rng, backend = np.random.default_rng(4), bench()
    logits = floats(rng, 1, 201_088)
    return backend, nbytes(logits, *top_tokens.top_tokens(logits, count, backend=backend))


def draw_parts() -> Counted:
    rng, backend = np.random.default_rng(10), bench()
    logits, settings = floats(rng, 1, 201_088), mx.ones((1, 8))
    return backend, nbytes(logits, draw.draw_parts(logits, settings, backend=backend)) + 4


def draw_token(top_p: float) -> Counted:
    """Parts, one chunk or the 64 candidates, and what comes in and goes out."""
    rng, backend = np.random.default_rng(11), bench()
    logits, draws = floats(rng, 1, 201_088, std=9.0), Draws((1.0,), (0.5,), (0,), (top_p,), (0.0,))
    settings = draws.settings(201_088)
    parts = draw_parts_twin(logits, settings, 2048)
    best = top_tokens.top_tokens_twin(logits, 64) if draws.truncated else None
    draw.draw_token(logits, parts, logits, parts, settings, best, backend=backend)
    # Two of four numbers of each part, for the draw and again for the log-probability.
    return backend, parts.nbytes + (20 + 512 if best else 8 + 8192) + 4 + 16


def gate_up(count: int) -> Counted:
    rng, backend = np.random.default_rng(5), bench()
    weights, t, logits = experts(rng, count, 2 * 96, H), floats(rng, 1, 8, H // 32, 4), floats(rng, 1, count)
    out = moe.moe_gate_up(t, logits, weights, PARAMS, top_k=4, backend=backend)
    return backend, of_experts(weights, 4) + nbytes(t, logits, *out)


def down(count: int) -> Counted:
    rng, backend = np.random.default_rng(6), bench()
    weights, h, x = experts(rng, count, 128, H), floats(rng, 1, 4, 8, H // 32, 4), floats(rng, 1, 128)
    picks, shares = mx.array([3, 1, 7, 0, 0, 0, 0, 0], dtype=mx.int32), mx.full((8,), 0.25)
    y = moe.moe_down(h, picks, shares, weights, x, backend=backend)
    return backend, of_experts(weights, 4) + nbytes(h, x, y) + 32


def gate_up_in_halves(count: int, batch: int = 1) -> Counted:
    rng, backend = np.random.default_rng(5), bench("h100")
    weights, t = experts(rng, count, 2 * 96, H), pack_activation(floats(rng, batch, H))
    logits = floats(rng, batch, count)
    out = moe.moe_gate_up(t, logits, weights, PARAMS, top_k=4, backend=backend)
    used = len(set(np.array(out[1][: 4 * batch]).tolist()))
    return backend, of_experts(weights, used) + nbytes(t, logits, *out)


def down_in_halves(count: int, batch: int = 1) -> Counted:
    rng, backend = np.random.default_rng(6), bench("h100")
    weights, h, x = experts(rng, count, 132, H), pack_activation(floats(rng, 4 * batch, H)), floats(rng, batch, 132)
    chosen = np.concatenate([rng.permutation(count)[:4] for _ in range(batch)])
    picks = mx.array(np.resize(chosen, max(8, 4 * batch)).astype(np.int32))
    y = moe.moe_down(h, picks, mx.full(picks.shape, 0.25), weights, x, backend=backend)
    return backend, of_experts(weights, len(set(chosen.tolist()))) + nbytes(h, x, y) + 32 * batch


def full(n_main: int, n_tail: int, parts: int | None) -> Counted:
    rng, backend = np.random.default_rng(7), bench()
    q, sinks = floats(rng, 1, 16, 64), floats(rng, 16, dtype=mx.bfloat16)
    k, v = (floats(rng, 1, 2, 64, dtype=mx.bfloat16) for _ in range(2))
    main_k, main_v = (floats(rng, 2, n_main + 60, 64, dtype=mx.bfloat16) for _ in range(2))
    tail_k, tail_v = (floats(rng, 2, 64, 64, dtype=mx.bfloat16) for _ in range(2))
    lengths = attention.cache_lengths(offset=n_main + n_tail, n_main=n_main, n_tail=n_tail, capacity=n_main + 60, row=0)
    out, _, _ = attention.attention_full(
        q, k, v, main_k, main_v, tail_k, tail_v, sinks, lengths, parts=parts, backend=backend
    )
    row = 2 * 64 * 2
    # Valid keys and values once, the valid tail once more as it is rewritten, and the new position.
    return backend, nbytes(q, k, v, sinks, lengths, out) + 2 * row * (n_main + n_tail) + 2 * row * (n_tail + 1)


def sliding() -> Counted:
    rng, backend = np.random.default_rng(8), bench()
    q, sinks = floats(rng, 1, 16, 64), floats(rng, 16, dtype=mx.bfloat16)
    k, v, ring_k, ring_v = (floats(rng, n, 2, 64, dtype=mx.bfloat16) for n in (1, 1, 128, 128))
    ring_k, ring_v = (mx.contiguous(mx.swapaxes(ring, 0, 1)) for ring in (ring_k, ring_v))
    lengths = attention.cache_lengths(offset=1000, n_main=0, n_tail=0, capacity=1, row=0)
    out = attention.attention_sliding(q, k, v, ring_k, ring_v, sinks, lengths, backend=backend)
    return backend, nbytes(q, k, v, sinks, lengths, *out) + 2 * 127 * 2 * 64 * 2


def merge(counts: Sequence[int]) -> Counted:
    rng, backend = np.random.default_rng(9), bench()
    parts = [mx.abs(floats(rng, 16, count, 68)) + 0.5 for count in counts]
    sinks = floats(rng, 16, dtype=mx.bfloat16)
    return backend, nbytes(*parts, sinks, attention.attention_merge(parts, sinks, backend=backend)) + 32


CASES: dict[str, Callable[[], Counted]] = {
    **{f"qkv_rope-{fmt}": partial(qkv_rope, fmt, 1) for fmt in FORMATS},
    **{f"attention_out-{fmt}": partial(out_projection, fmt, 1) for fmt in FORMATS},
    **{f"head-{fmt}": partial(vocabulary, fmt, 1) for fmt in FORMATS},
    **{f"qkv_rope-h100-{fmt}": partial(qkv_rope, fmt, 1, "h100") for fmt in FORMATS},
    **{f"attention_out-h100-{fmt}": partial(out_projection, fmt, 1, "h100") for fmt in FORMATS},
    "router-packed": lambda: router_logits(32, 1, packed=True),
    "moe_gate_up-h100": lambda: gate_up_in_halves(32),
    "moe_down-h100": lambda: down_in_halves(32),
    "router-packed-batch": lambda: router_logits(32, 8, packed=True),
    "moe_gate_up-h100-batch": lambda: gate_up_in_halves(8, 8),
    "moe_down-h100-batch": lambda: down_in_halves(8, 8),
    "qkv_rope-batch": lambda: qkv_rope("bf16", 8),
    "attention_out-batch": lambda: out_projection("q8", 5),
    "attention_out-parts": lambda: out_of_parts(8),
    "head-batch": lambda: vocabulary("bf16", 8),
    "router-20b": lambda: router_logits(32, 1),
    "router-120b": lambda: router_logits(128, 1),
    "router-batch": lambda: router_logits(32, 8),
    "top_tokens-1": lambda: best_tokens(1),
    "top_tokens-20": lambda: best_tokens(20),
    "draw_parts": draw_parts,
    "draw_token-plain": lambda: draw_token(1.0),
    "draw_token-nucleus": lambda: draw_token(0.3),
    "moe_gate_up-20b": lambda: gate_up(32),
    "moe_down-20b": lambda: down(32),
    "attention_full-short": lambda: full(100, 3, None),
    "attention_full-split": lambda: full(1500, 30, 4),
    "attention_full-tail_only": lambda: full(0, 63, None),
    "attention_sliding": sliding,
    "attention_merge-one": lambda: merge([16]),
    "attention_merge-batch": lambda: merge([4, 1, 16]),
}


@pytest.mark.parametrize("case", CASES)
def test_bytes_are_at_most_five_percent_over_the_minimum(case: str) -> None:
    backend, least = CASES[case]()
    assert backend.results
    moved = sum(sum(result.unique_read.values()) + sum(result.unique_written.values()) for result in backend.results)
    assert moved <= 1.05 * least
    # Fewer than must move would mean that the minimum, or the counter, is wrong.
    assert moved >= 0.95 * least
    weight = backend.results[0].bytes_read.get("weight")
    if weight is not None:
        assert weight == backend.results[0].unique_read["weight"]


def test_every_decode_kernel_is_counted() -> None:
    assert {case.split("-")[0] for case in CASES} == {
        name for name in kernel_names() if not name.startswith("prefill_")
    }
