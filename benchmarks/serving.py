"""What serving costs: overhead a token, throughput and first tokens of many streams, the tenth turn of a long chat.

    python -m benchmarks.serving overhead
    python -m benchmarks.serving load  --model demo [--backend stock] [--streams 1 4 8 16]
    python -m benchmarks.serving turns --model demo
    python -m benchmarks.serving load  --peer FOLDER     # mlx-lm's server on a folder it opens
    python -m benchmarks.serving peer-folder FOLDER      # the demo checkpoint as such a folder

Each prints a table and, last, one JSON line.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import httpx

START_SECONDS = 300.0
REQUESTS_A_STREAM = 2
HISTORY_TOKENS = 8_192
TURNS = 10


@dataclass(frozen=True, slots=True)
class Answer:
    """One streamed answer: seconds to the first token and in all, completion and cached prompt tokens."""

    first_s: float
    total_s: float
    tokens: int
    prompt_tokens: int
    cached_tokens: int
    text: str


def percentile(values: Sequence[float], share: float) -> float:
    """The value below which `share` of the values lie (nearest rank)."""
    ranked = sorted(values)
    return ranked[min(len(ranked) - 1, round(share * (len(ranked) - 1)))]


async def ask(client: httpx.AsyncClient, model: str, messages: list[dict[str, Any]], max_tokens: int) -> Answer:
    """One streamed chat completion, greedy."""
    body = {
        "model": model, "messages": messages, "max_tokens": max_tokens, "temperature": 0, "stream": True,
        "stream_options": {"include_usage": True},
    }  # fmt: skip
    started = time.perf_counter()
    first, pieces = 0.0, []
    usage: dict[str, Any] = {}
    async with client.stream("POST", "/v1/chat/completions", json=body) as response:
        async for line in response.aiter_lines():
            if not line.startswith("data: ") or line == "data: [DONE]":
                continue
            chunk = json.loads(line[6:])
            if chunk.get("error"):
                raise SystemExit(f"the server failed: {chunk['error']}")
            delta = chunk["choices"][0].get("delta", {}) if chunk["choices"] else {}
            said = delta.get("content") or delta.get("reasoning") or ""
            pieces.append(delta.get("content") or "")
            if said and not first:
                first = time.perf_counter() - started
            usage = chunk.get("usage") or usage
    total = time.perf_counter() - started
    cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens", 0)
    return Answer(
        first or total, total, usage["completion_tokens"], usage["prompt_tokens"], cached or 0, "".join(pieces)
    )


async def load(address: str, model: str, streams: int, max_tokens: int) -> dict[str, float]:
    """`streams` clients, each asking one question after the other. Tokens a second of all together."""
    answers: list[Answer] = []
    failures: list[str] = []

    async def stream(client: httpx.AsyncClient, index: int) -> None:
        for turn in range(REQUESTS_A_STREAM):
            question = f"What is {(7 * index + 3 * turn) % 50 + 10} + {(5 * index + turn) % 40 + 10}?"
            try:
                answers.append(await ask(client, model, [{"role": "user", "content": question}], max_tokens))
            except httpx.HTTPError as error:
                failures.append(type(error).__name__)

    async with httpx.AsyncClient(base_url=address, timeout=600) as client:
        started = time.perf_counter()
        await asyncio.gather(*(stream(client, index) for index in range(streams)))
        seconds = time.perf_counter() - started
    firsts = [answer.first_s for answer in answers] or [float("nan")]
    return {
        "streams": streams,
        "tokens_per_s": round(sum(answer.tokens for answer in answers) / seconds, 1),
        "first_token_p50_ms": round(1e3 * percentile(firsts, 0.5), 1),
        "first_token_p99_ms": round(1e3 * percentile(firsts, 0.99), 1),
        "tokens": sum(answer.tokens for answer in answers),
        "failed": len(failures),
    }


async def turns(address: str, model: str, history: int) -> list[Answer]:
    """A chat whose history reaches `history` tokens by its last turn."""
    messages: list[dict[str, Any]] = []
    answers: list[Answer] = []
    words = " apples and pears" * (history // (TURNS - 1) // 3)
    async with httpx.AsyncClient(base_url=address, timeout=1200) as client:
        for turn in range(TURNS):
            text = f"What is {turn + 12} + {turn + 30}?"
            messages.append({"role": "user", "content": text if turn == TURNS - 1 else f"Note:{words}. {text}"})
            answer = await ask(client, model, messages, 16)
            answers.append(answer)
            messages.append({"role": "assistant", "content": answer.text or "ok"})
    return answers


# -- servers ----------------------------------------------------------------------------------------------------


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def serving(arguments: argparse.Namespace) -> Iterator[tuple[str, str]]:
    """The address of a server in a process of its own, and the model's name there."""
    port = _free_port()
    if arguments.peer:
        command = [sys.executable, "-m", "mlx_lm", "server", "--model", arguments.peer, "--port", str(port)]
        command += ["--log-level", "ERROR", "--decode-concurrency", "16", "--prompt-concurrency", "16"]
        model, probe = arguments.peer, "/v1/models"
    else:
        command = [sys.executable, "-c", "from mlx_gptoss.cli import main; main()", "serve"]
        command += ["--model", arguments.model, "--port", str(port)]
        command += ["--preload", "--parallel", "16", "--backend", arguments.backend]
        model, probe = arguments.model, "/health"
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
        address = f"http://127.0.0.1:{port}"
        try:
            deadline = time.monotonic() + START_SECONDS
            while True:
                try:
                    httpx.get(f"{address}{probe}", timeout=5).raise_for_status()
                    break
                except httpx.HTTPError:
                    if process.poll() is not None or time.monotonic() > deadline:
                        log.seek(0)
                        raise SystemExit(f"the server did not start:\n{log.read().decode()[-2000:]}") from None
                    time.sleep(0.2)
            yield address, model
        finally:
            process.terminate()
            process.wait(30)


