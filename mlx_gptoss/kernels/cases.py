"""One case a kernel: random data at a model's shapes, the kernel, its twin, and MLX's own operations for comparison.

The self-check and `mlx-gptoss doctor` run these. Experts and vocabulary are cut to what exercises a kernel fully, so
that a check needs a few hundred megabytes and not a second model.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import mlx.core as mx

from mlx_gptoss.kernels import attention, attention_out, draw, head, moe, qkv, router, top_tokens
from mlx_gptoss.kernels import prefill_attention as pa
from mlx_gptoss.kernels import prefill_moe as pm
from mlx_gptoss.kernels import prefill_qkv as pq
from mlx_gptoss.kernels import prefill_routing as pr
from mlx_gptoss.kernels.backend import Backend
from mlx_gptoss.kernels.case_data import expert_bytes, experts, linear, normal, packed_linears, params_of
from mlx_gptoss.kernels.draw_twin import draw_parts_twin, draw_twin
from mlx_gptoss.kernels.draws import Draws
from mlx_gptoss.kernels.expert_rows import fits_halves
from mlx_gptoss.kernels.halves import pack_activation, unpack_activation
from mlx_gptoss.kernels.layout import HEAD_DIM, PART, padded
from mlx_gptoss.kernels.prefill_tuning import prefill_tuning_for
from mlx_gptoss.kernels.shapes import Shapes
from mlx_gptoss.kernels.tuning import tuning_for
from mlx_gptoss.weights import Experts, Linear

MOST_EXPERTS = 16
MOST_VOCABULARY = 16_384
EXACT = 1e-4
"""Largest error, as a share of the largest value, of a kernel whose sums and results are float32."""
HALVES = 2e-3
"""The same where products are added up in halves (metal/halves.h)."""
ROUNDED = 2e-2
"""The same where either side rounds to a 16-bit float on the way."""

Run = Callable[[Backend], Sequence[mx.array]]


@dataclass(frozen=True, slots=True)
class Case:
    """`run` answers with the kernel's comparable outputs, or the twin's on a StockBackend. `bytes` is the least that a
    call must move, `stock` what MLX's own operations do for the same end (None: the twin is made of them). `also` is
    another use of the kernel, compared in the same way and not timed. `packed` is what a GPU does in halves,
    compared to HALVES, and `timed` what is timed instead of `run`."""

    kernel: str
    run: Run
    bytes: int
    tolerance: float
    stock: Callable[[], mx.array] | None = None
    also: Run | None = None
    packed: Run | None = None
    timed: Run | None = None

    def outputs(self, backend: Backend) -> list[mx.array]:
        """Everything that is compared to `tolerance`."""
        return [*self.run(backend), *(() if self.also is None else self.also(backend))]


def build_case(kernel: str, shapes: Shapes, backend: Backend) -> Case:
    """The case of one kernel, its data drawn and evaluated. `kernel` is one of CASES."""
    mx.random.seed(20)
    case = CASES[kernel](shapes, backend)
    mx.synchronize()
    return case


def _qkv_rope(s: Shapes, device: Backend) -> Case:
    rows = (s.heads + 2 * s.kv_heads) * HEAD_DIM
    weight = linear(rows, s.hidden)
    norm, xs = normal(s.hidden, dtype=mx.bfloat16), normal(s.batch, s.hidden)
    ropes, params = normal(s.batch, HEAD_DIM), params_of(s)
    x, rope = mx.contiguous(xs[:1]), mx.contiguous(ropes[:1])
    mx.eval(x, rope)

    def project(x: mx.array, rope: mx.array, backend: Backend, weight: Linear = weight) -> Sequence[mx.array]:
        return qkv.qkv_rope(
            x, norm, weight, rope, params, heads=s.heads, kv_heads=s.kv_heads, dtype=mx.float32, backend=backend
        )

    def run(backend: Backend) -> Sequence[mx.array]:
        return project(x, rope, backend)

    def batch(backend: Backend) -> Sequence[mx.array]:
        return project(xs, ropes, backend)

    def stock() -> mx.array:
        return mx.fast.rms_norm(x.astype(mx.bfloat16), norm, s.eps) @ weight.weight.T

    tuning = tuning_for(device.family)
    linears = packed_linears(rows, s.hidden) if tuning.halves and tuning.qkv_halves else ()

    def packed(backend: Backend) -> Sequence[mx.array]:
        return [array for linear in linears for array in project(x, rope, backend, linear)]

    return Case(qkv.NAME, run, weight.weight.nbytes, EXACT, stock, batch, packed if linears else None)


def _attention_out(s: Shapes, device: Backend) -> Case:
    weight = linear(s.hidden, s.heads * HEAD_DIM)
    a, x = normal(1, s.heads * HEAD_DIM), normal(1, s.hidden)
    parts, sinks = mx.abs(normal(s.heads, 2, PART)) + 0.5, normal(s.heads, dtype=mx.bfloat16)
    many, xs = normal(s.batch, s.heads * HEAD_DIM), normal(s.batch, s.hidden)
    mx.eval(parts)

    def run(backend: Backend) -> Sequence[mx.array]:
        return [attention_out.attention_out(a, weight, x, backend=backend)]

    def others(backend: Backend) -> Sequence[mx.array]:
        merged = attention_out.attention_out(parts, weight, x, sinks=sinks, backend=backend)
        return [merged, attention_out.attention_out(many, weight, xs, backend=backend)]

    def stock() -> mx.array:
        return a.astype(mx.bfloat16) @ weight.weight.T

    tuning = tuning_for(device.family)
    linears = packed_linears(s.hidden, s.heads * HEAD_DIM) if tuning.halves and tuning.out_halves else ()

    def packed(backend: Backend) -> Sequence[mx.array]:
        return [attention_out.attention_out(a, linear, x, backend=backend) for linear in linears]

    return Case(attention_out.NAME, run, weight.weight.nbytes, EXACT, stock, others, packed if linears else None)


def _router(s: Shapes, device: Backend) -> Case:
    weight, norm = linear(s.experts, s.hidden), normal(s.hidden, dtype=mx.bfloat16)
    x, xs, params = normal(1, s.hidden), normal(s.batch, s.hidden), params_of(s)

    def run(backend: Backend) -> Sequence[mx.array]:
        return router.router(x, norm, weight, params, backend=backend)

    def batch(backend: Backend) -> Sequence[mx.array]:
        return router.router(xs, norm, weight, params, backend=backend)

    def stock() -> mx.array:
        return mx.fast.rms_norm(x.astype(mx.bfloat16), norm, s.eps) @ weight.weight.T

    def packed(backend: Backend) -> Sequence[mx.array]:
        found = []
        for each in (x, xs):
            if _fits_halves(s, device, len(each)):
                t, logits = router.router(each, norm, weight, params, packed=True, backend=backend)
                found += [unpack_activation(t, s.hidden), logits]
        return found

    fits = _fits_halves(s, device, 1) or _fits_halves(s, device, s.batch)
    return Case(router.NAME, run, weight.weight.nbytes, EXACT, stock, batch, packed if fits else None)


def _gather(x: mx.array, experts: Experts, picks: mx.array) -> mx.array:
    if experts.blocks is None or experts.scales is None:
        return x
    return mx.gather_qmm(
        x, experts.blocks, experts.scales, None, rhs_indices=picks, transpose=True, group_size=32, bits=4, mode="mxfp4"
    )


def _fits_halves(s: Shapes, device: Backend, batch: int) -> bool:
    return fits_halves(s.hidden, s.inner, s.top_k, tuning_for(device.family), batch)


def _decode_experts(s: Shapes) -> tuple[int, mx.array, mx.array]:
    count = min(s.experts, MOST_EXPERTS)
    return count, normal(1, count), normal(1, 8, s.hidden // 32, 4)


def _moe_gate_up(s: Shapes, device: Backend) -> Case:
    count, logits, t = _decode_experts(s)
    weights, params = experts(count, 2 * s.inner, s.hidden), params_of(s)
    picks = mx.argsort(-logits, axis=-1)[:, : s.top_k].astype(mx.uint32)
    x = normal(1, 1, 1, s.hidden, dtype=mx.bfloat16)
    ts, all_logits = normal(s.batch, 8, s.hidden // 32, 4), normal(s.batch, count)

    halves, all_halves = pack_activation(normal(1, s.hidden)), pack_activation(normal(s.batch, s.hidden))
    mx.eval(halves, all_halves)

    def take(t: mx.array, logits: mx.array, backend: Backend) -> Sequence[mx.array]:
        h, chosen, shares = moe.moe_gate_up(t, logits, weights, params, top_k=s.top_k, backend=backend)
        used = t.shape[0] * s.top_k
        return [unpack_activation(h, s.inner) if t.ndim == 2 else h, chosen[:used], shares[:used]]

    def run(backend: Backend) -> Sequence[mx.array]:
        return take(t, logits, backend)

    def batch(backend: Backend) -> Sequence[mx.array]:
        return take(ts, all_logits, backend)

    def packed(backend: Backend) -> Sequence[mx.array]:
        return take(halves, logits, backend)

    def batch_packed(backend: Backend) -> Sequence[mx.array]:
        return take(all_halves, all_logits, backend)

    def stock() -> mx.array:
        return _gather(x, weights, picks)

    least = expert_bytes(weights, s.top_k)
    return Case(moe.GATE_UP, run, least, EXACT, stock, batch, *_packed(s, device, packed, batch_packed))


def _packed(s: Shapes, device: Backend, one: Run, several: Run) -> tuple[Run | None, Run | None]:
    """What is compared in halves, one sequence or several or both, and what is timed, one."""
    runs = [run for run, count in ((one, 1), (several, s.batch)) if _fits_halves(s, device, count)]

    def compared(backend: Backend) -> Sequence[mx.array]:
        return [array for run in runs for array in run(backend)]

    return compared if runs else None, one if one in runs else None


def _moe_down(s: Shapes, device: Backend) -> Case:
    count, logits, _ = _decode_experts(s)
    weights, x = experts(count, s.hidden, s.inner), normal(1, s.hidden)
    chosen = mx.argsort(-logits, axis=-1)[:, : s.top_k]
    picks, shares = padded(chosen.reshape(-1).astype(mx.int32)), padded(mx.softmax(mx.arange(s.top_k) * 0.3))
    h = normal(1, s.top_k, 8, s.inner // 32, 4)
    inner = normal(1, s.top_k, 1, s.inner, dtype=mx.bfloat16)
    all_picks = padded(mx.argsort(normal(s.batch, count), axis=-1)[:, : s.top_k].reshape(-1).astype(mx.int32))
    all_shares = padded(mx.softmax(normal(s.batch, s.top_k), axis=-1).reshape(-1))
    hs, xs = normal(s.batch, s.top_k, 8, s.inner // 32, 4), normal(s.batch, s.hidden)
    halves, all_halves = (pack_activation(normal(each * s.top_k, s.inner)) for each in (1, s.batch))
    mx.eval(picks, shares, all_picks, all_shares, halves, all_halves)

    def run(backend: Backend) -> Sequence[mx.array]:
        return [moe.moe_down(h, picks, shares, weights, x, backend=backend)]

    def batch(backend: Backend) -> Sequence[mx.array]:
        return [moe.moe_down(hs, all_picks, all_shares, weights, xs, backend=backend)]

    def stock() -> mx.array:
        return _gather(inner, weights, chosen.astype(mx.uint32))

    def packed(backend: Backend) -> Sequence[mx.array]:
        return [moe.moe_down(halves, picks, shares, weights, x, backend=backend)]

    def batch_packed(backend: Backend) -> Sequence[mx.array]:
        return [moe.moe_down(all_halves, all_picks, all_shares, weights, xs, backend=backend)]

    least = expert_bytes(weights, s.top_k)
    return Case(moe.DOWN, run, least, EXACT, stock, batch, *_packed(s, device, packed, batch_packed))


def _head(s: Shapes, _backend: Backend) -> Case:
    rows = min(s.vocabulary, MOST_VOCABULARY)
    weight, norm = linear(rows, s.hidden), normal(s.hidden, dtype=mx.bfloat16)
    x, xs, params = normal(1, s.hidden), normal(s.batch, s.hidden), params_of(s)
    valid = rows - rows // 8

    def run(backend: Backend) -> Sequence[mx.array]:
        return [head.head(x, norm, weight, params, valid=valid, backend=backend)]

    def batch(backend: Backend) -> Sequence[mx.array]:
        return [head.head(xs, norm, weight, params, valid=valid, backend=backend)]

    def stock() -> mx.array:
        return mx.fast.rms_norm(x.astype(mx.bfloat16), norm, s.eps) @ weight.weight.T

    return Case(head.NAME, run, weight.weight.nbytes * valid // rows, EXACT, stock, batch)


def _top_tokens(s: Shapes, _backend: Backend) -> Case:
    logits = normal(1, s.vocabulary)
    count = min(8, s.vocabulary)

    def run(backend: Backend) -> Sequence[mx.array]:
        return top_tokens.top_tokens(logits, count, backend=backend)

    return Case(top_tokens.NAME, run, logits.nbytes, EXACT, lambda: mx.argpartition(logits, -count, axis=-1))


def _draws() -> Draws:
    """One row each: greedy, plain, the candidates' top-k with top-p and min-p, and what needs the whole row."""
    return Draws(
        inverse=(1e30, 1.0, 1.25, 0.5),
        number=(0.0, 0.37, 0.61, 0.83),
        top_k=(0, 0, 40, 100),
        top_p=(1.0, 1.0, 0.9, 0.95),
        min_p=(0.0, 0.0, 0.01, 0.0),
    )


