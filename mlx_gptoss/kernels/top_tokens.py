"""The best few of a row of logits without sorting it (metal/top_tokens.metal)."""

from __future__ import annotations

import mlx.core as mx

from mlx_gptoss.errors import KernelError
from mlx_gptoss.kernels.backend import Backend
from mlx_gptoss.kernels.layout import SMALLEST_INPUT, check_array
from mlx_gptoss.kernels.source import load_kernel
from mlx_gptoss.kernels.tuning import tuning_for

NAME = "top_tokens"
MAX_COUNT = 64
SIMDGROUPS = 8


def top_tokens(logits: mx.array, count: int, *, backend: Backend) -> tuple[mx.array, mx.array]:
    """The `count` (1..64) largest logits of each row and their ids: float32 and int32 [S, count], best first.

    Ties go to the lower id; -inf is never chosen: value -inf and id -1 fill a row that runs out.
    logits: [S, N] float32. Raises KernelError.
    """
    check_array("logits", logits, (None, None), (mx.float32,), NAME)
    if not 1 <= count <= min(MAX_COUNT, logits.shape[1]):
        raise KernelError("count is 1 to 64, and at most the row", got=str(count), where=NAME)
    if backend.name == "stock" or logits.size < SMALLEST_INPUT:
        return top_tokens_twin(logits, count)
    chunk = tuning_for(backend.family).top_chunk
    values, ids = _stage(logits, logits.view(mx.int32), count, chunk, backend, first=True)
    while values.shape[1] > 1:
        flat, flat_ids = values.reshape(values.shape[0], -1), ids.reshape(values.shape[0], -1)
        if flat.size < SMALLEST_INPUT:
            room = [(0, 0), (0, SMALLEST_INPUT - flat.shape[1])]
            flat, flat_ids = mx.pad(flat, room, constant_values=-mx.inf), mx.pad(flat_ids, room, constant_values=-1)
        size = max(chunk, 4 * count) if flat.shape[1] > 8 * chunk else flat.shape[1]
        values, ids = _stage(flat, flat_ids, count, max(size, SMALLEST_INPUT), backend, first=False)
    return values[:, 0], ids[:, 0]


def _stage(
    values: mx.array, ids: mx.array, count: int, chunk: int, backend: Backend, *, first: bool
) -> tuple[mx.array, mx.array]:
    batch, size = values.shape
    groups = -(-size // chunk)
    threads = 32 * SIMDGROUPS
    shape = (batch, groups, count)
    best, best_ids = backend.launch(
        load_kernel(NAME),
        [values, ids],
        [("N", size), ("CHUNK", chunk), ("COUNT", count), ("SIMDGROUPS", SIMDGROUPS), ("FIRST", first)],
        (groups * threads, batch, 1),
        (threads, 1, 1),
        [shape, shape],
        [mx.float32, mx.int32],
    )
    return best, best_ids


def top_tokens_twin(logits: mx.array, count: int) -> tuple[mx.array, mx.array]:
    """The same in plain mx."""
    ids = mx.argsort(-logits, axis=-1)[:, :count].astype(mx.int32)
    values = mx.take_along_axis(logits, ids, axis=-1)
    return values, mx.where(values == -mx.inf, -1, ids)
