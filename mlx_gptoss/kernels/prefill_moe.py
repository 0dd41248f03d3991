"""The experts of a prompt: grouped MXFP4 products over sorted pairs (metal/prefill_moe_*.metal)."""

from __future__ import annotations

from dataclasses import replace

import mlx.core as mx

from mlx_gptoss.errors import KernelError
from mlx_gptoss.kernels.backend import Backend
from mlx_gptoss.kernels.layout import check_array, expert_arguments
from mlx_gptoss.kernels.prefill_routing import Routing
from mlx_gptoss.kernels.prefill_tuning import MOST_MEMORY, PrefillTuning, Tile, prefill_tuning_for
from mlx_gptoss.kernels.source import load_kernel
from mlx_gptoss.weights import MXFP4_BITS, MXFP4_GROUP, Experts

GATE_UP = "prefill_moe_gate_up"
DOWN = "prefill_moe_down"
SUM = "prefill_moe_sum"
TOGETHER = ".together"
_TILED = (mx.bfloat16, mx.float16)
_FLOATS = (mx.bfloat16, mx.float16, mx.float32)


def prefill_moe_gate_up(
    x: mx.array,
    gate_up: Experts,
    routing: Routing,
    params: mx.array,
    *,
    backend: Backend,
    tuning: PrefillTuning | None = None,
) -> mx.array:
    """swiglu(x W^T + b) of every pair, by sorted slot: [R, I] in x's dtype.

    x: [L, K] bfloat16 or float16 (float32 and dense experts run on the twin); gate_up: E matrices [2 I, K], rows gate,
    linear, gate, ...; params: `model_params`. Raises KernelError.
    """
    check_array("x", x, (None, None), _FLOATS, GATE_UP)
    top_k = routing.picks.shape[1]
    if x.shape[0] != routing.picks.shape[0]:
        raise KernelError("x has the routing's tokens", expected=str(routing.picks.shape[0]), got=str(x.shape[0]))
    arguments = expert_arguments(gate_up, x.shape[1], GATE_UP)
    if backend.name == "stock" or x.dtype not in _TILED or gate_up.blocks is None:
        return prefill_moe_gate_up_twin(x, gate_up, routing, params)
    if gate_up.rows % 4:
        raise KernelError("I is even", got=str(gate_up.rows // 2), where=GATE_UP)
    tile = _tile_of((tuning or prefill_tuning_for(backend.family)).gate_up, gate_up, x.shape[1], routing)
    return backend.launch(
        load_kernel(GATE_UP + (TOGETHER if tile.buffers else "")),
        [x, arguments.weight, arguments.scales, gate_up.bias, routing.order, routing.tiles, params],
        [
            ("T", x.dtype),
            ("B", gate_up.bias.dtype),
            ("K", x.shape[1]),
            ("N", gate_up.rows),
            ("TOPK", top_k),
            *_tile_arguments(tile, x.shape[1], x.dtype),
        ],
        _grid(tile, gate_up.rows, routing),
        (tile.threads, 1, 1),
        [(routing.order.size, gate_up.rows // 2)],
        [x.dtype],
    )[0]


def prefill_moe_gate_up_twin(x: mx.array, gate_up: Experts, routing: Routing, params: mx.array) -> mx.array:
    """The same in plain mx."""
    owners = routing.picks.reshape(-1)[routing.order]
    y = _grouped(x[routing.order // routing.picks.shape[1]], gate_up, owners).astype(mx.float32)
    y = y + gate_up.bias[owners].astype(mx.float32)
    limit, alpha = params[1], params[2]
    gate = mx.minimum(y[..., ::2], limit)
    linear = mx.clip(y[..., 1::2], -limit, limit)
    return (gate * mx.sigmoid(alpha * gate) * (linear + 1.0)).astype(x.dtype)


def prefill_moe_down(
    h: mx.array, down: Experts, routing: Routing, *, backend: Backend, tuning: PrefillTuning | None = None
) -> mx.array:
    """h W^T + b of every pair, by sorted slot: [R, N] in h's dtype.

    h: [R, K], as `prefill_moe_gate_up` gives it; down: E matrices [N, K]. Raises KernelError.
    """
    check_array("h", h, (routing.order.size, None), _FLOATS, DOWN)
    arguments = expert_arguments(down, h.shape[1], DOWN)
    if backend.name == "stock" or h.dtype not in _TILED or down.blocks is None:
        return prefill_moe_down_twin(h, down, routing)
    if down.rows % 2:
        raise KernelError("N is even", got=str(down.rows), where=DOWN)
    tile = _tile_of((tuning or prefill_tuning_for(backend.family)).down, down, h.shape[1], routing)
    return backend.launch(
        load_kernel(DOWN + (TOGETHER if tile.buffers else "")),
        [h, arguments.weight, arguments.scales, down.bias, routing.tiles],
        [
            ("T", h.dtype),
            ("B", down.bias.dtype),
            ("K", h.shape[1]),
            ("N", down.rows),
            *_tile_arguments(tile, h.shape[1], h.dtype),
        ],
        _grid(tile, down.rows, routing),
        (tile.threads, 1, 1),
        [(routing.order.size, down.rows)],
        [h.dtype],
    )[0]


def prefill_moe_down_twin(h: mx.array, down: Experts, routing: Routing) -> mx.array:
    """The same in plain mx."""
    owners = routing.picks.reshape(-1)[routing.order]
    y = _grouped(h, down, owners).astype(mx.float32)
    return (y + down.bias[owners].astype(mx.float32)).astype(h.dtype)


def prefill_moe_sum(
    y: mx.array, routing: Routing, residual: mx.array, *, backend: Backend, tuning: PrefillTuning | None = None
) -> mx.array:
    """residual plus each token's weighted sum of its experts' rows: float32 [L, N].

    y: [R, N], by sorted slot; residual: [L, N] float32. Raises KernelError.
    """
    length, top_k = routing.picks.shape
    check_array("residual", residual, (length, None), (mx.float32,), SUM)
    check_array("y", y, (length * top_k, residual.shape[1]), _FLOATS, SUM)
    columns = residual.shape[1]
    if columns % 4:
        raise KernelError("N is a multiple of 4", got=str(columns), where=SUM)
    if backend.name == "stock" or length * top_k < 8:
        return prefill_moe_sum_twin(y, routing, residual)
    threads = (tuning or prefill_tuning_for(backend.family)).sum_threads
    groups = -(-columns // (4 * threads))
    return backend.launch(
        load_kernel(SUM),
        [y, routing.inverse, routing.weights.reshape(-1), residual],
        [("T", y.dtype), ("N", columns), ("TOPK", top_k), ("THREADS", threads)],
        (groups * threads, length, 1),
        (threads, 1, 1),
        [(length, columns)],
        [mx.float32],
    )[0]


def prefill_moe_sum_twin(y: mx.array, routing: Routing, residual: mx.array) -> mx.array:
    """The same in plain mx."""
    length, top_k = routing.picks.shape
    rows = y[routing.inverse].astype(mx.float32).reshape(length, top_k, -1)
    return residual + (routing.weights[..., None] * rows).sum(axis=1)


def _grouped(x: mx.array, experts: Experts, owners: mx.array) -> mx.array:
    """Row i of x times expert owners[i]'s matrix: [R, N]. Owners ascend."""
    if experts.blocks is None or experts.scales is None or mx.cuda.is_available():
        # MLX's CUDA build decodes anew for every row in gather_qmm: decoding once is faster by far, if larger.
        dtype = mx.float32 if mx.default_device() == mx.cpu else x.dtype  # all that gather_mm takes on a CPU
        weight = mx.swapaxes(_dense(experts, dtype), -1, -2)
        # Told that owners ascend, MLX's CUDA build (0.32.4) mixes experts up.
        ascend = not mx.cuda.is_available()
        return mx.gather_mm(x.astype(dtype)[:, None], weight, rhs_indices=owners, sorted_indices=ascend).squeeze(1)
    return mx.gather_qmm(
        x[:, None],
        experts.blocks,
        experts.scales,
        rhs_indices=owners,
        transpose=True,
        group_size=MXFP4_GROUP,
        bits=MXFP4_BITS,
        mode="mxfp4",
        sorted_indices=True,
    ).squeeze(1)


def _dense(experts: Experts, dtype: mx.Dtype) -> mx.array:
    if experts.blocks is not None and experts.scales is not None:
        return mx.dequantize(
            experts.blocks, experts.scales, group_size=MXFP4_GROUP, bits=MXFP4_BITS, mode="mxfp4", dtype=dtype
        )
    if experts.weight is None:
        raise KernelError("experts have blocks and scales, or a dense weight")
    return experts.weight.astype(dtype)


def _tile_of(tile: Tile, experts: Experts, inner: int, routing: Routing) -> Tile:
    """The tile, without `buffers` where these weights cannot be taken a pair of blocks a time, scales by 16 bytes, or
    would need more threadgroup memory than there is."""
    if tile.rows != routing.tile_rows:
        raise KernelError("the tiles were cut for other rows", expected=str(tile.rows), got=str(routing.tile_rows))
    whole = inner % (2 * MXFP4_GROUP) == 0 and experts.rows * inner % (16 * MXFP4_GROUP) == 0
    return tile if whole and tile.memory(inner) <= MOST_MEMORY else replace(tile, buffers=0)


def _tile_arguments(tile: Tile, inner: int, dtype: mx.Dtype) -> list[tuple[str, int | bool]]:
    together = [("BUFFERS", tile.buffers), ("MEMORY", tile.memory(inner))] if tile.buffers else []
    return [
        ("BM", tile.rows),
        ("BN", tile.columns),
        ("SIMD_M", tile.simd_rows),
        ("SIMD_N", tile.simd_columns),
        ("PARTS", tile.parts),
        *together,
        ("SUBNORMAL", tile.subnormal and dtype == mx.bfloat16),
    ]


def _grid(tile: Tile, rows: int, routing: Routing) -> tuple[int, int, int]:
    return (-(-rows // tile.columns) * tile.threads, routing.tiles.shape[0], 1)