def _draw_parts(s: Shapes, backend: Backend) -> Case:
    vocabulary = max(s.vocabulary, top_tokens.MAX_COUNT)
    logits, settings = normal(4, vocabulary, std=3.0), _draws().settings(vocabulary)
    chunk = tuning_for(backend.family).top_chunk

    def run(chosen: Backend) -> Sequence[mx.array]:
        if chosen.name == "stock":
            return [draw_parts_twin(logits, settings, chunk)]
        return [draw.draw_parts(logits, settings, backend=chosen)]

    return Case(draw.PARTS, run, logits.nbytes, EXACT, lambda: mx.logsumexp(logits, axis=-1))


def _draw_token(s: Shapes, backend: Backend) -> Case:
    vocabulary = max(s.vocabulary, top_tokens.MAX_COUNT)
    logits, draws = normal(4, vocabulary, std=3.0), _draws()
    settings = draws.settings(vocabulary)
    parts = draw_parts_twin(logits, settings, tuning_for(backend.family).top_chunk)
    best = top_tokens.top_tokens_twin(logits, top_tokens.MAX_COUNT)
    mx.eval(settings, parts, best)

    def run(chosen: Backend) -> Sequence[mx.array]:
        if chosen.name == "stock":
            drawn = draw_twin(logits, logits, draws, logprobs=True)
        else:
            drawn = draw.draw_token(logits, parts, logits, parts, settings, best, backend=chosen)
        return [drawn.tokens, drawn.peaks, *(array for array in (drawn.logprobs, drawn.totals) if array is not None)]

    return Case(draw.TOKEN, run, parts.nbytes, EXACT)


