"""Draws the next token of every row of a batch, on the device, from one uniform number a row.

Each row has its own parameters and its own random stream, keyed by its seed and the token's index, so a row's
tokens do not depend on its neighbours, and a redone step draws the same number. The draw itself is the kernels'
(kernels/draw.py): two launches, four with top-k, top-p or min-p.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import mlx.core as mx
import numpy as np

from mlx_gptoss.engine.constraint import Mask, stack_masks
from mlx_gptoss.engine.host_draw import draw_on_host
from mlx_gptoss.engine.row_sampler import LogitEdit, RowSampler
from mlx_gptoss.kernels.backend import Backend, StockBackend
from mlx_gptoss.kernels.draw import draw
from mlx_gptoss.kernels.draw_twin import top_candidates, with_logprobs
from mlx_gptoss.kernels.draws import Drawn, Draws
from mlx_gptoss.kernels.top_tokens import top_tokens

_SHARPEST = 1e30
_REPORTED = 20
"""Alternatives that are found when any are asked for: one kernel serves all requests."""


@dataclass(frozen=True, slots=True)
class Sampled:
    """One step's draw for S rows, lazy. `peak` is each row's largest logit after masking: NaN when its logits are
    broken, -inf when nothing is allowed. Log-probabilities are of the raw logits; `top_*` are sorted, best first."""

    tokens: mx.array  # int32 [S]
    peak: mx.array  # [S]
    logprobs: mx.array | None = None  # float32 [S]
    top_ids: mx.array | None = None  # int32 [S, n]
    top_logprobs: mx.array | None = None  # float32 [S, n]

    def arrays(self) -> list[mx.array]:
        return [
            array
            for array in (self.tokens, self.peak, self.logprobs, self.top_ids, self.top_logprobs)
            if array is not None
        ]


class Sampler:
    """Samples batches with `backend`'s kernels. `blocking` says that waiting for the device costs nothing, because the
    device is the CPU: then the draw is numpy's."""

    def __init__(self, blocking: bool | None = None, backend: Backend | None = None) -> None:
        on_cpu = mx.default_device() == mx.Device(mx.cpu)
        self.backend: Backend = StockBackend() if backend is None else backend
        self._kernels = self.backend.name != "stock"
        self._settings: tuple[Draws, int, mx.array] | None = None
        self.blocking = on_cpu and not self._kernels if blocking is None else blocking
        # Every launch costs the host time. (On a CPU, compiling would need a C++ compiler at run time.)
        self._edit: Callable[..., mx.array] = _edit if on_cpu else mx.compile(_edit)
        self._mask: Callable[..., mx.array] = _mask if on_cpu else mx.compile(_mask)

    def may_block(self, row: RowSampler) -> bool:
        """Whether sampling this row waits for its logits."""
        return self.blocking and not row.greedy

    def sample(
        self, logits: mx.array, rows: Sequence[RowSampler], masks: Sequence[Mask | None] | None = None
    ) -> Sampled:
        """Draws one token for each row of `logits` [S, vocab] (any float dtype). `masks` as TokenConstraint's."""
        edits = [row.edit() for row in rows]
        masked = masks is not None and any(mask is not None for mask in masks)
        reported = max((row.params.logprobs for row in rows if row.params.logprobs is not None), default=None)
        raw = scores = logits.astype(mx.float32)
        if any(edit is not None for edit in edits):
            scores = self._edit(scores, *_edit_table(edits))
        if masks is not None and masked:
            scores = self._mask(scores, mx.array(stack_masks(list(masks), logits.shape[-1])))
        drawn = self._draw(raw, scores, rows, logprobs=reported is not None)
        if reported is None:
            return Sampled(drawn.tokens, drawn.peaks)
        if drawn.totals is None:
            drawn = with_logprobs(drawn.tokens, drawn.peaks, raw)
        if not reported or drawn.totals is None:
            return Sampled(drawn.tokens, drawn.peaks, drawn.logprobs)
        count = min(reported, raw.shape[-1])
        if self._kernels:
            values, ids = top_tokens(raw, min(_REPORTED, raw.shape[-1]), backend=self.backend)
        else:
            values, ids = top_candidates(raw, count)
        top = values[:, :count] - drawn.totals[:, None]
        return Sampled(drawn.tokens, drawn.peaks, drawn.logprobs, ids[:, :count], top)

    def _draw(self, raw: mx.array, scores: mx.array, rows: Sequence[RowSampler], *, logprobs: bool) -> Drawn:
        if not self._kernels and all(row.greedy for row in rows):
            tokens = mx.argmax(scores, axis=-1).astype(mx.int32)
            return Drawn(tokens, mx.take_along_axis(scores, tokens[:, None], axis=-1)[:, 0])
        if self.blocking:
            return Drawn(mx.array(draw_on_host(np.array(scores), rows)), mx.max(scores, axis=-1))
        edited = raw if scores is not raw else None
        draws, vocab = _draws(rows), scores.shape[-1]
        if self._settings is None or self._settings[:2] != (draws, vocab):
            # Greedy rows ask for the same every time: no array has to come from the host then.
            self._settings = draws, vocab, draws.settings(vocab)
        settings = self._settings[2]
        return draw(scores, draws, raw=edited, logprobs=logprobs, settings=settings, backend=self.backend)


def _draws(rows: Sequence[RowSampler]) -> Draws:
    """A greedy row is one so cold that only its best logits have weight, of which the number 0 picks the first."""
    return Draws(
        inverse=tuple(_SHARPEST if row.greedy else 1.0 / row.params.temperature for row in rows),
        number=tuple(0.0 if row.greedy else row.uniform() for row in rows),
        top_k=tuple(0 if row.greedy else row.params.top_k for row in rows),
        top_p=tuple(1.0 if row.greedy else row.params.top_p for row in rows),
        min_p=tuple(0.0 if row.greedy else row.params.min_p for row in rows),
    )


def _mask(scores: mx.array, masks: mx.array) -> mx.array:
    """-inf where a bit of uint32 [S, words] is 0."""
    bits = (masks[:, :, None] >> mx.arange(32, dtype=mx.uint32)) & 1
    allowed = bits.reshape(scores.shape[0], -1)[:, : scores.shape[1]].astype(mx.bool_)
    return mx.where(allowed, scores, -mx.inf)


def _edit(scores: mx.array, ids: mx.array, factors: mx.array, shifts: mx.array) -> mx.array:
    """Penalties and biases: at each row's ids, divide or multiply by `factors`, then add `shifts`."""
    values = mx.take_along_axis(scores, ids, axis=-1)
    values = mx.where(values > 0, values / factors, values * factors) + shifts
    return mx.put_along_axis(scores, ids, values, axis=-1)


def _edit_table(edits: Sequence[LogitEdit | None]) -> tuple[mx.array, mx.array, mx.array]:
    """ids int32, factors and shifts float32 of the edits, each [S, width]: a power of two, so that few shapes occur."""
    width = 1 << (max(len(edit.ids) for edit in edits if edit is not None) - 1).bit_length()
    ids = np.zeros((len(edits), width), dtype=np.int32)
    factors = np.ones((len(edits), width), dtype=np.float32)
    shifts = np.zeros((len(edits), width), dtype=np.float32)
    for row, edit in enumerate(edits):
        if edit is None:
            continue
        count = len(edit.ids)
        # Padding repeats the last edit: writing the same value twice changes nothing.
        for target, source in ((ids, edit.ids), (factors, edit.factors), (shifts, edit.shifts)):
            target[row, :count] = source
            target[row, count:] = source[-1]
    return mx.array(ids), mx.array(factors), mx.array(shifts)
