"""One request for a generation: the internal form that the CLI, the API and every wire format build."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import date
from numbers import Integral
from typing import Any, Literal, TypeAlias

from mlx_gptoss.errors import InvalidRequestError
from mlx_gptoss.messages import Message, Tool

Effort: TypeAlias = Literal["low", "medium", "high"]


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How the next token is drawn. The defaults are the model's own: temperature 1.0, top-p 1.0.

    `temperature` 0 is greedy. `top_k` 0 and `min_p` 0 are off. `logprobs` is None (off) or the number of
    alternatives to report (0 to 20). Penalties follow OpenAI (presence, frequency) and Hugging Face (repetition).
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    repetition_context: int = 64
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    seed: int | None = None
    logprobs: int | None = None

    def __post_init__(self) -> None:
        for name, low, high in (
            ("temperature", 0.0, 100.0),
            ("top_p", 0.0, 1.0),
            ("min_p", 0.0, 1.0),
            ("repetition_penalty", 1e-3, 1e3),
            ("presence_penalty", -100.0, 100.0),
            ("frequency_penalty", -100.0, 100.0),
        ):
            value = getattr(self, name)
            number = isinstance(value, int | float) and not isinstance(value, bool)
            # A whole number is finite, and may be too large for math.isfinite.
            if not number or (isinstance(value, float) and not math.isfinite(value)):
                raise InvalidRequestError(f"{name} is not a finite number", param=name, got=repr(value))
            if not low <= value <= high:
                raise InvalidRequestError(
                    f"{name} is out of range", param=name, expected=f"{low} to {high}", got=repr(value)
                )
        for name in ("top_k", "repetition_context", "seed"):
            value = getattr(self, name)
            if isinstance(value, bool) or not (value is None or isinstance(value, Integral)):
                raise InvalidRequestError(f"{name} is not a whole number", param=name, got=repr(value))
        if self.top_k < 0:
            raise InvalidRequestError("top_k is negative", param="top_k", got=str(self.top_k))
        wanted: Any = self.logprobs
        bias: Any = self.logit_bias
        if wanted is not None and (
            isinstance(wanted, bool) or not isinstance(wanted, Integral) or not 0 <= int(wanted) <= 20
        ):
            raise InvalidRequestError(
                "logprobs is out of range", param="logprobs", expected="0 to 20", got=repr(wanted)
            )
        if not isinstance(bias, Mapping) or not all(
            isinstance(token, Integral) and isinstance(value, int | float) for token, value in bias.items()
        ):
            raise InvalidRequestError(
                "logit_bias cannot be used", param="logit_bias", expected="token ids and numbers", got=repr(bias)[:80]
            )


@dataclass(frozen=True, slots=True)
class ResponseFormat:
    """What the final answer must be. `schema` is used when `kind` is "json_schema"."""

    kind: Literal["text", "json_object", "json_schema"] = "text"
    schema: Mapping[str, Any] | None = None
    name: str = "response"
    description: str = ""


@dataclass(frozen=True, slots=True)
class ToolChoice:
    """Which tools may be called. `name` is set when `mode` is "named"."""

    mode: Literal["auto", "none", "required", "named"] = "auto"
    name: str | None = None


@dataclass(frozen=True, slots=True)
class ChatRequest:
    """Everything that determines an answer, apart from the model.

    Exactly one of `messages`, `raw_prompt` and `prompt_ids` is used: a conversation (rendered as Harmony), a text
    that is tokenised as it is with special tokens taken as plain text (completions), or token ids.
    `max_tokens` None means up to the end of the context. `stop` strings end the final text (they are not emitted).
    `reasoning_budget` bounds the analysis tokens; beyond it the engine closes the channel and moves to the answer.
    `current_date` None means today.
    """

    messages: tuple[Message, ...] = ()
    raw_prompt: str | None = None
    prompt_ids: tuple[int, ...] | None = None
    tools: tuple[Tool, ...] = ()
    builtin_tools: tuple[Literal["browser", "python"], ...] = ()
    tool_choice: ToolChoice = ToolChoice()
    parallel_tool_calls: bool = True
    response_format: ResponseFormat = ResponseFormat()
    effort: Effort = "medium"
    current_date: date | None = None
    sampling: SamplingParams = SamplingParams()
    max_tokens: int | None = None
    stop: tuple[str, ...] = ()
    reasoning_budget: int | None = None
    repetition_stop: bool = True
    timeout_s: float | None = None