def _position(s: Shapes) -> tuple[mx.array, mx.array, mx.array, mx.array]:
    k, v = (normal(1, s.kv_heads, HEAD_DIM, dtype=mx.bfloat16) for _ in range(2))
    return normal(1, s.heads, HEAD_DIM), k, v, normal(s.heads, dtype=mx.bfloat16)


def _sdpa(q: mx.array, k: mx.array, v: mx.array, sinks: mx.array) -> mx.array:
    return mx.fast.scaled_dot_product_attention(
        q.astype(mx.bfloat16).reshape(1, -1, 1, HEAD_DIM), k[None], v[None], scale=HEAD_DIM**-0.5, sinks=sinks
    )


def _attention_full(s: Shapes, _backend: Backend) -> Case:
    q, k, v, sinks = _position(s)
    main_k, main_v = (normal(s.kv_heads, s.keys, HEAD_DIM, dtype=mx.bfloat16) for _ in range(2))
    tail_k, tail_v = (normal(s.kv_heads, 16, HEAD_DIM, dtype=mx.bfloat16) for _ in range(2))
    n_tail = 5
    lengths = attention.cache_lengths(offset=s.keys + n_tail, n_main=s.keys, n_tail=n_tail, capacity=s.keys, row=0)

    def run(backend: Backend) -> Sequence[mx.array]:
        out, new_k, new_v = attention.attention_full(
            q, k, v, main_k, main_v, tail_k, tail_v, sinks, lengths, backend=backend
        )
        return [out, new_k[:, : n_tail + 1], new_v[:, : n_tail + 1]]

    return Case(attention.FULL, run, 2 * main_k.nbytes, EXACT, lambda: _sdpa(q, main_k, main_v, sinks))


