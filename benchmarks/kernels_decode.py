"""Checks and times every decode kernel at the released shapes on this machine's GPU, beside MLX's stock operations.

    python -m benchmarks.kernels_decode                     # check and time, 20b and 120b
    python -m benchmarks.kernels_decode --tune              # time every candidate of the tuning constants
    python -m benchmarks.kernels_decode --json results.json

A time is the slope between two lengths of a chain of dependent launches, from the moment the host has handed over the
chain until its result is there: the GPU's own time, launch gaps included. Copies of weights and caches take turns,
more than a cache holds (but for the router, sliding layers and short contexts, which are small, and the head, which is
large). GB/s counts the bytes that must be read and written; the ceiling is this GPU's own copy, the floor a kernel that
only reads as many bytes.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

os.environ.setdefault("MLX_ENABLE_TF32", "0")
os.environ.setdefault("MLX_MAX_OPS_PER_BUFFER", "2000")
os.environ.setdefault("MLX_MAX_MB_PER_BUFFER", "100000000")

import mlx.core as mx
import numpy as np

from benchmarks.chain import (
    Timed,
    copies_beyond_cache,
    copy_ceiling,
    error_of,
    gpu_us,
    linear_bytes,
    random_experts,
    random_linear,
    stock_project,
    waiting,
)  # fmt: skip
from benchmarks.read_floor import read_floor_us
from mlx_gptoss.errors import KernelError
from mlx_gptoss.kernels import attention, attention_out, head, moe, qkv, router, top_tokens
from mlx_gptoss.kernels.backend import Backend
from mlx_gptoss.kernels.backends import default_backend
from mlx_gptoss.kernels.draw import draw
from mlx_gptoss.kernels.draw_twin import draw_twin
from mlx_gptoss.kernels.draws import Draws
from mlx_gptoss.kernels.expert_rows import takes_halves
from mlx_gptoss.kernels.halves import pack_activation, unpack_activation
from mlx_gptoss.kernels.layout import model_params, permute_activation, unpermute_activation
from mlx_gptoss.kernels.tuning import Attention, Rows, Tuning, tuning_for
from mlx_gptoss.weights import Experts, Linear, LinearFormat

HIDDEN, INNER, HEADS, KV_HEADS, TOP_K, VOCAB, VALID = 2880, 2880, 64, 8, 4, 201_088, 200_014
PARAMS = (1e-5, 7.0, 1.702)
FLOORED = ("moe_gate_up", "moe_down", "qkv_rope", "attention_out")
COPIES = 6


@functools.lru_cache(maxsize=1)
def experts_of(count: int, copies: int) -> tuple[list[Experts], list[Experts]]:
    """The two matrices of `count` random experts, several times: kept for the next candidate of a search."""
    gate_ups = [random_experts(count, 2 * INNER, HIDDEN) for _ in range(copies)]
    return gate_ups, [random_experts(count, HIDDEN, INNER) for _ in range(copies)]


def random_linears(rows: int, columns: int, fmt: LinearFormat) -> list[Linear]:
    """As many as take turns."""
    first = random_linear(rows, columns, fmt)
    return [first, *(random_linear(rows, columns, fmt) for _ in range(1, copies_beyond_cache(linear_bytes(first))))]


@dataclass(slots=True)
class Bench:
    """Runs the cases on one back end."""

    backend: Backend
    tuning: Tuning
    stock: bool = True

    def qkv(self, fmt: LinearFormat, batch: int = 1) -> Timed:
        weights = random_linears((HEADS + 2 * KV_HEADS) * 64, HIDDEN, fmt)
        norm = mx.random.normal((HIDDEN,)).astype(mx.bfloat16)
        rope, params = mx.random.normal((batch, 64)), model_params(*PARAMS)
        x = mx.random.normal((batch, HIDDEN))

        def call(i: int, x: mx.array) -> tuple[mx.array, mx.array, mx.array]:
            return qkv.qkv_rope(
                x, norm, weights[i % len(weights)], rope, params,
                heads=HEADS, kv_heads=KV_HEADS, dtype=mx.bfloat16, backend=self.backend, tuning=self.tuning,
            )  # fmt: skip

        got = call(0, x)
        want = qkv.qkv_rope_twin(x, norm, weights[0], rope, params, heads=HEADS, kv_heads=KV_HEADS, dtype=mx.float32)
        error = error_of(got[0], want[0])
        us = gpu_us(lambda i, x: call(i, x)[0].reshape(-1)[: batch * HIDDEN].reshape(batch, HIDDEN), x)
        stock = 0.0
        if self.stock:
            stock = gpu_us(
                lambda i, x: stock_project(mx.fast.rms_norm(x, norm, 1e-5), weights[i % len(weights)])[:, :HIDDEN], x
            )
        return Timed("qkv_rope", f"{fmt} S={batch}", us, linear_bytes(weights[0]) / 1e6, error, stock)

    def out(self, fmt: LinearFormat, batch: int = 1) -> Timed:
        weights = random_linears(HIDDEN, HEADS * 64, fmt)
        a, x = mx.random.normal((batch, HEADS * 64)), mx.random.normal((batch, HIDDEN))

        def call(i: int, x: mx.array) -> mx.array:
            return attention_out.attention_out(
                a, weights[i % len(weights)], x, backend=self.backend, tuning=self.tuning
            )

        error = error_of(call(0, x), attention_out.attention_out_twin(a, weights[0], x))
        us = gpu_us(call, x)
        stock = 0.0
        if self.stock:
            stock = gpu_us(lambda i, x: x + stock_project(waiting(a, x), weights[i % len(weights)]), x)
        return Timed("attention_out", f"{fmt} S={batch}", us, linear_bytes(weights[0]) / 1e6, error, stock)

    def out_of_parts(self, parts: int, *, inside: bool) -> Timed:
        """The output projection of a split attention, which it merges itself or attention_merge does."""
        weights = [random_linear(HIDDEN, HEADS * 64, "bf16") for _ in range(COPIES)]
        a, x = mx.abs(mx.random.normal((HEADS, parts, 68))) + 0.5, mx.random.normal((1, HIDDEN))
        sinks, counts = mx.random.normal((HEADS,)), attention.merge_counts([parts])
        mx.eval(a, x, sinks, counts)

        def call(i: int, x: mx.array) -> mx.array:
            # The parts wait for the step before, as they do in a model.
            given, weight = a + 0.0 * x[0, 0], weights[i % COPIES]
            if inside:
                return attention_out.attention_out(
                    given, weight, x, sinks=sinks, backend=self.backend, tuning=self.tuning
                )
            merged = attention.attention_merge([given], sinks, counts, backend=self.backend)
            return attention_out.attention_out(merged, weight, x, backend=self.backend, tuning=self.tuning)

        error = error_of(call(0, x), attention_out.attention_out_twin(a, weights[0], x, sinks=sinks))
        us, where = gpu_us(call, x), "inside" if inside else "apart"
        return Timed("merge + attention_out", f"{parts} parts, {where}", us, linear_bytes(weights[0]) / 1e6, error)

    def router(self, experts: int, batch: int = 1) -> Timed:
        weights = [random_linear(experts, HIDDEN, "bf16") for _ in range(COPIES)]
        norm, params = mx.random.normal((HIDDEN,)).astype(mx.bfloat16), model_params(*PARAMS)
        x = mx.random.normal((batch, HIDDEN))

        def call(i: int, x: mx.array) -> tuple[mx.array, mx.array]:
            return router.router(x, norm, weights[i % COPIES], params, backend=self.backend, tuning=self.tuning)

        got, want = call(0, x), router.router_twin(x, norm, weights[0], params)
        error = max(error_of(g, w) for g, w in zip(got, want, strict=True))
        us = gpu_us(lambda i, x: call(i, x)[0].reshape(batch, HIDDEN), x)
        return Timed("router", f"E={experts} S={batch}", us, linear_bytes(weights[0]) / 1e6, error)

    def experts(self, count: int, batch: int = 1) -> Iterator[Timed]:
        """Weights take turns, as layers do in a model; activations and routing have just been written, as there."""
        copies = COPIES if count <= 32 else 4
        gate_ups, downs = experts_of(count, copies)
        params = model_params(*PARAMS)
        logits, x = mx.random.normal((batch, count)), mx.random.normal((batch, HIDDEN))
        plain = mx.random.normal((batch, HIDDEN))
        packed = takes_halves(gate_ups[0], downs[0], TOP_K, self.tuning, batch)
        t = pack_activation(plain) if packed else permute_activation(plain)
        mx.eval(logits, t, x)

        def first(i: int, t: mx.array) -> tuple[mx.array, mx.array, mx.array]:
            return moe.moe_gate_up(
                t, logits, gate_ups[i % copies], params, top_k=TOP_K, backend=self.backend, tuning=self.tuning
            )

        def values(h: mx.array) -> mx.array:
            return unpack_activation(h, INNER).reshape(batch, TOP_K, INNER) if packed else unpermute_activation(h)

        # The twins see floats, so that what packing rounds counts as an error.
        got, want = (
            first(0, t),
            moe.moe_gate_up_twin(permute_activation(plain), logits, gate_ups[0], params, top_k=TOP_K),
        )
        same = mx.array_equal(got[1][: batch * TOP_K], want[1][: batch * TOP_K])
        inner = unpermute_activation(want[0])
        error = error_of(values(got[0]), inner) if same else 9.9
        distinct = len(set(np.array(want[1][: batch * TOP_K]).tolist()))
        each = 2 * INNER * HIDDEN * (0.5 + 1 / 32) * distinct / 1e6
        us = gpu_us(lambda i, t: first(i, t)[0][:batch] if packed else first(i, t)[0][:, 0], t)
        yield Timed("moe_gate_up", f"E={count} S={batch}", us, each, error)

        routed = (pack_activation(inner.reshape(-1, INNER)) if packed else want[0], *want[1:])
        mx.eval(want, routed)

        def second(i: int, x: mx.array) -> mx.array:
            return moe.moe_down(*routed, downs[i % copies], x, backend=self.backend, tuning=self.tuning)

        error = error_of(second(0, x), moe.moe_down_twin(*want, downs[0], x))
        us = gpu_us(second, x)
        stock = 0.0
        if self.stock:
            picks = want[1][: batch * TOP_K].reshape(batch, TOP_K).astype(mx.uint32)
            activations = inner[:, :, None]
            mx.eval(picks, activations)

            def gathered(i: int, x: mx.array) -> mx.array:
                down = downs[i % copies]
                if down.blocks is None or down.scales is None:
                    return x
                y = mx.gather_qmm(
                    waiting(activations, x), down.blocks, down.scales, None, rhs_indices=picks,
                    transpose=True, group_size=32, bits=4, mode="mxfp4",
                )  # fmt: skip
                return x + y.squeeze(2).sum(axis=1)

            stock = gpu_us(gathered, x)
        yield Timed("moe_down", f"E={count} S={batch}", us, each / 2, error, stock)

    def head(self, fmt: LinearFormat, batch: int = 1) -> Timed:
        weight = random_linear(VOCAB, HIDDEN, fmt)
        norm, params = mx.random.normal((HIDDEN,)).astype(mx.bfloat16), model_params(*PARAMS)
        x = mx.random.normal((batch, HIDDEN))

        def call(_i: int, x: mx.array) -> mx.array:
            return head.head(x, norm, weight, params, valid=VALID, backend=self.backend, tuning=self.tuning)

        error = error_of(call(0, x), head.head_twin(x, norm, weight, params, valid=VALID))
        us = gpu_us(lambda i, x: call(i, x)[:, :HIDDEN], x, 4, 16)
        stock = gpu_us(lambda _i, x: stock_project(mx.fast.rms_norm(x, norm, 1e-5), weight)[:, :HIDDEN], x, 4, 16)
        return Timed("head", f"{fmt} S={batch}", us, linear_bytes(weight, VALID) / 1e6, error, stock)

    def sliding(self) -> Timed:
        ring = [mx.random.normal((2, KV_HEADS, 128, 64)).astype(mx.bfloat16) for _ in range(COPIES)]
        rings = [(r[0], r[1]) for r in ring]
        mx.eval(rings)
        q, k, v = self._position()
        sinks = mx.random.normal((HEADS,)).astype(mx.bfloat16)
        lengths = attention.cache_lengths(offset=5000, n_main=0, n_tail=0, capacity=1, row=0)

        def call(i: int, q: mx.array) -> mx.array:
            return attention.attention_sliding(
                q, k, v, *rings[i % COPIES], sinks, lengths, backend=self.backend, tuning=self.tuning
            )[0]

        want = attention.attention_sliding_twin(q, k, v, *rings[0], sinks, lengths)[0]
        error = error_of(call(0, q), want)
        us = gpu_us(lambda i, q: call(i, q)[None], q)
        return Timed("attention_sliding", "W=128", us, 4 * rings[0][0].nbytes / 1e6, error)

    def full(self, keys: int) -> Timed:
        copies = max(1, min(COPIES, (1 << 30) // (keys * 2048)))
        shape = (KV_HEADS, keys, 64)
        mains = [
            (mx.random.normal(shape).astype(mx.bfloat16), mx.random.normal(shape).astype(mx.bfloat16))
            for _ in range(copies)
        ]
        tail_k, tail_v = (mx.random.normal((KV_HEADS, 64, 64)).astype(mx.bfloat16) for _ in range(2))
        mx.eval(mains, tail_k, tail_v)
        q, k, v = self._position()
        sinks = mx.random.normal((HEADS,)).astype(mx.bfloat16)
        n_tail = 31
        lengths = attention.cache_lengths(offset=keys + n_tail, n_main=keys, n_tail=n_tail, capacity=keys, row=0)
        parts = attention.parts_for(keys, self.tuning)
        counts = attention.merge_counts([parts])

        def call(i: int, q: mx.array) -> mx.array:
            out = attention.attention_full(
                q, k, v, mains[i % copies][0], mains[i % copies][1], tail_k, tail_v, sinks, lengths,
                parts=parts, backend=self.backend, tuning=self.tuning,
            )[0]  # fmt: skip
            return attention.attention_merge([out], sinks, counts, backend=self.backend)

        want = attention.attention_full_twin(q, k, v, mains[0][0], mains[0][1], tail_k, tail_v, sinks, lengths)[0]
        error = error_of(call(0, q)[0], want)
        us = gpu_us(call, q)
        stock = 0.0
        if self.stock:

            def sdpa(i: int, q: mx.array) -> mx.array:
                mk, mv = mains[i % copies]
                return mx.fast.scaled_dot_product_attention(q, mk[None], mv[None], scale=0.125, sinks=sinks)

            stock = gpu_us(sdpa, q.reshape(1, HEADS, 1, 64).astype(mx.bfloat16))
        megabytes = (2 * mains[0][0].nbytes + 4 * tail_k.nbytes * n_tail // 64) / 1e6
        return Timed("attention_full", f"{keys} keys, {parts} parts", us, megabytes, error, stock)

    def top(self) -> Timed:
        logits = mx.random.normal((1, VOCAB))
        mx.eval(logits)
        got, want = top_tokens.top_tokens(logits, 8, backend=self.backend), top_tokens.top_tokens_twin(logits, 8)
        error = 0.0 if mx.array_equal(got[1], want[1]) else 9.9

        def call(_i: int, x: mx.array) -> mx.array:
            return x + top_tokens.top_tokens(x, 1, backend=self.backend)[0]

        us = gpu_us(call, logits)
        stock = gpu_us(lambda _i, x: x + mx.argmax(x, axis=-1, keepdims=True).astype(mx.float32), logits)
        return Timed("top_tokens + add", "count 1", us, 3 * logits.nbytes / 1e6, error, stock)

    def draw(self, top_p: float) -> Timed:
        """All launches of a draw, beside the same in MLX's operations."""
        logits = mx.random.normal((1, VOCAB)) * 6
        draws = Draws((1.0,), (0.6,), (0,), (top_p,), (0.0,))
        mx.eval(logits)
        got, want = draw(logits, draws, backend=self.backend), draw_twin(logits, logits, draws, logprobs=False)
        error = 0.0 if mx.array_equal(got.tokens, want.tokens) else 9.9

        us = gpu_us(lambda _i, x: x + draw(x, draws, backend=self.backend).peaks[:, None], logits, 4, 16)
        stock = gpu_us(lambda _i, x: x + draw_twin(x, x, draws, logprobs=False).tokens[:, None], logits, 4, 16)
        return Timed("draw + add", f"top_p {top_p}", us, 3 * logits.nbytes / 1e6, error, stock)

    @staticmethod
    def _position() -> tuple[mx.array, mx.array, mx.array]:
        q = mx.random.normal((1, HEADS, 64)) * 2
        k, v = (mx.random.normal((1, KV_HEADS, 64)).astype(mx.bfloat16) for _ in range(2))
        mx.eval(q, k, v)
        return q, k, v


