"""Draws a token from each row of logits with one number in [0, 1): metal/draw_parts.metal and draw_token.metal.

Two launches, or four where top-k, top-p or min-p want the row's best candidates (top_tokens).
"""

from __future__ import annotations

import mlx.core as mx

from mlx_gptoss.kernels.backend import Backend
from mlx_gptoss.kernels.draw_twin import chunks_of, draw_parts_twin, draw_twin
from mlx_gptoss.kernels.draws import SETTINGS, Drawn, Draws
from mlx_gptoss.kernels.layout import check_array
from mlx_gptoss.kernels.source import load_kernel
from mlx_gptoss.kernels.top_tokens import MAX_COUNT, top_tokens
from mlx_gptoss.kernels.top_tokens import NAME as TOP
from mlx_gptoss.kernels.tuning import tuning_for

PARTS = "draw_parts"
TOKEN = "draw_token"
DRAW_KERNELS = (PARTS, TOKEN, TOP)
"""All that a draw may launch."""
PART_SIMDGROUPS = 8
TOKEN_SIMDGROUPS = 16


def draw(
    scores: mx.array,
    draws: Draws,
    *,
    raw: mx.array | None = None,
    logprobs: bool = False,
    settings: mx.array | None = None,
    backend: Backend,
) -> Drawn:
    """One token of each row of `scores`, float32 [S, N]; -inf forbids.

    `raw` are the model's own logits where scores are edited ones; `logprobs` asks for the log-probabilities in them.
    `settings` are those of `draws`, made anew when not given. Raises KernelError.
    """
    vocab = scores.shape[-1]
    stock = backend.name == "stock" or vocab < MAX_COUNT
    if stock or (draws.truncated and not tuning_for(backend.family).truncated_draws):
        return draw_twin(scores, scores if raw is None else raw, draws, logprobs=logprobs)
    settings = draws.settings(vocab) if settings is None else settings
    parts = draw_parts(scores, settings, backend=backend)
    if raw is None or not logprobs:
        raw, raw_parts = scores, parts
    else:
        raw_parts = draw_parts(raw, settings, backend=backend)
    best = top_tokens(scores, MAX_COUNT, backend=backend) if draws.truncated else None
    drawn = draw_token(scores, parts, raw, raw_parts, settings, best, backend=backend)
    return drawn if logprobs else Drawn(drawn.tokens, drawn.peaks)


def draw_parts(logits: mx.array, settings: mx.array, *, backend: Backend) -> mx.array:
    """Of each chunk of each row its largest logit, its summed weights at the row's temperature and at 1, and a zero:
    float32 [S, chunks, 4]. logits: [S, N] float32; settings: `Draws.settings`. Raises KernelError.
    """
    check_array("logits", logits, (None, None), (mx.float32,), PARTS)
    rows, vocab = logits.shape
    check_array("settings", settings, (rows, SETTINGS), (mx.float32,), PARTS)
    chunk = tuning_for(backend.family).top_chunk
    if backend.name == "stock":
        return draw_parts_twin(logits, settings, chunk)
    chunks, threads = chunks_of(vocab, chunk), 32 * PART_SIMDGROUPS
    return backend.launch(
        load_kernel(PARTS),
        [logits, settings],
        [("N", vocab), ("CHUNK", chunk), ("SIMDGROUPS", PART_SIMDGROUPS)],
        (chunks * threads, rows, 1),
        (threads, 1, 1),
        [(rows, chunks, 4)],
        [mx.float32],
    )[0]


def draw_token(
    logits: mx.array,
    parts: mx.array,
    raw: mx.array,
    raw_parts: mx.array,
    settings: mx.array,
    best: tuple[mx.array, mx.array] | None,
    *,
    backend: Backend,
) -> Drawn:
    """The tokens, from `draw_parts` of logits and raw and, where a row is truncated, `top_tokens(logits, 64)`.

    Its twin is `draw_twin`, which wants neither. Raises KernelError.
    """
    rows, vocab = logits.shape
    chunk = tuning_for(backend.family).top_chunk
    for name, array, made in (("logits", logits, parts), ("raw", raw, raw_parts)):
        check_array(name, array, (rows, vocab), (mx.float32,), TOKEN)
        check_array("parts", made, (rows, chunks_of(vocab, chunk), 4), (mx.float32,), TOKEN)
    check_array("settings", settings, (rows, SETTINGS), (mx.float32,), TOKEN)
    # Not read without candidates.
    values, ids = (settings, settings.view(mx.int32)) if best is None else best
    if best is not None:
        check_array("best", values, (rows, MAX_COUNT), (mx.float32,), TOKEN)
        check_array("best_ids", ids, (rows, MAX_COUNT), (mx.int32,), TOKEN)
    threads = 32 * TOKEN_SIMDGROUPS
    return Drawn(
        *backend.launch(
            load_kernel(TOKEN),
            [logits, parts, raw, raw_parts, settings, values, ids],
            [
                ("N", vocab),
                ("CHUNK", chunk),
                ("SIMDGROUPS", TOKEN_SIMDGROUPS),
                ("TRUNCATED", best is not None),
            ],
            (rows * threads, 1, 1),
            (threads, 1, 1),
            [(rows,)] * 4,
            [mx.int32, mx.float32, mx.float32, mx.float32],
        )
    )