def _attention_merge(s: Shapes, backend: Backend) -> Case:
    parts = attention.parts_for(s.keys, tuning_for(backend.family))
    part = mx.abs(normal(s.heads, parts, PART)) + 0.5
    sinks = normal(s.heads, dtype=mx.bfloat16)
    mx.eval(part)

    def run(chosen: Backend) -> Sequence[mx.array]:
        return [attention.attention_merge([part], sinks, backend=chosen)]

    return Case(attention.MERGE, run, part.nbytes, EXACT)


def _attention_sliding(s: Shapes, _backend: Backend) -> Case:
    q, k, v, sinks = _position(s)
    ring_k, ring_v = (normal(s.kv_heads, s.window, HEAD_DIM, dtype=mx.bfloat16) for _ in range(2))
    lengths = attention.cache_lengths(offset=3 * s.window + 7, n_main=0, n_tail=0, capacity=1, row=0)

    def run(backend: Backend) -> Sequence[mx.array]:
        return attention.attention_sliding(q, k, v, ring_k, ring_v, sinks, lengths, backend=backend)

    return Case(attention.SLIDING, run, 4 * ring_k.nbytes, EXACT, lambda: _sdpa(q, ring_k, ring_v, sinks))


def _prompt(s: Shapes, backend: Backend) -> tuple[int, pr.Routing]:
    count = min(s.experts, MOST_EXPERTS)
    logits = normal(s.tokens, count) + normal(count)
    picks, weights = pr.prefill_topk_twin(logits, top_k=min(s.top_k, count))
    rows = prefill_tuning_for(backend.family).gate_up.rows
    routing = pr.prefill_sort_twin(picks, weights, experts=count, tile_rows=rows)
    mx.eval(picks, weights, routing.order, routing.inverse, routing.tiles)
    return count, routing


