"""Continuous batching: what the engine's thread does in one step. Everything here runs on that thread.

A step dispatches the forward pass of every decoding sequence, reads the tokens of the step before while the device
works on it, then dispatches prefill that takes about as long as the step itself: a chunk of one long prompt, or
several short ones. So one token is always in flight, the host's work on a token hides behind the next one, and
prompts delay their neighbours by no more than that.

Where a draw depends on tokens the host must see first (constraints, penalties), the forward pass is still dispatched
before they are read; only the draw waits for them.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence as Rows
from dataclasses import dataclass
from typing import Any

import mlx.core as mx

from mlx_gptoss.engine.constraint import Mask, single_token_mask
from mlx_gptoss.engine.generation import TokenEvent
from mlx_gptoss.engine.options import EngineOptions
from mlx_gptoss.engine.pace import SMALLEST_CHUNK, Pace, cost
from mlx_gptoss.engine.prefill import Prefiller
from mlx_gptoss.engine.prefix_cache import PrefixCache
from mlx_gptoss.engine.sampling import Sampled, Sampler
from mlx_gptoss.engine.sequence import Sequence
from mlx_gptoss.engine.token_model import TokenModel
from mlx_gptoss.errors import GptOssError, InternalError
from mlx_gptoss.events import FinishReason


@dataclass(frozen=True, slots=True)
class Flight:
    """One draw whose tokens have not been read. Row i belongs to rows[i], which may have ended meanwhile."""

    rows: tuple[Sequence, ...]
    sampled: Sampled


@dataclass(slots=True)
class Totals:
    """Counts since the engine started."""

    requests: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    steps: int = 0
    request_s: float = 1.0
    """Seconds a request takes once started, a moving average."""


class _MendedError(Exception):
    """The model has mended itself: what runs is prefilled again."""


class Scheduler:
    """The sequences being worked on."""

    def __init__(self, model: TokenModel, options: EngineOptions, prefixes: PrefixCache) -> None:
        self._model = model
        self._options = options
        self._sampler = Sampler(backend=model.draw_backend)
        self._prefixes = prefixes
        self._pace = Pace()
        self._prefill = Prefiller(model, options, prefixes, self._pace)
        self._decoding: list[Sequence] = []
        self._flights: list[Flight] = []
        self._decoded_at: float | None = None
        self._prefilled = 0
        self.totals = Totals()

    @property
    def active(self) -> int:
        """Sequences in prefill or decode."""
        return len(self._decoding) + len(self._prefill)

    def limit_chunks(self, positions: int) -> None:
        """Lets a prefill chunk take at most so many positions from now on."""
        self._prefill.chunk_limit = positions

    def add(self, sequence: Sequence) -> None:
        """Starts a sequence; there must be a free slot."""
        self._prefill.add(sequence)

    def fail_all(self, error: GptOssError) -> None:
        """Ends everything with `error`."""
        for sequence in self._sequences():
            self._end(sequence, "error", error)
        self._forget_ended()

    def step(self) -> None:
        """One round: decode every running sequence by a token, and prefill for about as long."""
        self.totals.steps += 1
        self._drop_unwanted()
        if self._decoding:
            try:
                self._decode()
            except Exception as error:
                self._recover(error)
        self._keep_pace()
        self._forget_ended()
        self._prefill_step()
        self._forget_ended()

    def _sequences(self) -> list[Sequence]:
        return [*self._decoding, *self._prefill.sequences]

    def _drop_unwanted(self) -> None:
        now = time.perf_counter()
        for sequence in self._sequences():
            reason = sequence.generation.cancel_reason
            if reason is not None:
                self._end(sequence, reason)
            elif sequence.overdue(now):
                self._end(sequence, "timeout")
        self._forget_ended()

    def _forget_ended(self) -> None:
        if any(sequence.done for sequence in self._decoding):
            self._decoding = [sequence for sequence in self._decoding if not sequence.done]
        self._prefill.forget_ended()
        if not self._decoding:
            self._flights = []

    def _keep_pace(self) -> None:
        """Measures the round that a decode step has just ended."""
        now = time.perf_counter()
        if self._decoding and self._decoded_at is not None:
            self._pace.stepped(now - self._decoded_at, self._prefilled)
        self._decoded_at = now if self._decoding else None
        self._prefilled = 0

    # Decode

    def _decode(self) -> None:
        flights, self._flights = self._flights, []
        batches = self._batches(flights)
        dispatched: list[tuple[list[Sequence], mx.array]] = []
        for rows, tokens in batches:
            logits = self._model.decode(tokens, [row.cache for row in rows])
            if any(row.waits_for_host or self._sampler.may_block(row.sampler) for row in rows):
                mx.async_eval(logits)  # type: ignore[no-untyped-call]  # mlx's stub leaves *args bare
                dispatched.append((rows, logits))
            else:
                self._launch(rows, logits)
        for flight in flights:
            self._read(flight)
        for rows, logits in dispatched:
            self._launch(rows, logits)

    def _batches(self, flights: Rows[Flight]) -> list[tuple[list[Sequence], mx.array]]:
        """The rows to run a step for, with their tokens still on the device: all together, or each alone while
        somebody is under suspicion of breaking the batch."""
        rows: list[Sequence] = []
        parts: list[mx.array] = []
        for flight in flights:
            wanted = [i for i, row in enumerate(flight.rows) if not row.done and not row.exhausted]
            if not wanted:
                continue
            tokens = flight.sampled.tokens
            parts.append(tokens if len(wanted) == len(flight.rows) else tokens[mx.array(wanted)])
            rows += [flight.rows[i] for i in wanted]
        if not rows:
            return []
        tokens = parts[0] if len(parts) == 1 else mx.concatenate(parts)
        if any(row.alone for row in rows):
            return [([row], tokens[i : i + 1]) for i, row in enumerate(rows)]
        return [(rows, tokens)]

    def _launch(self, rows: list[Sequence], logits: mx.array) -> None:
        """Draws a token for every row of `logits` and leaves it in flight."""
        masks: list[Mask | None] = []
        for row in rows:
            mask = None
            if row.request.constraint is not None and not row.done:
                try:
                    forced = row.request.constraint.force()
                    mask = single_token_mask(forced[0]) if forced else row.request.constraint.mask()
                except Exception as error:
                    self._end(row, "error", _as_ours(error, "the token constraint failed"))
            masks.append(mask)
        sampled = self._sampler.sample(logits, [row.sampler for row in rows], masks)
        mx.async_eval(*sampled.arrays())  # type: ignore[no-untyped-call]  # as above
        for row in rows:
            row.sampler.step()
            row.pending += 1
        self._flights.append(Flight(tuple(rows), sampled))

    def _read(self, flight: Flight) -> None:
        """Waits for a flight's tokens and hands them out."""
        sampled = flight.sampled
        tokens, peaks = _listed(sampled.tokens), _listed(sampled.peak)
        logprobs, top_ids, top_logprobs = (
            _listed(array) for array in (sampled.logprobs, sampled.top_ids, sampled.top_logprobs)
        )
        for i, row in enumerate(flight.rows):
            row.pending -= 1
            self._prefill.arrived(row)
            if row.done:
                continue
            if not math.isfinite(peaks[i]):
                bad = _bad_logits(peaks[i], row)
                if peaks[i] != -math.inf and self._model.mend(bad):
                    raise _MendedError
                self._end(row, "error", bad)
                continue
            wanted = row.request.sampling.logprobs
            event = TokenEvent(tokens[i])
            if wanted is not None:
                top = tuple(zip(top_ids[i][:wanted], top_logprobs[i][:wanted], strict=True)) if wanted else ()
                event = TokenEvent(tokens[i], logprobs[i], top)
            row.alone = False
            try:
                reason = row.accept(event)
            except Exception as error:
                self._end(row, "error", _as_ours(error, "the token constraint failed"))
                continue
            self.totals.completion_tokens += 1
            if reason is not None:
                self._end(row, reason)

    def _recover(self, error: Exception) -> None:
        """A batched step broke. When the model has mended itself, all begin anew. Else whoever was alone in the step is
        to blame and ends; the others are prefilled again and go on one by one until they have shown themselves
        innocent."""
        if isinstance(error, _MendedError) or self._model.mend(error):
            self._begin_anew()
            return
        self._flights = []
        rows, self._decoding = self._decoding, []
        for row in rows:
            if row.done:
                continue
            if row.alone or len(rows) == 1:
                self._end(row, "error", _as_ours(error, "the model failed on this request"))
                continue
            row.alone = True
            self._prefill.restart(row)

    def _begin_anew(self) -> None:
        """Prefills everything again: what a kernel that failed has written is not to be trusted."""
        self._flights = []
        self._prefixes.clear()
        self._sampler = Sampler(backend=self._model.draw_backend)
        running = [sequence for sequence in self._sequences() if not sequence.done]
        self._decoding = []
        for sequence in running:
            self._prefill.restart(sequence)

    # Prefill

    def _prefill_step(self) -> None:
        """A chunk of one prompt, and while others decode as many more prompts as fit whole into the step's budget."""
        busy = bool(self._decoding)
        left = self._prefill.budget(busy=busy)
        first = True
        while len(self._prefill) and (first or left >= SMALLEST_CHUNK):
            sequence = self._prefill.choose()
            if not first and self._prefill.remaining(sequence) > left:
                return
            taken = cost(self._prefill_chunk(sequence, left, busy))
            left -= taken
            self._prefilled += taken
            first = False
            self._prefill.forget_ended()
            if not busy or sequence.alone:
                # Of those under suspicion one at a time shows itself innocent.
                return

    def _prefill_chunk(self, sequence: Sequence, most: int, busy: bool) -> int:
        """Tokens of the chunk."""
        taken = 0
        try:
            taken, logits = self._prefill.advance(sequence, most, busy=busy)
            if logits is None:
                return taken
            self._launch([sequence], logits)
        except Exception as error:
            if self._model.mend(error):
                if sequence not in self._prefill.sequences:
                    self._prefill.restart(sequence)
                self._begin_anew()
            else:
                self._end(sequence, "error", _as_ours(error, "the model failed on this request"))
            return taken
        if not sequence.done:
            self._decoding.append(sequence)
        return taken

    # Endings

    def _end(self, sequence: Sequence, reason: FinishReason, error: GptOssError | None = None) -> None:
        if sequence.done:
            return
        self.totals.requests += 1
        self.totals.prompt_tokens += len(sequence.prompt)
        self.totals.cached_tokens += sequence.cached_tokens
        if reason != "error" and sequence.position > 0:
            self._prefixes.store(sequence.stored())
        timings = sequence.finish(reason, mx.get_peak_memory(), error).timings
        self.totals.request_s += 0.2 * (timings.total_s - timings.queue_s - self.totals.request_s)
        sequence.cache = None
        sequence.snapshots = []


def _listed(array: mx.array | None) -> list[Any]:
    listed = [] if array is None else array.tolist()
    return listed if isinstance(listed, list) else [listed]


def _bad_logits(peak: float, row: Sequence) -> GptOssError:
    if peak == float("-inf"):
        return InternalError(
            "no token may come next",
            where=f"token {len(row.generated)} of the answer",
            hint="The constraint of this request forbids everything.",
        )
    return InternalError(
        "the model's logits are not finite",
        expected="finite numbers",
        got=str(peak),
        where=f"token {len(row.generated)} of the answer",
        hint="The weights are damaged or overflow this precision; convert the model again or use float32.",
    )


def _as_ours(error: Exception, what: str) -> GptOssError:
    if isinstance(error, GptOssError):
        return error
    return InternalError(what, got=f"{type(error).__name__}: {error}")
