"""Times the prefill kernels beside stock MLX at the released shapes, and checks them against their twins.

    python -m benchmarks.kernels_prefill                     # a table, then one JSON line
    python -m benchmarks.kernels_prefill --no-stock          # without MLX's own operations
    python -m benchmarks.kernels_prefill --tune              # every candidate tile of the grouped products
    python -m benchmarks.kernels_prefill --model 120b --tokens 2048 8192

Routing is uneven, as released models' is: each expert has a popularity of its own (a logit offset of standard
deviation 1). Times are medians of chains of dependent launches, weights are larger than any cache.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial

import mlx.core as mx
import numpy as np

from mlx_gptoss.errors import KernelError
from mlx_gptoss.kernels.backend import Backend, StockBackend
from mlx_gptoss.kernels.backends import default_backend
from mlx_gptoss.kernels.layout import model_params, picked_weight
from mlx_gptoss.kernels.prefill_attention import prefill_attention, prefill_attention_twin
from mlx_gptoss.kernels.prefill_moe import (
    prefill_moe_down,
    prefill_moe_gate_up,
    prefill_moe_sum,
    prefill_moe_sum_twin,
)
from mlx_gptoss.kernels.prefill_qkv import prefill_rope, prefill_rope_twin
from mlx_gptoss.kernels.prefill_routing import Routing, prefill_sort, prefill_sort_twin, prefill_topk, prefill_topk_twin
from mlx_gptoss.kernels.prefill_tuning import PrefillTuning, Tile, prefill_tuning_for
from mlx_gptoss.weights import Experts

HIDDEN, INNER, HEADS, KV_HEADS, TOP_K, WINDOW = 2880, 2880, 64, 8, 4, 128
EXPERTS = {"20b": 32, "120b": 128}
_DECODED: dict[int, mx.array] = {}
CANDIDATES = (
    Tile(128, 256, 4, 2, 2, True, 3),
    Tile(256, 128, 8, 1, 2, True, 3),
    Tile(128, 128, 4, 1, 2, True, 3),
    Tile(64, 256, 4, 2, 1, True, 3),
    Tile(64, 128, 4, 1, 1, True, 3),
    Tile(128, 128, 2, 2, 4, True),
    Tile(128, 128, 2, 2, 2, True),
    Tile(128, 128, 2, 2, 1, True),
    Tile(128, 128, 1, 4, 4, True),
    Tile(128, 128, 2, 4, 2, True),
    Tile(64, 128, 2, 2, 2, True),
    Tile(64, 128, 1, 4, 2, True),
    Tile(64, 64, 2, 2, 2, True),
    Tile(64, 64, 2, 2, 2, False),
)


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table. `rate` is TFLOP/s for products (counting real rows only) and GB/s for the others."""

    kernel: str
    shape: str
    microseconds: float
    rate: float
    unit: str
    stock_microseconds: float
    error: float


def timed(run: Callable[[mx.array], mx.array], start: mx.array, repeats: int = 5, chain: int = 10) -> float:
    """Median microseconds of one call. `run` takes an array that each call makes from the result before it (`start`
    plus nothing), so that no two calls overlap; the two small launches for that are in the time."""

    def calls(count: int) -> mx.array:
        link = start
        for _ in range(count):
            link = start + (run(link).reshape(-1)[:1] * 0).astype(start.dtype)
        return link

    mx.eval(calls(2))
    samples = []
    for _ in range(repeats):
        began = time.perf_counter()
        mx.eval(calls(chain))
        samples.append((time.perf_counter() - began) / chain)
        mx.synchronize()
    return statistics.median(samples) * 1e6


def error(got: mx.array, want: mx.array) -> float:
    """The largest difference as a share of the largest value; infinity where anything is not finite."""
    got, want = got.astype(mx.float32), want.astype(mx.float32)
    if not mx.all(mx.isfinite(got)).item():
        return float("inf")
    return scalar(mx.max(mx.abs(got - want)) / mx.maximum(mx.max(mx.abs(want)), 1e-6))


def scalar(value: mx.array) -> float:
    return float(np.array(value.astype(mx.float32)))