def _prefill_topk(s: Shapes, _backend: Backend) -> Case:
    logits = normal(s.tokens, s.experts)

    def run(backend: Backend) -> Sequence[mx.array]:
        return pr.prefill_topk(logits, top_k=s.top_k, backend=backend)

    return Case(pr.TOPK, run, logits.nbytes, EXACT)


def _prefill_sort(s: Shapes, backend: Backend) -> Case:
    picks, weights = pr.prefill_topk_twin(normal(s.tokens, s.experts) + normal(s.experts), top_k=s.top_k)
    mx.eval(picks, weights)
    tuning = prefill_tuning_for(backend.family)

    def run(chosen: Backend) -> Sequence[mx.array]:
        routing = pr.prefill_sort(picks, weights, experts=s.experts, backend=chosen, tuning=tuning)
        return [routing.order, routing.inverse, routing.tiles]

    return Case(pr.SORT, run, 3 * picks.nbytes, 0.0)


def _prefill_gate_up(s: Shapes, backend: Backend) -> Case:
    count, routing = _prompt(s, backend)
    weights, params = experts(count, 2 * s.inner, s.hidden), params_of(s)
    x = normal(s.tokens, s.hidden, dtype=mx.bfloat16)

    def run(chosen: Backend) -> Sequence[mx.array]:
        return [pm.prefill_moe_gate_up(x, weights, routing, params, backend=chosen)]

    return Case(pm.GATE_UP, run, expert_bytes(weights, count), ROUNDED)


