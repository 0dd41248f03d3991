"""The engine: one thread that owns the device, and a thread-safe door to it."""

from __future__ import annotations

import atexit
import math
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from types import TracebackType

import mlx.core as mx
import numpy as np

from mlx_gptoss.engine.device_memory import DeviceMemory, Pressure
from mlx_gptoss.engine.generation import Finished, Generation, GenerationRequest
from mlx_gptoss.engine.options import EngineOptions, EngineStats
from mlx_gptoss.engine.prefill import choose_cuts
from mlx_gptoss.engine.prefix_cache import PrefixCache
from mlx_gptoss.engine.scheduler import Scheduler
from mlx_gptoss.engine.sequence import Sequence
from mlx_gptoss.engine.spill import SpillStore
from mlx_gptoss.engine.token_model import TokenModel
from mlx_gptoss.errors import (
    ContextOverflowError,
    EngineClosedError,
    GptOssError,
    InsufficientMemoryError,
    InternalError,
    InvalidRequestError,
    QueueFullError,
)
from mlx_gptoss.events import FinishReason, Timings, Usage
from mlx_gptoss.kernels.watched import out_of_memory
from mlx_gptoss.plan.footprint import kv_bytes
from mlx_gptoss.plan.planner import WORKSPACE_BYTES

_JOIN_SECONDS = 30.0
_LINGER_SECONDS = 20.0
_IDLE_BUFFER_BYTES = 256 << 20


