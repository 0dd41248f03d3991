"""What a generation emits: typed events, in order, ending with exactly one `Done`."""

from __future__ import annotations

import builtins
from dataclasses import dataclass
from typing import Literal, TypeAlias

FinishReason: TypeAlias = Literal["stop", "length", "tool_calls", "repetition", "cancelled", "timeout", "error"]


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """Natural-log probability of one token. `bytes` are the token's raw bytes (may be a part of a character)."""

    token_id: int
    logprob: float
    bytes: bytes
    top: tuple[tuple[int, float, builtins.bytes], ...] = ()


@dataclass(frozen=True, slots=True)
class ReasoningDelta:
    """A piece of the model's reasoning (the analysis channel)."""

    text: str
    logprobs: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True, slots=True)
class PreambleDelta:
    """A piece of commentary addressed to the user before tool calls."""

    text: str
    logprobs: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True, slots=True)
class TextDelta:
    """A piece of the answer (the final channel)."""

    text: str
    logprobs: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True, slots=True)
class ToolCallStart:
    """A call begins. `name` has no `functions.` prefix; `index` counts calls within the turn from 0."""

    call_id: str
    index: int
    name: str


@dataclass(frozen=True, slots=True)
class ToolCallDelta:
    call_id: str
    index: int
    arguments: str


@dataclass(frozen=True, slots=True)
class ToolCallEnd:
    """A call is complete. `arguments` is the whole raw text, the join of its deltas."""

    call_id: str
    index: int
    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class Usage:
    """Token counts. `cached_tokens` of the prompt were not prefilled again."""

    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    reasoning_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Timings:
    """Seconds, tokens per second and bytes. `load_s` is what loading the model cost this request, if anything."""

    queue_s: float = 0.0
    prefill_s: float = 0.0
    decode_s: float = 0.0
    first_token_s: float = 0.0
    total_s: float = 0.0
    load_s: float = 0.0
    prefill_tps: float = 0.0
    decode_tps: float = 0.0
    peak_memory_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Done:
    """The end of a generation. `token_ids` are all generated tokens, the stop token included.

    `error` is the one-line message when `finish_reason` is "error"; `stop` is the stop string that ended the text.
    """

    finish_reason: FinishReason
    usage: Usage
    timings: Timings
    token_ids: tuple[int, ...] = ()
    error: str | None = None
    stop: str | None = None


Event: TypeAlias = ReasoningDelta | PreambleDelta | TextDelta | ToolCallStart | ToolCallDelta | ToolCallEnd | Done