def _prefill_down(s: Shapes, backend: Backend) -> Case:
    count, routing = _prompt(s, backend)
    weights = experts(count, s.hidden, s.inner)
    h = normal(routing.order.size, s.inner, dtype=mx.bfloat16)

    def run(chosen: Backend) -> Sequence[mx.array]:
        return [pm.prefill_moe_down(h, weights, routing, backend=chosen)]

    return Case(pm.DOWN, run, expert_bytes(weights, count), ROUNDED)


def _prefill_sum(s: Shapes, backend: Backend) -> Case:
    _, routing = _prompt(s, backend)
    y, residual = normal(routing.order.size, s.hidden, dtype=mx.bfloat16), normal(s.tokens, s.hidden)

    def run(chosen: Backend) -> Sequence[mx.array]:
        return [pm.prefill_moe_sum(y, routing, residual, backend=chosen)]

    return Case(pm.SUM, run, y.nbytes + 2 * residual.nbytes, EXACT)


def _prefill_rope(s: Shapes, _backend: Backend) -> Case:
    columns = (s.heads + 2 * s.kv_heads) * HEAD_DIM
    x, bias = normal(s.tokens, columns, dtype=mx.bfloat16), normal(columns, dtype=mx.bfloat16)
    rope = normal(s.tokens, HEAD_DIM)

    def run(backend: Backend) -> Sequence[mx.array]:
        return pq.prefill_rope(x, bias, rope, heads=s.heads, kv_heads=s.kv_heads, backend=backend)

    return Case(pq.ROPE, run, 2 * x.nbytes, ROUNDED)


def _prefill_attention(s: Shapes, _backend: Backend) -> Case:
    q = normal(1, s.tokens, s.heads, HEAD_DIM, dtype=mx.bfloat16)
    k, v = (normal(1, s.kv_heads, 2 * s.tokens, HEAD_DIM, dtype=mx.bfloat16) for _ in range(2))
    sinks = normal(s.heads, dtype=mx.bfloat16)

    def run(backend: Backend) -> Sequence[mx.array]:
        return [
            pa.prefill_attention(q, k, v, sinks, offset=s.tokens // 2, window=window, backend=backend)
            for window in (None, s.window)
        ]

    return Case(pa.ATTENTION, run, 2 * q.nbytes + 2 * k.nbytes, ROUNDED)


CASES: Mapping[str, Callable[[Shapes, Backend], Case]] = {
    qkv.NAME: _qkv_rope,
    attention.FULL: _attention_full,
    attention.SLIDING: _attention_sliding,
    attention.MERGE: _attention_merge,
    attention_out.NAME: _attention_out,
    router.NAME: _router,
    moe.GATE_UP: _moe_gate_up,
    moe.DOWN: _moe_down,
    head.NAME: _head,
    top_tokens.NAME: _top_tokens,
    draw.PARTS: _draw_parts,
    draw.TOKEN: _draw_token,
    pr.TOPK: _prefill_topk,
    pr.SORT: _prefill_sort,
    pm.GATE_UP: _prefill_gate_up,
    pm.DOWN: _prefill_down,
    pm.SUM: _prefill_sum,
    pq.ROPE: _prefill_rope,
    pa.ATTENTION: _prefill_attention,
}
"""Every kernel that ships, in the order a token meets them."""