class Engine:
    """Generates for many callers at once. Thread-safe; idle, it waits without using the processor.

    `load` makes the model, on the engine's own thread: MLX's streams belong to threads. Its error is raised here.
    `memory` is the device's unless a test has another.
    """

    def __init__(
        self,
        load: Callable[[], TokenModel],
        options: EngineOptions | None = None,
        *,
        memory: DeviceMemory | None = None,
    ) -> None:
        self._options = options if options is not None else EngineOptions()
        self._memory = DeviceMemory() if memory is None else memory
        self._pressure = Pressure.NONE
        self._door = threading.Condition()
        self._queue: deque[Generation] = deque()
        self._active = 0
        self._closing = False
        self._failure: GptOssError | None = None
        self._stats = EngineStats()
        self._recent_s = 1.0
        self._loaded: Future[None] = Future()
        self._vocab_size = 0
        self._context = 0
        self._done = threading.Event()
        work = ([partial(self._run, load)], self._done)
        self._thread = threading.Thread(target=_work, args=work, name="mlx-gptoss-engine", daemon=True)
        # Before the wait, which Ctrl-C may end: the thread is then in the middle of loading.
        _close_at_exit(self)
        self._thread.start()
        self._loaded.result()

    @property
    def options(self) -> EngineOptions:
        return self._options

    @property
    def context(self) -> int:
        """Most tokens of prompt and answer together."""
        return self._context

    @property
    def vocab_size(self) -> int:
        return self._vocab_size

    @property
    def closed(self) -> bool:
        return self._closing

    def submit(self, request: GenerationRequest) -> Generation:
        """Queues a request; it starts in its turn.

        Raises InvalidRequestError (ContextOverflowError for a prompt that fills the context), QueueFullError when
        too many wait, EngineClosedError when the engine is closed or has failed.
        """
        self._check(request)
        generation = Generation(request)
        with self._door:
            if self._failure is not None:
                raise EngineClosedError("the engine has stopped", got=str(self._failure))
            if self._closing:
                raise EngineClosedError("the engine is closed")
            if len(self._queue) + self._active >= self._options.max_batch + self._options.max_queue:
                raise QueueFullError(
                    f"{len(self._queue)} requests are waiting already",
                    retry_after=self._retry_after(),
                    hint="Try again in a moment.",
                )
            if self._pressure is Pressure.FULL and self._active:
                raise QueueFullError(
                    "this machine's memory is nearly full",
                    retry_after=self._retry_after(),
                    hint="Try again when other requests have finished, or load the model with a smaller context.",
                )
            self._queue.append(generation)
            self._door.notify_all()
        return generation

    def stats(self) -> EngineStats:
        """What the engine is doing, and has done."""
        with self._door:
            stats = self._stats
            return EngineStats(**{**_fields(stats), "active": self._active, "queued": len(self._queue)})

    def close(self, timeout: float = _JOIN_SECONDS) -> None:
        """Stops within a step; what is unfinished ends with EngineClosedError. Frees the model."""
        with self._door:
            self._closing = True
            self._door.notify_all()
        if threading.current_thread() is not self._thread:
            self._done.wait(timeout)

    def __enter__(self) -> Engine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _check(self, request: GenerationRequest) -> None:
        length = len(request.prompt_ids)
        if length == 0:
            raise InvalidRequestError("the prompt is empty", param="prompt")
        if length >= self._context:
            raise ContextOverflowError(
                "the prompt is longer than the context",
                param="prompt",
                expected=f"at most {self._context - 1} tokens",
                got=f"{length} tokens",
                hint="Shorten the conversation, or raise the context.",
            )
        if request.max_tokens is not None and request.max_tokens < 1:
            raise InvalidRequestError(
                "max_tokens is out of range", param="max_tokens", expected=">= 1", got=str(request.max_tokens)
            )
        if request.timeout_s is not None and not request.timeout_s > 0:
            raise InvalidRequestError(
                "timeout is out of range", param="timeout", expected="> 0 seconds", got=str(request.timeout_s)
            )
        lowest, highest = min(request.prompt_ids), max(request.prompt_ids)
        if lowest < 0 or highest >= self._vocab_size:
            raise InvalidRequestError(
                "the prompt has an id that is no token",
                param="prompt",
                expected=f"0 to {self._vocab_size - 1}",
                got=str(lowest if lowest < 0 else highest),
            )
        for token, bias in request.sampling.logit_bias.items():
            if not 0 <= token < self._vocab_size or not math.isfinite(bias):
                raise InvalidRequestError(
                    "logit_bias is impossible",
                    param="logit_bias",
                    expected=f"token ids below {self._vocab_size} and finite numbers",
                    got=f"{token}: {bias}",
                )

    def _retry_after(self) -> float:
        rounds = (len(self._queue) + 1) / self._options.max_batch
        return float(min(max(1.0, math.ceil(rounds * self._recent_s)), 60.0))

    # The engine's thread

    def _run(self, load: Callable[[], TokenModel]) -> None:
        try:
            model = load()
            scheduler = self._set_up(model)
        except RuntimeError as error:
            # What MLX raises. Its frames hold the weights loaded so far, and must not outlive the attempt.
            self._loaded.set_exception(_load_error(error))
            return
        except BaseException as error:
            self._loaded.set_exception(error)
            return
        self._loaded.set_result(None)
        try:
            while self._wait():
                self._relieve(scheduler)
                self._admit(scheduler)
                scheduler.step()
                self._report(scheduler)
            self._stop(scheduler, EngineClosedError("the engine was closed"))
        except BaseException as error:
            # Only a bug gets here; nobody may be left waiting for it.
            self._stop(scheduler, InternalError("the engine has stopped", got=f"{type(error).__name__}: {error}"))
        finally:
            del model, scheduler
            self._prefixes.clear()
            mx.clear_cache()

    def _set_up(self, model: TokenModel) -> Scheduler:
        config = model.config
        self._vocab_size = config.vocab_size
        self._context = min(self._options.context or config.max_position_embeddings, config.max_position_embeddings)
        spill = None
        if self._options.spill_dir is not None and self._options.prefix_cache_bytes > 0:
            spill = SpillStore(self._options.spill_dir, self._options.spill_bytes, model.make_cache)
        self._prefixes = PrefixCache(self._options.prefix_cache_bytes, spill)
        growth = self._options.prefix_cache_bytes + kv_bytes(config, self._context) + WORKSPACE_BYTES
        self._memory.prepare(growth)
        self._memory.warm_up(model)
        return Scheduler(model, self._options, self._prefixes)

    def _relieve(self, scheduler: Scheduler) -> None:
        """Gives memory back when it runs short, and makes chunks as small as the room left asks for."""
        self._pressure = self._memory.pressure()
        if self._pressure is not Pressure.NONE and len(self._prefixes):
            self._prefixes.shrink(self._prefixes.nbytes // 2)
            self._memory.device.clear_cache()
        scheduler.limit_chunks(self._memory.chunk_limit())

    def _wait(self) -> bool:
        """Blocks until there is work; False when the engine is to stop."""
        if not self._active and mx.get_cache_memory() > _IDLE_BUFFER_BYTES:
            # Freed buffers of a long prefill are of use to others while nothing runs here.
            mx.clear_cache()
        with self._door:
            while not (self._closing or self._queue or self._active):
                self._door.wait()
            return not self._closing

    def _admit(self, scheduler: Scheduler) -> None:
        now = time.perf_counter()
        with self._door:
            waiting = list(self._queue)
            unwanted = [g for g in waiting if g.cancel_reason is not None or _overdue(g, now)]
            for generation in unwanted:
                self._queue.remove(generation)
            free = self._options.max_batch - scheduler.active
            if self._pressure is not Pressure.NONE:
                # Short of memory: what runs goes on, what waits goes one by one.
                free = 0 if scheduler.active else 1
            starting = [self._queue.popleft() for _ in range(min(free, len(self._queue)))]
            self._active = scheduler.active + len(starting)
        for generation in unwanted:
            _finish_unstarted(generation, generation.cancel_reason or "timeout")
        for generation in starting:
            try:
                scheduler.add(self._sequence(generation))
            except Exception as error:
                # One request that cannot start must not take the others down with the thread.
                what = InternalError("the request cannot start", got=f"{type(error).__name__}: {error}")
                _finish_unstarted(generation, "error", what)

    def _sequence(self, generation: Generation) -> Sequence:
        request = generation.request
        prompt = np.array(request.prompt_ids, dtype=np.int32)
        room = self._context - len(prompt)
        limit = room if request.max_tokens is None else min(request.max_tokens, room)
        return Sequence(
            generation, prompt, limit, choose_cuts(request.boundaries, len(prompt), self._options.snapshot_gap)
        )

    def _report(self, scheduler: Scheduler) -> None:
        totals, prefixes = scheduler.totals, self._prefixes
        with self._door:
            ended = totals.requests - self._stats.requests_total
            self._active = scheduler.active
            self._recent_s = totals.request_s
            if ended == 0 and totals.steps % 16 and self._active:
                return
            spill = prefixes.spill
            self._stats = EngineStats(
                requests_total=totals.requests,
                prompt_tokens_total=totals.prompt_tokens,
                cached_tokens_total=totals.cached_tokens,
                completion_tokens_total=totals.completion_tokens,
                steps_total=totals.steps,
                prefix_entries=len(prefixes),
                prefix_cache_bytes=prefixes.nbytes,
                spilled_entries=0 if spill is None else len(spill),
                spilled_bytes=0 if spill is None else spill.nbytes,
                peak_memory_bytes=mx.get_peak_memory(),
            )

    def _stop(self, scheduler: Scheduler, error: GptOssError) -> None:
        with self._door:
            self._closing = True
            if not isinstance(error, EngineClosedError):
                self._failure = error
            waiting = list(self._queue)
            self._queue.clear()
            self._active = 0
        scheduler.fail_all(error)
        for generation in waiting:
            _finish_unstarted(generation, "error", error)


def _fields(stats: EngineStats) -> dict[str, int]:
    return {name: getattr(stats, name) for name in EngineStats.__slots__}


def _overdue(generation: Generation, now: float) -> bool:
    limit = generation.request.timeout_s
    return limit is not None and now - generation.submitted > limit


def _finish_unstarted(generation: Generation, reason: FinishReason, error: GptOssError | None = None) -> None:
    waited = time.perf_counter() - generation.submitted
    generation.finish(
        Finished(
            reason,
            Usage(prompt_tokens=len(generation.request.prompt_ids)),
            Timings(queue_s=waited, total_s=waited),
            error,
        )
    )


def _load_error(error: RuntimeError) -> GptOssError:
    if out_of_memory(error):
        return InsufficientMemoryError(
            "the device has no room for the model",
            got=str(error),
            hint="Close what else uses the device, or choose a smaller precision: see `mlx-gptoss plan`.",
        )
    return InternalError("the model could not be loaded", got=f"{type(error).__name__}: {error}")


def _work(jobs: list[Callable[[], None]], done: threading.Event) -> None:
    """The engine's thread: the one job, and nothing of it is held afterwards."""
    try:
        jobs.pop()()
    finally:
        done.set()
    # What MLX keeps for a thread goes when the thread ends, and aborts a process that ends at that moment: the thread
    # stays a while. MLX's CUDA build (0.32.4) has aborted whenever a thread that used the GPU ended: there it stays.
    threading.Event().wait(None if mx.cuda.is_available() else _LINGER_SECONDS)


def _close_at_exit(engine: Engine) -> None:
    # A daemon thread inside MLX while the interpreter is torn down may crash the process.
    reference = weakref.ref(engine)

    def close() -> None:
        alive = reference()
        if alive is not None:
            alive.close(timeout=5.0)

    atexit.register(close)
    # Not at exit: it would take `close` back just before it is due.
    weakref.finalize(engine, atexit.unregister, close).atexit = False
