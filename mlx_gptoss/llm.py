"""GptOss: a loaded model that answers. The way in for applications; the CLI and the server are built on it."""

from __future__ import annotations

import dataclasses
import os
import weakref
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from mlx_gptoss.engine import Engine, EngineOptions, EngineStats, GenerationRequest, TokenModel
from mlx_gptoss.errors import InvalidRequestError
from mlx_gptoss.events import Event
from mlx_gptoss.harmony.constraint import constraint_for
from mlx_gptoss.harmony.parser import HarmonyParser
from mlx_gptoss.harmony.render import Prompt as RenderedPrompt
from mlx_gptoss.harmony.render import render
from mlx_gptoss.harmony.special import END_OF_TEXT, START, STOP_IDS
from mlx_gptoss.harmony.vocabulary import Vocabulary, load_vocabulary
from mlx_gptoss.messages import Message, SystemMessage, UserMessage
from mlx_gptoss.plan.guard import folder_bounds
from mlx_gptoss.plan.machine import Machine, this_machine
from mlx_gptoss.request import ChatRequest, SamplingParams
from mlx_gptoss.request_check import as_tuple, check_request
from mlx_gptoss.stream import Completion, Stream
from mlx_gptoss.turn_reader import PlainText, TokenParser, TurnReader

if TYPE_CHECKING:
    from mlx_gptoss.chat import Chat

Prompt: TypeAlias = ChatRequest | str | Sequence[Message]
"""What can be asked: a request, a user's text, or a conversation."""

DtypeName: TypeAlias = Literal["bfloat16", "float32"]

Progress: TypeAlias = Callable[[int, int], None]

_SAMPLING = {field.name for field in dataclasses.fields(SamplingParams)}
_REQUEST = {field.name for field in dataclasses.fields(ChatRequest)} - {"sampling"}


