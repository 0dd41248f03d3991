"""Clients that measure a server: streamed answers, many at once, and a long chat turn by turn."""

from __future__ import annotations

import asyncio
import itertools
import json
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

import httpx

TURNS: Final = 10
LEAST_REQUESTS: Final = 2
"""Of each stream, however long one takes."""
ATTEMPTS: Final = 4
"""At one question: a server may turn connections away that come at the same instant."""

_WORDS: Final = (
    "time year people way day man thing woman life child world school state family student group country problem hand "
    "part place case week company system program question work government number night point home water room mother "
    "area money story fact month lot right study book eye job word business issue side kind head house service friend"
)


@dataclass(frozen=True, slots=True)
class Answer:
    """One streamed answer: seconds to the first text and in all, tokens generated, of the prompt, and cached."""

    first_s: float
    total_s: float
    tokens: int
    prompt_tokens: int
    cached_tokens: int
    text: str


@dataclass(frozen=True, slots=True)
class Load:
    """`streams` clients; each asks again until `seconds` are over, at least LEAST_REQUESTS times, for answers of
    `max_tokens` tokens after prompts of about `prompt_tokens`. What is not done after `limit_s` is given up."""

    streams: int
    max_tokens: int = 64
    prompt_tokens: int = 0
    seconds: float = 0.0
    limit_s: float = 600.0


@dataclass(slots=True)
class Tally:
    """What came of a load: finished answers, errors of questions that were asked again and of those given
    up, and the wall seconds of all together."""

    answers: list[Answer] = field(default_factory=list)
    retried: list[str] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    seconds: float = 0.0
    given_up: bool = False


class Questions:
    """User messages no two of which begin alike, so that only the system prompt can come from a server's cache."""

    def __init__(self, seed: int = 0) -> None:
        self._drawn = random.Random(seed)
        self._words = _WORDS.split()
        self._count = itertools.count()

    def next(self, tokens: int) -> str:
        """A question of about `tokens` tokens, or a short one."""
        number = next(self._count)
        question = f"{self._drawn.choice(self._words)}: what is {number % 50 + 10} + {7 * number % 40 + 10}?"
        words = " ".join(self._drawn.choice(self._words) for _ in range(max(0, tokens - 90)))
        return f"{words} {question}" if words else question


def percentile(values: Sequence[float], share: float) -> float:
    """The value below which `share` of the values lie (nearest rank)."""
    ranked = sorted(values)
    return ranked[min(len(ranked) - 1, round(share * (len(ranked) - 1)))]


async def ask(client: httpx.AsyncClient, model: str, messages: list[dict[str, Any]], max_tokens: int) -> Answer:
    """One streamed chat completion, greedy. Raises httpx.HTTPError when the server refuses or breaks off."""
    body = {
        "model": model, "messages": messages, "max_tokens": max_tokens, "temperature": 0, "stream": True,
        "stream_options": {"include_usage": True},
    }  # fmt: skip
    started = time.perf_counter()
    first, header, pieces = 0.0, "", []
    usage: dict[str, Any] = {}
    async with client.stream("POST", "/v1/chat/completions", json=body) as response:
        if response.is_error:
            said = (await response.aread()).decode(errors="replace")
            raise httpx.RemoteProtocolError(f"{response.status_code}: {said[:300]}")
        async for line in response.aiter_lines():
            if not line.startswith("data: ") or line == "data: [DONE]":
                continue
            chunk = json.loads(line[6:])
            if chunk.get("error"):
                raise httpx.RemoteProtocolError(f"the server failed: {chunk['error']}")
            delta = chunk["choices"][0].get("delta", {}) if chunk["choices"] else {}
            said = delta.get("content") or delta.get("reasoning") or ""
            if said and not first:
                # A server that does not read Harmony shows the header's tokens as text: a user waits for what is next.
                header += said
                if not header.startswith("<|channel|>") or header.partition("<|message|>")[2]:
                    first = time.perf_counter() - started
            pieces.append(delta.get("content") or "")
            usage = chunk.get("usage") or usage
    total = time.perf_counter() - started
    cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens", 0)
    return Answer(
        first or total, total, usage["completion_tokens"], usage["prompt_tokens"], cached or 0, "".join(pieces)
    )


async def run_load(address: str, model: str, wanted: Load, questions: Questions) -> Tally:
    """A load on one server. Never raises for what the server does."""
    tally = Tally()
    started = time.perf_counter()

    async def stream(client: httpx.AsyncClient) -> None:
        asked = 0
        while asked < LEAST_REQUESTS or time.perf_counter() - started < wanted.seconds:
            asked += 1
            message = {"role": "user", "content": questions.next(wanted.prompt_tokens)}
            began = time.perf_counter()
            for attempt in range(1, ATTEMPTS + 1):
                lost = time.perf_counter() - began
                try:
                    answer = await ask(client, model, [message], wanted.max_tokens)
                except httpx.HTTPError as error:
                    errors = tally.retried if attempt < ATTEMPTS else tally.failures
                    errors.append(f"{type(error).__name__}: {error}")
                    await asyncio.sleep(0.02 * attempt)
                else:
                    # The user has waited since the first attempt.
                    answer = replace(answer, first_s=answer.first_s + lost, total_s=answer.total_s + lost)
                    tally.answers.append(answer)
                    break

    async with httpx.AsyncClient(base_url=address, timeout=wanted.limit_s) as client:
        streams = asyncio.gather(*(stream(client) for _ in range(wanted.streams)))
        try:
            await asyncio.wait_for(streams, wanted.limit_s)
        except TimeoutError:
            tally.given_up = True
    tally.seconds = time.perf_counter() - started
    return tally


def load_row(tally: Tally) -> dict[str, Any]:
    """A tally in figures: tokens a second of all streams together, and milliseconds to the first text."""
    firsts = [answer.first_s for answer in tally.answers] or [float("nan")]
    tokens = sum(answer.tokens for answer in tally.answers)
    return {
        "tokens_per_s": round(tokens / tally.seconds, 1),
        "first_token_p50_ms": round(1e3 * percentile(firsts, 0.5), 1),
        "first_token_p99_ms": round(1e3 * percentile(firsts, 0.99), 1),
        "answers": len(tally.answers),
        "tokens": tokens,
        "retried": len(tally.retried),
        "failed": len(tally.failures),
        "first_error": (tally.failures or tally.retried or [""])[0],
        "given_up": tally.given_up,
    }


async def run_turns(address: str, model: str, history: int, limit_s: float, max_tokens: int = 16) -> list[Answer]:
    """A chat whose history reaches about `history` tokens by its last turn; the turns done within `limit_s`."""
    answers: list[Answer] = []

    async def talk() -> None:
        messages: list[dict[str, Any]] = []
        words = " apples and pears" * (history // (TURNS - 1) // 3)
        async with httpx.AsyncClient(base_url=address, timeout=limit_s) as client:
            for turn in range(TURNS):
                text = f"What is {turn + 12} + {turn + 30}?"
                messages.append({"role": "user", "content": text if turn == TURNS - 1 else f"Note:{words}. {text}"})
                answers.append(await ask(client, model, messages, max_tokens))
                messages.append({"role": "assistant", "content": answers[-1].text or "ok"})

    try:
        await asyncio.wait_for(talk(), limit_s)
    except (TimeoutError, httpx.HTTPError) as error:
        print(f"the chat ended after {len(answers)} turns: {type(error).__name__} {error}", flush=True)
    return answers
