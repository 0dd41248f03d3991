"""OpenAI's legacy completions: a text in, its continuation out, no conversation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from mlx_gptoss.errors import InvalidRequestError
from mlx_gptoss.events import TokenLogprob
from mlx_gptoss.request import ChatRequest
from mlx_gptoss.server.wire import openai
from mlx_gptoss.server.wire.chat_completions import StreamOptions, sampling_of, stops_of
from mlx_gptoss.stream import Completion

DEFAULT_MAX_TOKENS = 16
MAX_PROMPTS = 16


class CompletionBody(BaseModel):
    """The body of `POST /v1/completions`. Fields we do not know are ignored."""

    model_config = ConfigDict(extra="ignore")

    model: str = Field(max_length=512)
    prompt: str | list[str] | list[int] | list[list[int]] = ""
    suffix: str | None = None
    echo: bool | None = None
    best_of: int | None = Field(default=None, ge=1, le=16)
    n: int | None = Field(default=None, ge=1, le=16)
    max_tokens: int | None = Field(default=None, ge=1)
    temperature: float | None = Field(default=None, ge=0, le=2)
    top_p: float | None = Field(default=None, ge=0, le=1)
    top_k: int | None = Field(default=None, ge=0)
    min_p: float | None = Field(default=None, ge=0, le=1)
    repetition_penalty: float | None = Field(default=None, gt=0, le=10)
    presence_penalty: float | None = Field(default=None, ge=-2, le=2)
    frequency_penalty: float | None = Field(default=None, ge=-2, le=2)
    logit_bias: dict[str, float] | None = None
    logprobs: int | None = Field(default=None, ge=0, le=5)
    seed: int | None = None
    stop: str | list[str] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None


def to_requests(body: CompletionBody) -> list[ChatRequest]:
    """One internal request a prompt. Raises InvalidRequestError that names the field."""
    if body.suffix:
        raise InvalidRequestError("gpt-oss cannot fill in the middle; suffix is not supported", param="suffix")
    if body.echo:
        raise InvalidRequestError("echo is not supported", param="echo")
    if body.best_of is not None and body.best_of > (body.n or 1):
        raise InvalidRequestError("best_of larger than n is not supported", param="best_of")
    return [
        ChatRequest(
            **prompt,
            sampling=sampling_of(body, body.logprobs),
            max_tokens=body.max_tokens or DEFAULT_MAX_TOKENS,
            stop=stops_of(body.stop),
        )
        for prompt in _prompts(body.prompt)
    ]


def _prompts(prompt: str | Sequence[Any]) -> list[dict[str, Any]]:
    if isinstance(prompt, str):
        return [{"raw_prompt": prompt}]
    if not prompt:
        raise InvalidRequestError("the prompt is empty", param="prompt")
    if all(isinstance(item, int) for item in prompt):
        return [{"prompt_ids": tuple(prompt)}]
    if len(prompt) > MAX_PROMPTS:
        raise InvalidRequestError(
            "too many prompts", param="prompt", expected=f"at most {MAX_PROMPTS}", got=str(len(prompt))
        )
    return [{"raw_prompt": item} if isinstance(item, str) else {"prompt_ids": tuple(item)} for item in prompt]


def logprobs_object(entries: Sequence[TokenLogprob], offset: int = 0) -> dict[str, Any]:
    """The legacy `logprobs` object: parallel lists; `offset` is where the first token's text begins."""
    tokens = [entry.bytes.decode("utf-8", "replace") for entry in entries]
    offsets = []
    for token in tokens:
        offsets.append(offset)
        offset += len(token)
    return {
        "tokens": tokens,
        "token_logprobs": [max(entry.logprob, -9999.0) for entry in entries],
        "top_logprobs": [
            {raw.decode("utf-8", "replace"): max(logprob, -9999.0) for _, logprob, raw in entry.top}
            for entry in entries
        ],
        "text_offset": offsets,
    }


def frame(identifier: str, model: str, created: int, choices: list[dict[str, Any]]) -> dict[str, Any]:
    """The `text_completion` object around choices; chunks of a stream have the same form."""
    return {"id": identifier, "object": "text_completion", "created": created, "model": model, "choices": choices}


def choice(index: int, text: str, finish: str | None, logprobs: dict[str, Any] | None = None) -> dict[str, Any]:
    """One choice, whole or a piece of a stream."""
    return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": finish}


def whole_choice(completion: Completion, index: int, logprobs: bool) -> dict[str, Any]:
    """A finished choice."""
    entries = logprobs_object(completion.logprobs) if logprobs else None
    return choice(index, completion.text, openai.finish_reason_of(completion.finish_reason), entries)