class GptOss:
    """A gpt-oss model, loaded and ready. Safe to use from several threads and event loops at once.

    Options of the methods below are the fields of ChatRequest and SamplingParams, and `system` for a system prompt:
    `llm.generate("Why is the sky blue?", effort="low", temperature=0)`. Close it, or use it as a context manager.
    """

    def __init__(self, engine: Engine, *, name: str = "", vocabulary: Vocabulary | None = None) -> None:
        """For `load` and for tests: takes a running engine over."""
        self.name = name
        self._engine = engine
        self._vocabulary = vocabulary if vocabulary is not None else load_vocabulary()
        weakref.finalize(self, engine.close)

    @classmethod
    def load(
        cls,
        model: str | Path | None = None,
        *,
        dtype: DtypeName = "bfloat16",
        backend: str = "auto",
        context: int | None = None,
        options: EngineOptions | None = None,
        machine: Machine | None = None,
        **engine_options: Any,
    ) -> GptOss:
        """Loads a model by name ("demo", "20b", a hub id) or folder; None is the default model.

        A checkpoint is converted on first use; nothing is downloaded. `context` bounds prompt and answer in tokens (as
        the model itself does); left out, it is what memory allows. Other keywords are EngineOptions'. What cannot fit
        into `machine` (this one) is refused before anything is read. Raises ModelNotFoundError, CheckpointError,
        ConfigError and InsufficientMemoryError.
        """
        from mlx_gptoss.names import looks_like_path, resolve_model

        options = _engine_options(options, {**engine_options, **({} if context is None else {"context": context})})
        if model is not None and not isinstance(model, str | os.PathLike):
            raise InvalidRequestError(
                "a model is a name or a folder", param="model", expected="text or a path", got=type(model).__name__
            )
        folder = resolve_model(model)
        options = _within(this_machine() if machine is None else machine, folder, options)
        engine = Engine(lambda: _load(folder, dtype, backend), options)
        return cls(engine, name=folder.name if model is None or looks_like_path(model) else str(model))

    @property
    def context(self) -> int:
        """Most tokens of prompt and answer together."""
        return self._engine.context

    @property
    def vocabulary(self) -> Vocabulary:
        return self._vocabulary

    @property
    def engine(self) -> Engine:
        """The engine below, which speaks token ids."""
        return self._engine

    @property
    def closed(self) -> bool:
        return self._engine.closed

    def engine_stats(self) -> EngineStats:
        """Load and counters of the engine."""
        return self._engine.stats()

    def stream(self, prompt: Prompt, *, on_progress: Progress | None = None, **options: Any) -> Stream:
        """Starts an answer and gives its events as they come.

        `on_progress(done, total)` is called with prompt tokens during prefill, on another thread. What cannot
        succeed raises here (InvalidRequestError, ContextOverflowError, SchemaError, QueueFullError,
        EngineClosedError); what breaks later ends the stream with a `Done` that says so.
        """
        return self.start(as_request(prompt, options), on_progress=on_progress)

    def generate(self, prompt: Prompt, *, on_progress: Progress | None = None, **options: Any) -> Completion:
        """The whole answer. Raises as `stream` does, and whatever breaks the generation."""
        with self.stream(prompt, on_progress=on_progress, **options) as stream:
            return stream.result()

    async def astream(self, prompt: Prompt, **options: Any) -> AsyncIterator[Event]:
        """As `stream`, for `async for`. Closing the iterator, or cancelling its task, ends the generation."""
        async with self.stream(prompt, **options) as stream:
            async for event in stream:
                yield event

    async def agenerate(self, prompt: Prompt, **options: Any) -> Completion:
        """As `generate`, without blocking the event loop; cancelling the task ends the generation."""
        return await self.stream(prompt, **options).aresult()

    def chat(self, system: str | None = None, messages: Sequence[Message] = (), **options: Any) -> Chat:
        """A conversation that remembers; `options` hold for every turn."""
        from mlx_gptoss.chat import Chat

        return Chat(self, system=system, messages=messages, **options)

    def count_tokens(self, prompt: Prompt, **options: Any) -> int:
        """How many tokens the prompt of a request has."""
        return len(self.encode(prompt, **options).token_ids)

    def encode(self, prompt: Prompt, **options: Any) -> RenderedPrompt:
        """The token ids that a request's prompt becomes, and the positions where its messages end."""
        request = as_request(prompt, options)
        check_request(request)
        return render(request, self._vocabulary)

    def start(
        self,
        request: ChatRequest,
        *,
        cache_key: str | None = None,
        on_progress: Progress | None = None,
        on_done: Callable[[Completion], None] | None = None,
    ) -> Stream:
        """As `stream`, for callers that manage conversations: `cache_key` names one (its newer state replaces the
        stored older one), `on_done` gets the answer when the stream has been read to its end."""
        check_request(request)
        if on_progress is not None and not callable(on_progress):
            raise InvalidRequestError("on_progress cannot be called", param="on_progress", got=repr(on_progress)[:80])
        prompt = render(request, self._vocabulary)
        harmony = _opens_assistant(prompt.token_ids, self._vocabulary)
        generation = self._engine.submit(
            GenerationRequest(
                prompt_ids=prompt.token_ids,
                sampling=request.sampling,
                max_tokens=request.max_tokens,
                stop_ids=STOP_IDS if harmony else (*STOP_IDS, END_OF_TEXT),
                constraint=constraint_for(request, self._vocabulary),
                boundaries=prompt.boundaries,
                repetition_stop=request.repetition_stop,
                timeout_s=request.timeout_s,
                cache_key=cache_key,
                on_progress=on_progress,
            )
        )
        parser: TokenParser = PlainText(self._vocabulary)
        if harmony:
            parser = HarmonyParser(self._vocabulary, {tool.name for tool in request.tools})
        return Stream(generation, TurnReader(parser, self._vocabulary, request.stop), on_done)

    def close(self) -> None:
        """Stops what is running and frees the model. Idempotent."""
        self._engine.close()

    def __enter__(self) -> GptOss:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    async def __aenter__(self) -> GptOss:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def as_request(prompt: Prompt, options: dict[str, Any]) -> ChatRequest:
    """A ChatRequest out of what `stream` and `generate` take. Raises InvalidRequestError that names a bad option."""
    options = dict(options)
    system = options.pop("system", None)
    unknown = sorted(set(options) - _SAMPLING - _REQUEST - {"sampling"})
    if unknown:
        raise InvalidRequestError(
            f"unknown option {unknown[0]}",
            param=unknown[0],
            hint="See ChatRequest and SamplingParams for what there is.",
        )
    if isinstance(prompt, ChatRequest):
        request = prompt
    else:
        expected = "text, messages or a ChatRequest"
        messages = (UserMessage(prompt),) if isinstance(prompt, str) else as_tuple(prompt, "prompt", expected)
        request = ChatRequest(messages=messages)
        if isinstance(prompt, str) and not prompt.strip():
            raise InvalidRequestError("the prompt is empty", param="prompt")
    sampling = options.pop("sampling", request.sampling)
    if not isinstance(sampling, SamplingParams):
        raise InvalidRequestError(
            "sampling has the wrong type", param="sampling", expected="SamplingParams", got=type(sampling).__name__
        )
    drawn = {name: options.pop(name) for name in list(options) if name in _SAMPLING}
    for name in ("tools", "builtin_tools", "stop", "messages"):
        if name in options:
            value = options[name]
            options[name] = (value,) if isinstance(value, str) else as_tuple(value, name, "a sequence")
    request = dataclasses.replace(request, sampling=dataclasses.replace(sampling, **drawn), **options)
    if system is not None:
        request = dataclasses.replace(request, messages=(SystemMessage(system), *request.messages))
    return request


def _within(machine: Machine, folder: Path, options: EngineOptions) -> EngineOptions:
    """The options as far as this model's weights leave memory for them. Raises InsufficientMemoryError."""
    bounds = folder_bounds(
        machine,
        folder,
        context=options.context,
        max_batch=options.max_batch,
        prefix_cache_bytes=options.prefix_cache_bytes,
    )
    return dataclasses.replace(
        options,
        context=bounds.context,
        max_batch=bounds.max_batch,
        prefix_cache_bytes=bounds.prefix_cache_bytes,
    )


def _load(folder: Path, dtype: DtypeName, backend: str) -> TokenModel:
    from mlx_gptoss.loader import load_model
    from mlx_gptoss.path import on_backend

    return on_backend(load_model(folder, dtype), backend)


def _opens_assistant(token_ids: Sequence[int], vocabulary: Vocabulary) -> bool:
    """Whether a prompt ends where an assistant's message begins, so that Harmony follows."""
    opening = (START, *vocabulary.encode_cached("assistant"))
    return tuple(token_ids[-len(opening) :]) == opening


def _engine_options(options: EngineOptions | None, changes: dict[str, Any]) -> EngineOptions:
    known = {field.name for field in dataclasses.fields(EngineOptions)}
    unknown = sorted(set(changes) - known)
    if unknown:
        raise InvalidRequestError(f"unknown option {unknown[0]}", param=unknown[0], expected=", ".join(sorted(known)))
    return dataclasses.replace(options if options is not None else EngineOptions(), **changes)