def random_experts(count: int, rows: int, columns: int) -> Experts:
    """Random MXFP4 matrices with weights of ordinary size."""
    blocks = mx.random.randint(0, 2**31 - 1, (count, rows, columns // 8)).astype(mx.uint32) * 2
    scales = mx.random.randint(118, 123, (count, rows, columns // 32)).astype(mx.uint8)
    bias = (mx.random.normal((count, rows)) * 0.3).astype(mx.bfloat16)
    mx.eval(blocks, scales, bias)
    return Experts(bias, blocks=blocks, scales=scales)


def random_routing(tokens: int, experts: int, backend: Backend, tuning: PrefillTuning) -> Routing:
    logits = mx.random.normal((tokens, experts)) + mx.random.normal((experts,))
    picks, weights = prefill_topk_twin(logits, top_k=TOP_K)
    mx.eval(picks, weights)
    routing = prefill_sort(picks, weights, experts=experts, backend=backend, tuning=tuning)
    mx.eval(routing.order, routing.inverse, routing.tiles)
    return routing


def dense_product(x: mx.array, experts: Experts, routing: Routing) -> mx.array:
    """The oracle: each expert's rows times its weights, decoded, one expert at a time (float32 [R, N])."""
    picks = np.sort(np.array(routing.picks).reshape(-1))
    stops = np.searchsorted(picks, np.arange(experts.num_experts), side="right").tolist()
    parts, start = [], 0
    for expert, stop in enumerate(stops):
        if stop > start:
            weight = picked_weight(experts, mx.array(expert))
            bias = experts.bias[expert].astype(mx.float32)
            parts.append(x[start:stop].astype(mx.float32) @ weight.T + bias)
            mx.eval(parts[-1])
        start = stop
    return mx.concatenate(parts)


def gathered(x: mx.array, experts: Experts, routing: Routing, link: mx.array) -> mx.array:
    """MLX's fastest way: gather_mm over weights decoded to bfloat16 beforehand (four times the memory)."""
    if id(experts) not in _DECODED:
        _DECODED.clear()
        picks = [picked_weight(experts, mx.array(e)).astype(mx.bfloat16) for e in range(experts.num_experts)]
        _DECODED[id(experts)] = mx.stack(picks)
        mx.eval(_DECODED[id(experts)])
    owners = routing.picks.reshape(-1)[routing.order]
    x = x + (link.reshape(-1)[:1] * 0).astype(x.dtype)
    weight = mx.swapaxes(_DECODED[id(experts)], -1, -2)
    return mx.gather_mm(x[:, None], weight, rhs_indices=owners, sorted_indices=True)


def swiglu(y: mx.array) -> mx.array:
    gate, linear = mx.minimum(y[:, ::2], 7.0), mx.clip(y[:, 1::2], -7.0, 7.0)
    return gate * mx.sigmoid(1.702 * gate) * (linear + 1.0)


def moe_rows(backend: Backend, model: str, tokens: int, tuning: PrefillTuning, stock: bool) -> Iterator[Row]:
    """The five kernels of a prompt's experts."""
    experts, params = EXPERTS[model], model_params(1e-5, 7.0, 1.702)
    gate_up = random_experts(experts, 2 * INNER, HIDDEN)
    down = random_experts(experts, HIDDEN, INNER)
    logits = mx.random.normal((tokens, experts)) + mx.random.normal((experts,))
    x = mx.random.normal((tokens, HIDDEN)).astype(mx.bfloat16)
    residual = mx.random.normal((tokens, HIDDEN))
    mx.eval(logits, x, residual)
    shape = f"{model} {tokens}"
    pairs = tokens * TOP_K

    picks, weights = prefill_topk(logits, top_k=TOP_K, backend=backend, tuning=tuning)
    want = prefill_topk_twin(logits, top_k=TOP_K)
    wrong = error(weights, want[1]) + scalar(mx.sum(picks != want[0]))
    taken = timed(lambda a: prefill_topk(a, top_k=TOP_K, backend=backend, tuning=tuning)[0], logits)
    stock_time = timed(lambda a: prefill_topk_twin(a, top_k=TOP_K)[0], logits) if stock else 0.0
    yield Row("prefill_topk", shape, taken, logits.nbytes / taken / 1e3, "GB/s", stock_time, wrong)

    routing = prefill_sort(picks, weights, experts=experts, backend=backend, tuning=tuning)
    twin = prefill_sort_twin(picks, weights, experts=experts, tile_rows=routing.tile_rows)
    wrong = sum(
        scalar(mx.sum(a != b))
        for a, b in ((routing.order, twin.order), (routing.inverse, twin.inverse), (routing.tiles, twin.tiles))
    )
    mx.eval(routing.order, routing.inverse, routing.tiles)
    taken = timed(lambda a: prefill_sort(a, weights, experts=experts, backend=backend, tuning=tuning).order, picks)
    rows = routing.tile_rows
    stock_time = (
        timed(lambda a: prefill_sort_twin(a, weights, experts=experts, tile_rows=rows).order, picks) if stock else 0.0
    )
    yield Row("prefill_sort", shape, taken, 16 * pairs / taken / 1e3, "GB/s", stock_time, wrong)

    h = prefill_moe_gate_up(x, gate_up, routing, params, backend=backend, tuning=tuning)
    wide = x[routing.order // TOP_K]
    h_twin = swiglu(dense_product(wide, gate_up, routing))
    wrong = error(h, h_twin)
    taken = timed(lambda a: prefill_moe_gate_up(x, gate_up, routing, a, backend=backend, tuning=tuning), params)
    stock_time = timed(partial(gathered, wide, gate_up, routing), params, 3, 2) if stock else 0.0
    flops = 2.0 * pairs * 2 * INNER * HIDDEN
    yield Row("prefill_moe_gate_up", shape, taken, flops / taken / 1e6, "TFLOP/s", stock_time, wrong)

    y = prefill_moe_down(h, down, routing, backend=backend, tuning=tuning)
    wrong = error(y, dense_product(h, down, routing))
    taken = timed(
        lambda a: prefill_moe_down(h, down, replace(routing, tiles=a), backend=backend, tuning=tuning), routing.tiles
    )
    stock_time = timed(partial(gathered, h, down, routing), params, 3, 2) if stock else 0.0
    flops = 2.0 * pairs * INNER * HIDDEN
    yield Row("prefill_moe_down", shape, taken, flops / taken / 1e6, "TFLOP/s", stock_time, wrong)

    out = prefill_moe_sum(y, routing, residual, backend=backend, tuning=tuning)
    wrong = error(out, prefill_moe_sum_twin(y, routing, residual))
    taken = timed(lambda a: prefill_moe_sum(y, routing, a, backend=backend, tuning=tuning), residual)
    stock_time = timed(lambda a: prefill_moe_sum_twin(y, routing, a), residual) if stock else 0.0
    moved = y.nbytes + 2 * residual.nbytes
    yield Row("prefill_moe_sum", shape, taken, moved / taken / 1e3, "GB/s", stock_time, wrong)


def down_of(
    h: mx.array, down: Experts, routing: Routing, backend: Backend, tuning: PrefillTuning, tiles: mx.array
) -> mx.array:
    return prefill_moe_down(h, down, replace(routing, tiles=tiles), backend=backend, tuning=tuning)


def attention_row(backend: Backend, length: int, offset: int, window: int | None, stock: bool) -> Row:
    """Attention of `length` positions after `offset` cached ones."""
    q = mx.random.normal((1, length, HEADS, 64)).astype(mx.bfloat16)
    k = mx.random.normal((1, KV_HEADS, offset + length, 64)).astype(mx.bfloat16)
    v = mx.random.normal((1, KV_HEADS, offset + length, 64)).astype(mx.bfloat16)
    sinks = mx.random.normal((HEADS,)).astype(mx.bfloat16)
    mx.eval(q, k, v, sinks)

    def run(sinks: mx.array) -> mx.array:
        return prefill_attention(q, k, v, sinks, offset=offset, window=window, backend=backend)

    def twin(sinks: mx.array) -> mx.array:
        return prefill_attention_twin(q, k, v, sinks, offset=offset, window=window)

    feasible = length * (offset + length) <= 2**26
    some = min(32, length)
    last = prefill_attention_twin(q[:, -some:], k, v, sinks, offset=offset + length - some, window=window)
    wrong = error(run(sinks)[:, -some:], last)
    taken = timed(run, sinks)
    seen = sum(min(window or 2**30, offset + i + 1) for i in range(length))
    shape = f"{length} after {offset}" + (f", window {window}" if window else "")
    stock_time = timed(twin, sinks, 3, 1) if stock and feasible else 0.0
    return Row("prefill_attention", shape, taken, 4.0 * 64 * HEADS * seen / taken / 1e6, "TFLOP/s", stock_time, wrong)


def rope_row(backend: Backend, length: int, stock: bool) -> Row:
    columns = (HEADS + 2 * KV_HEADS) * 64
    qkv = mx.random.normal((length, columns)).astype(mx.bfloat16)
    bias = mx.random.normal((columns,)).astype(mx.bfloat16)
    rope = mx.random.normal((length, 64))
    mx.eval(qkv, bias, rope)

    def run(bias: mx.array) -> mx.array:
        return prefill_rope(qkv, bias, rope, heads=HEADS, kv_heads=KV_HEADS, backend=backend)[0]

    def twin(bias: mx.array) -> mx.array:
        return prefill_rope_twin(qkv, bias, rope, heads=HEADS, kv_heads=KV_HEADS)[0]

    wrong, taken = error(run(bias), twin(bias)), timed(run, bias)
    stock_time = timed(twin, bias) if stock else 0.0
    return Row("prefill_rope", f"{length}", taken, 2 * qkv.nbytes / taken / 1e3, "GB/s", stock_time, wrong)


def dense_row(rows: int, tokens: int) -> Row:
    """What MLX's dense bfloat16 product reaches on as many rows: the ceiling to compare with."""
    x = mx.random.normal((tokens * TOP_K, HIDDEN)).astype(mx.bfloat16)
    w = mx.random.normal((rows, HIDDEN)).astype(mx.bfloat16)
    mx.eval(x, w)
    taken = timed(lambda a: (x + a) @ w.T, x[:1])
    rate = 2.0 * tokens * TOP_K * rows * HIDDEN / taken / 1e6
    return Row("mx.matmul bfloat16", f"{tokens * TOP_K}x{rows}x{HIDDEN}", taken, rate, "TFLOP/s", taken, 0.0)


def show(row: Row) -> None:
    ratio = f"{row.stock_microseconds / row.microseconds:6.1f}x stock" if row.stock_microseconds else ""
    print(
        f"{row.kernel:22s} {row.shape:28s} {row.microseconds:10.1f} us {row.rate:8.1f} {row.unit:8s}"
        f" error {row.error:8.1e} {ratio}",
        flush=True,
    )


def tune(backend: Backend, model: str, tokens: int) -> None:
    """Times every candidate tile of both products."""
    experts, params = EXPERTS[model], model_params(1e-5, 7.0, 1.702)
    gate_up = random_experts(experts, 2 * INNER, HIDDEN)
    down = random_experts(experts, HIDDEN, INNER)
    x = mx.random.normal((tokens, HIDDEN)).astype(mx.bfloat16)
    base = prefill_tuning_for(backend.family)
    mx.eval(x)
    for tile in CANDIDATES:
        tuning = replace(base, gate_up=tile, down=tile)
        mx.random.seed(1)
        try:
            routing = random_routing(tokens, experts, backend, tuning)
            h = prefill_moe_gate_up(x, gate_up, routing, params, backend=backend, tuning=tuning)
            mx.eval(h)
            run = partial(prefill_moe_gate_up, x, gate_up, routing, backend=backend, tuning=tuning)
            first = timed(run, params, 3)
            second = timed(partial(down_of, h, down, routing, backend, tuning), routing.tiles, 3)
        except (KernelError, RuntimeError, ValueError) as problem:
            print(f"{tile}: {problem}", flush=True)
            continue
        flops = 2.0 * tokens * TOP_K * INNER * HIDDEN / 1e6
        print(
            f"{model} {tokens} gate_up {2 * flops / first:6.1f} down {flops / second:6.1f} TFLOP/s  {tile}", flush=True
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=sorted(EXPERTS), nargs="*", default=["20b", "120b"])
    parser.add_argument("--tokens", type=int, nargs="*", default=[512, 2048, 8192])
    parser.add_argument("--lengths", type=int, nargs="*", default=[2048, 8192])
    parser.add_argument("--offsets", type=int, nargs="*", default=[30720, 129024])
    parser.add_argument("--no-stock", dest="check", action="store_true", help="no timings of stock MLX")
    parser.add_argument("--tune", action="store_true")
    options = parser.parse_args()
    mx.random.seed(0)
    backend = default_backend()
    print(f"back end {backend.name}, family {backend.family}, {mx.device_info().get('device_name', 'CPU')}")
    if isinstance(backend, StockBackend):
        raise SystemExit("this machine has no GPU that MLX can use; the kernels are not timed on a CPU")
    if options.tune:
        for model in options.model:
            for tokens in options.tokens:
                tune(backend, model, tokens)
        return
    rows: list[Row] = []
    stock = not options.check
    for tokens in options.tokens:
        rows.append(dense_row(2 * INNER, tokens))
        show(rows[-1])
    for model in options.model:
        for tokens in options.tokens:
            for row in moe_rows(backend, model, tokens, prefill_tuning_for(backend.family), stock):
                show(row)
                rows.append(row)
    for length in options.lengths:
        rows.append(rope_row(backend, length, stock))
        show(rows[-1])
        for offset in (0, *options.offsets) if length == options.lengths[0] else (0,):
            for window in (None, WINDOW):
                rows.append(attention_row(backend, length, offset, window, stock))
                show(rows[-1])
    print(json.dumps({"backend": backend.name, "family": backend.family, "rows": [asdict(row) for row in rows]}))


if __name__ == "__main__":
    main()