def cases(bench: Bench) -> Iterator[Callable[[], Timed]]:
    """Everything that is measured, both models."""
    formats: tuple[LinearFormat, ...] = ("bf16", "q8", "mxfp8", "q6", "q4")
    for fmt in formats:
        yield partial(bench.qkv, fmt)
        yield partial(bench.out, fmt)
    for parts in (2, 4, 8, 16, 32):
        yield partial(bench.out_of_parts, parts, inside=True)
        yield partial(bench.out_of_parts, parts, inside=False)
    for experts in (32, 128):
        yield partial(bench.router, experts)
    yield bench.sliding
    for keys in (128, 1024, 8192, 32768, 131072):
        yield partial(bench.full, keys)
    for fmt in formats[:2]:
        yield partial(bench.head, fmt)
    yield bench.top
    for top_p in (1.0, 0.9):
        yield partial(bench.draw, top_p)
    for batch in (2, 4, 8):
        for fmt in formats[:2]:
            yield partial(bench.qkv, fmt, batch)
            yield partial(bench.out, fmt, batch)


def report(bench: Bench, ceiling: float) -> list[Timed]:
    """Runs and prints every case; a kernel that fails is a line, not an end."""
    lines: list[Timed] = []

    floors: dict[float, float] = {}

    def add(timed: Timed) -> None:
        if timed.kernel in FLOORED and timed.shape.endswith("S=1"):
            size = round(timed.megabytes, 2)
            floors[size] = floors.get(size) or read_floor_us(size, bench.backend, gpu_us)
            timed = dataclasses.replace(timed, floor_us=floors[size])
        lines.append(timed)
        print(timed.line(ceiling), flush=True)

    for experts, batch in ((32, 1), (128, 1), (32, 2), (32, 4), (32, 8)):
        try:
            for timed in bench.experts(experts, batch):
                add(timed)
        except KernelError as error:
            print(f"FAILED: {error}", flush=True)
    for case in cases(bench):
        try:
            add(case())
        except KernelError as error:
            print(f"FAILED: {error}", flush=True)
    return lines


