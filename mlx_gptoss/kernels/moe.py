"""The experts of a decode step (metal/moe_gate_up.metal, metal/moe_down.metal)."""

from __future__ import annotations

import mlx.core as mx

from mlx_gptoss.errors import KernelError
from mlx_gptoss.kernels.backend import Backend, TemplateValue
from mlx_gptoss.kernels.expert_rows import POWERS_OF_TWO, SUMS_PER_SIMDGROUP, ExpertWork, down_form, gate_up_form
from mlx_gptoss.kernels.halves import pack_activation, packed_size, unpack_activation
from mlx_gptoss.kernels.layout import (
    PICKS_PER_SIMDGROUP,
    SMALLEST_INPUT,
    check_array,
    check_batch,
    expert_arguments,
    padded,
    permute_activation,
    picked_weight,
    unpermute_activation,
)
from mlx_gptoss.kernels.source import load_kernel
from mlx_gptoss.kernels.tuning import Tuning, tuning_for
from mlx_gptoss.weights import Experts

GATE_UP = "moe_gate_up"
DOWN = "moe_down"
_ACTIVATIONS = (mx.float32, mx.float16)


def moe_gate_up(
    t: mx.array,
    logits: mx.array,
    gate_up: Experts,
    params: mx.array,
    *,
    top_k: int,
    backend: Backend,
    tuning: Tuning | None = None,
) -> tuple[mx.array, mx.array, mx.array]:
    """The top_k experts of each sequence and their clamped SwiGLU: (h, picks, weights).

    t: permuted activation [S, 8, K/32, 4] float32 or float16, or packed float16 [S, packed_size(K)] (see `router`);
    logits: [S, E] float32; gate_up: E matrices [2 I, K], rows gate, linear, gate, ...; params: `model_params`.
    h: [S, top_k, 8, I/32, 4] in t's dtype, or packed float16 [S top_k, packed_size(I)] if t is. picks int32 and weights
    float32 (the softmax over the chosen logits) are [max(8, S * top_k)], best first in each sequence, ties to the lower
    expert; what lies beyond S * top_k is undefined. Raises KernelError.
    """
    check_batch(t.shape[0], GATE_UP)
    batch, experts, inner = t.shape[0], gate_up.num_experts, gate_up.rows // 2
    packed = t.ndim == 2
    if packed:
        columns = gate_up.columns
        check_array("t", t, (batch, packed_size(columns)), (mx.float16,), GATE_UP)
    else:
        check_array("t", t, (batch, 8, None, 4), _ACTIVATIONS, GATE_UP)
        columns = t.shape[2] * 32
    check_array("logits", logits, (batch, experts), (mx.float32,), GATE_UP)
    if not 1 <= top_k <= experts:
        raise KernelError("top_k is at most the number of experts", got=str(top_k), where=GATE_UP)
    if inner % 32:
        raise KernelError("I is a multiple of 32", got=str(inner), where=GATE_UP)
    if backend.name == "stock":
        return moe_gate_up_twin(t, logits, gate_up, params, top_k=top_k)
    weights = expert_arguments(gate_up, columns, GATE_UP)
    tuning = tuning or tuning_for(backend.family)
    form = gate_up_form(GATE_UP, ExpertWork(weights.format, columns, top_k, batch, packed), tuning)
    rows = form.rows
    each = rows.passes * rows.rows
    if rows.rows not in POWERS_OF_TWO or each % 2 or each > SUMS_PER_SIMDGROUP:
        raise KernelError("a simdgroup takes pairs of rows, at most 32 in all", got=str(rows), where=GATE_UP)
    threads = 32 * rows.simdgroups
    groups = -(-2 * inner // (rows.simdgroups * each))
    table = (max(SMALLEST_INPUT, batch * top_k),)
    template: list[tuple[str, TemplateValue]] = [
        ("B", gate_up.bias.dtype),
        ("FORMAT", weights.format),
        ("K", columns),
        ("I", inner),
        ("E", experts),
        ("TOPK", top_k),
        ("ROWS", rows.rows),
        ("SIMDGROUPS", rows.simdgroups),
        ("UNROLL", rows.unroll),
        ("PASSES", rows.passes),
    ]
    if packed and batch > 1:
        template.append(("S", batch))
    elif not packed:
        kinds = ("A", t.dtype), ("W", weights.weight.dtype), ("Q", weights.scales.dtype)
        template += [*kinds, ("S", batch), ("STAGED", form.staged)]
    h, picks, shares = backend.launch(
        load_kernel(form.text),
        [t, padded(logits.reshape(-1)), weights.weight, weights.scales, gate_up.bias, params],
        template,
        (groups * threads, batch * top_k, 1),
        (threads, 1, 1),
        [(batch * top_k, packed_size(inner)) if packed else (batch, top_k, 8, inner // 32, 4), table, table],
        [t.dtype, mx.int32, mx.float32],
    )
    return h, picks, shares


def moe_gate_up_twin(
    t: mx.array, logits: mx.array, gate_up: Experts, params: mx.array, *, top_k: int
) -> tuple[mx.array, mx.array, mx.array]:
    """The same in plain mx, float32 throughout."""
    picks = mx.argsort(-logits, axis=-1)[:, :top_k]
    shares = mx.softmax(mx.take_along_axis(logits, picks, axis=-1), axis=-1, precise=True)
    packed = t.ndim == 2
    x = unpack_activation(t, gate_up.columns) if packed else unpermute_activation(t).astype(mx.float32)
    y = (picked_weight(gate_up, picks) @ x[:, None, :, None]).squeeze(-1) + gate_up.bias[picks].astype(mx.float32)
    limit, alpha = params[1], params[2]
    gate = mx.minimum(y[..., ::2], limit)
    linear = mx.clip(y[..., 1::2], -limit, limit)
    h = gate * mx.sigmoid(alpha * gate) * (linear + 1.0)
    flat = padded(picks.reshape(-1).astype(mx.int32)), padded(shares.reshape(-1))
    return pack_activation(h.reshape(-1, h.shape[-1])) if packed else permute_activation(h).astype(t.dtype), *flat


def moe_down(
    h: mx.array,
    picks: mx.array,
    weights: mx.array,
    down: Experts,
    x: mx.array,
    *,
    backend: Backend,
    tuning: Tuning | None = None,
) -> mx.array:
    """x plus the weighted sum of the chosen experts' down projections: float32 [S, N].

    h, picks, weights: as `moe_gate_up` gives them, h packed or not; down: E matrices [N, K]; x: residual stream [S, N]
    float32. Raises KernelError.
    """
    packed, batch = h.ndim == 2, x.shape[0]
    top_k = h.shape[0] // max(1, batch) if packed else h.shape[1]
    check_batch(batch, DOWN)
    if packed:
        columns = down.columns
        check_array("h", h, (batch * top_k, packed_size(columns)), (mx.float16,), DOWN)
    else:
        check_array("h", h, (batch, None, 8, None, 4), _ACTIVATIONS, DOWN)
        columns = h.shape[3] * 32
    check_array("picks", picks, (max(SMALLEST_INPUT, batch * top_k),), (mx.int32,), DOWN)
    check_array("weights", weights, (max(SMALLEST_INPUT, batch * top_k),), (mx.float32,), DOWN)
    check_array("x", x, (batch, down.rows), (mx.float32,), DOWN)
    if backend.name == "stock":
        return moe_down_twin(h, picks, weights, down, x)
    arguments = expert_arguments(down, columns, DOWN)
    tuning = tuning or tuning_for(backend.family)
    form = down_form(DOWN, ExpertWork(arguments.format, columns, top_k, batch, packed), tuning)
    rows = form.rows
    if packed and rows.share > 1:
        raise KernelError("packed activations are not shared out", expected="see `takes_halves`", where=DOWN)
    if rows.simdgroups % rows.share:
        raise KernelError(
            "the simdgroups are whole shares", expected=f"a multiple of {rows.share}", got=str(rows), where=DOWN
        )
    if batch > 1 and batch * top_k > PICKS_PER_SIMDGROUP:
        raise KernelError("several sequences have at most 32 picks", got=f"{batch} x {top_k}", where=DOWN)
    if batch * rows.rows > SUMS_PER_SIMDGROUP:
        raise KernelError("a simdgroup writes at most 32 sums", got=f"{batch} x {rows}", where=DOWN)
    if rows.rows not in POWERS_OF_TWO or (batch == 1 and -(-top_k // rows.share) * rows.rows > SUMS_PER_SIMDGROUP):
        raise KernelError(
            "a simdgroup takes 1, 2, 4, 8 or 16 rows of at most 32 / rows picks", got=str(rows), where=DOWN
        )
    threads = 32 * rows.simdgroups
    groups = -(-down.rows // (rows.simdgroups // rows.share * rows.rows))
    template: list[tuple[str, TemplateValue]] = [
        ("B", down.bias.dtype),
        ("FORMAT", arguments.format),
        ("K", columns),
        ("N", down.rows),
        ("TOPK", top_k),
        ("ROWS", rows.rows),
        ("SIMDGROUPS", rows.simdgroups),
        ("UNROLL", rows.unroll),
    ]
    if packed and batch > 1:
        template.append(("S", batch))
    elif not packed:
        kinds = ("A", h.dtype), ("W", arguments.weight.dtype), ("Q", arguments.scales.dtype)
        template += [*kinds, ("S", batch), ("SHARE", rows.share), ("STAGED", form.staged)]
    return backend.launch(
        load_kernel(form.text),
        [h, picks, weights, arguments.weight, arguments.scales, down.bias, x],
        template,
        (groups * threads, 1, 1),
        (threads, 1, 1),
        [(batch, down.rows)],
        [mx.float32],
    )[0]


def moe_down_twin(h: mx.array, picks: mx.array, weights: mx.array, down: Experts, x: mx.array) -> mx.array:
    """The same in plain mx, float32 throughout."""
    if h.ndim == 2:
        inner = unpack_activation(h, down.columns).reshape(x.shape[0], -1, down.columns)
    else:
        inner = unpermute_activation(h).astype(mx.float32)
    batch, top_k = inner.shape[:2]
    chosen = picks[: batch * top_k].reshape(batch, top_k)
    shares = weights[: batch * top_k].reshape(batch, top_k, 1)
    y = (picked_weight(down, chosen) @ inner[..., None]).squeeze(-1) + down.bias[chosen].astype(mx.float32)
    return x + (shares * y).sum(axis=1)