# -- commands ---------------------------------------------------------------------------------------------------


def run_load(arguments: argparse.Namespace) -> dict[str, Any]:
    with serving(arguments) as (address, model):
        asyncio.run(load(address, model, 1, arguments.max_tokens))
        rows = [asyncio.run(load(address, model, streams, arguments.max_tokens)) for streams in arguments.streams]
    print("| streams | tokens/s | first token p50 (ms) | p99 (ms) | failed |\n|---|---|---|---|---|")
    for row in rows:
        print(
            f"| {row['streams']:.0f} | {row['tokens_per_s']} | {row['first_token_p50_ms']} "
            f"| {row['first_token_p99_ms']} | {row['failed']} |"
        )
    return {"load": rows}


def run_turns(arguments: argparse.Namespace) -> dict[str, Any]:
    with serving(arguments) as (address, model):
        asyncio.run(ask_once(address, model))
        answers = asyncio.run(turns(address, model, arguments.history))
    print("| turn | prompt tokens | of them cached | first token (ms) |\n|---|---|---|---|")
    for turn, answer in enumerate(answers, 1):
        print(f"| {turn} | {answer.prompt_tokens} | {answer.cached_tokens} | {1e3 * answer.first_s:.0f} |")
    return {"turns": [{key: value for key, value in asdict(answer).items() if key != "text"} for answer in answers]}


async def ask_once(address: str, model: str) -> None:
    async with httpx.AsyncClient(base_url=address, timeout=600) as client:
        await ask(client, model, [{"role": "user", "content": "hello"}], 8)


def run_overhead(arguments: argparse.Namespace) -> dict[str, Any]:
    from benchmarks.serving_stub import measure

    rows = [measure(route, streams, arguments.tokens) for route in ("chat", "ollama", "responses", "anthropic")
            for streams in (1, 8)]  # fmt: skip
    print("| route | streams | overhead a token (us) | tokens/s through the server |\n|---|---|---|---|")
    for row in rows:
        print(f"| {row['route']} | {row['streams']} | {row['us_per_token']} | {row['tokens_per_s']} |")
    return {"overhead": rows}


def run_peer_folder(arguments: argparse.Namespace) -> dict[str, Any]:
    from benchmarks.peer_folder import peer_folder

    return {"folder": str(peer_folder(arguments.folder))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    for name, run in (("load", run_load), ("turns", run_turns)):
        command = commands.add_parser(name)
        command.add_argument("--model", default="demo", help="a model name or model folder")
        command.add_argument("--backend", default="auto", choices=["auto", "stock", "metal", "cuda"])
        command.add_argument("--peer", metavar="FOLDER", help="measure mlx-lm's server on this folder instead")
        command.add_argument("--streams", type=int, nargs="+", default=[1, 4, 8, 16])
        command.add_argument("--history", type=int, default=HISTORY_TOKENS, help="tokens before the tenth turn")
        command.add_argument("--max-tokens", type=int, default=64)
        command.set_defaults(run=run)
    overhead = commands.add_parser("overhead")
    overhead.add_argument("--tokens", type=int, default=2000)
    overhead.set_defaults(run=run_overhead)
    folder = commands.add_parser("peer-folder")
    folder.add_argument("folder", type=Path)
    folder.set_defaults(run=run_peer_folder)
    arguments = parser.parse_args()
    print(json.dumps(arguments.run(arguments)))


if __name__ == "__main__":
    main()