def tune(backend: Backend, budget_s: float) -> Tuning:
    """Times candidates kernel by kernel and returns the winners. Stops early when `budget_s` is spent."""
    best = tuning_for(backend.family)
    until = time.monotonic() + budget_s

    def search(
        name: str,
        candidates: Sequence[Rows | Attention | None],
        run: Callable[[Bench], float],
        without: str | None = None,
    ) -> None:
        """`without`: a field that would hide this one, None meanwhile."""
        nonlocal best
        hidden = {without: None} if without else {}
        times: list[tuple[float, Rows | Attention | None]] = []
        for candidate in [getattr(best, name), *candidates]:
            if time.monotonic() > until:
                break
            trial = best.having(**{name: candidate}, **hidden)
            try:
                times.append((run(Bench(backend, trial, stock=False)), candidate))
                print(f"{name:10} {times[-1][0]:8.2f} us  {candidate}", flush=True)
            except (KernelError, RuntimeError, ValueError) as error:
                print(f"{name:10} failed: {candidate}: {error}", flush=True)
        if times:
            winner = min(times, key=lambda pair: pair[0])[1]
            best = best.having(**{name: winner})

    matrices = [Rows(r, s, u) for r in (2, 4) for s in (4, 8) for u in (1, 2, 3, 4, 6)]
    experts = [Rows(r, s, 3, passes=p) for r in (2, 4) for s in (1, 2, 4) for p in (1, 2, 3, 4)]
    downs = [Rows(r, s, 3, share=g) for r in (1, 2, 4) for s, g in ((1, 1), (2, 1), (2, 2), (4, 2), (4, 4), (8, 4))]
    search("gate_up", experts, lambda bench: next(iter(bench.experts(32))).us, "gate_up_alone")
    search("down", downs, lambda bench: list(bench.experts(32))[1].us, "down_alone")
    alone = [Rows(r, s, 3, passes=p) for r, p in ((2, 2), (2, 4), (1, 6), (1, 8)) for s in (4, 8, 10, 11)]
    search("gate_up_alone", [None, *alone], lambda bench: next(iter(bench.experts(32))).us)
    alone = [Rows(r, s, 3, share=g) for r, s, g in ((2, 11, 1), (1, 22, 1), (2, 22, 2), (1, 11, 1), (2, 12, 1))]
    search("down_alone", [None, *alone], lambda bench: list(bench.experts(32))[1].us)
    if best.gate_up_several and best.down_several:
        several = [Rows(r, s, 3, passes=p) for r, p in ((1, 6), (1, 8), (2, 3), (2, 4)) for s in (4, 8)]
        search("gate_up_several", [None, *several], lambda bench: next(iter(bench.experts(32, 8))).us)
        several = [Rows(r, s, 3) for r in (1, 2) for s in (4, 8, 11, 22)]
        search("down_several", [None, *several], lambda bench: list(bench.experts(32, 8))[1].us)
    search("qkv", matrices, lambda bench: bench.qkv("bf16").us, "qkv_alone")
    apart = [Rows(r, s, u, stagers=t) for r, s in ((2, 8), (2, 20), (4, 10)) for u in (2, 3, 4) for t in (4, 8)]
    search("qkv_alone", [None, *apart], lambda bench: bench.qkv("bf16").us)
    search("out", matrices, lambda bench: bench.out("bf16").us)
    if best.halves:
        search("qkv_halves", [None, *apart], lambda bench: bench.qkv("q8").us)
        halves = [Rows(1, s, u) for s in (8, 11, 12, 16) for u in (2, 4)]
        search("out_halves", [None, *halves], lambda bench: bench.out("q8").us)
    heads = [Rows(r, s, u, passes=4) for r in (2, 4) for s in (4, 8) for u in (2, 4, 12)]
    search("head", heads, lambda bench: bench.head("bf16").us)
    search("router", [Rows(1, s, u) for s in (1, 4, 8) for u in (6, 12)], lambda bench: bench.router(32).us)
    full = [Attention(s, u, split_keys=k, max_parts=p)
            for s, u in ((4, 2), (4, 4), (6, 4), (12, 2), (12, 4)) for k, p in ((64, 16), (64, 32))]  # fmt: skip
    search("full", full, lambda bench: bench.full(8192).us + 0.2 * bench.full(131072).us)
    search("sliding", [Attention(s, u) for s, u in ((4, 1), (4, 2), (8, 1), (8, 2))], lambda bench: bench.sliding().us)
    return best


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tune", action="store_true")
    parser.add_argument("--tune-seconds", type=float, default=90.0)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    backend = default_backend()
    if backend.name == "stock":
        print("this machine has no GPU that MLX can use; the kernels are not timed on a CPU", file=sys.stderr)
        return 1
    mx.random.seed(0)
    ceiling = copy_ceiling()
    print(f"{mx.device_info().get('device_name')}: copy {ceiling:.0f} GB/s, back end {backend.name}", flush=True)
    lines = report(Bench(backend, tuning_for(backend.family)), ceiling)
    if options.json:
        record = {"ceiling_gb_s": ceiling, "cases": [dataclasses.asdict(line) for line in lines]}
        options.json.write_text(json.dumps(record))
    if options.tune:
        print(tune(backend, options.tune_seconds))
    return 1 if any(line.error > 1e-2 for line in lines) else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
