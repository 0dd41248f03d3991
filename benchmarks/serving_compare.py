"""Our server beside mlx-lm's on the same weights and machine, phase by phase in turn, within a given time."""

from __future__ import annotations

import asyncio
import json
import statistics
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import httpx

from benchmarks.serving_client import Answer, Load, Questions, ask, load_row, run_load, run_turns
from benchmarks.serving_process import Command, NotStartedError, Running, started
from mlx_gptoss.bench.report import machine_record

PHASE_SECONDS = 60.0
START_SECONDS = 300.0
_LEAST_SECONDS = 3.0


@dataclass(frozen=True, slots=True)
class Comparison:
    """What to measure. `seconds` bounds all of it; each level of `streams` runs for `level_s` on each server,
    `rounds` times in turn. `history` are tokens before the tenth turn, 0 for no chat. Files are written to `output`
    with .json and .md at its end, after every phase."""

    servers: dict[str, Command]
    streams: tuple[int, ...]
    max_tokens: int
    prompt_tokens: int
    history: int
    rounds: int
    seconds: float
    level_s: float
    output: Path | None
    title: str


@dataclass(slots=True)
class Results:
    """What was measured so far: `load` by server and streams, a row for each round; `turns` by server."""

    title: str
    machine: dict[str, Any]
    setting: dict[str, Any]
    load: dict[str, dict[int, list[dict[str, Any]]]] = field(default_factory=dict)
    turns: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    start_s: dict[str, float] = field(default_factory=dict)
    skipped: list[str] = field(default_factory=list)
    seconds: float = 0.0


class Clock:
    """The time left until the end."""

    def __init__(self, seconds: float, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._began = now()
        self.deadline = self._began + seconds

    @property
    def spent(self) -> float:
        return self._now() - self._began

    def limit(self, most: float) -> float:
        """Seconds that a phase may take: `most`, or what is left."""
        return min(most, self.deadline - self._now())


def compare(wanted: Comparison) -> Results:
    """Measures everything, or as much as the time allows: what did not fit is in `skipped`."""
    clock = Clock(wanted.seconds)
    setting = {name: getattr(wanted, name) for name in ("max_tokens", "prompt_tokens", "history", "rounds", "level_s")}
    results = Results(wanted.title, machine_record(), setting)
    with ExitStack() as stack:
        # One after the other: two models that load at once may need more memory together than they do loaded.
        ready = {}
        for name, command in wanted.servers.items():
            server = stack.enter_context(started(command))
            try:
                _warm(server, wanted, clock)
            except (NotStartedError, httpx.HTTPError, TimeoutError) as problem:
                _skip(results, f"{name}: {problem or type(problem).__name__}")
                continue
            ready[name] = server
            results.start_s[name] = round(clock.spent, 1)
            print(f"{name} is ready after {clock.spent:.0f} s", flush=True)
        questions = Questions()
        if wanted.history:
            # First, because a level that is cut short loses less than a chat that is.
            for name, server in ready.items():
                _chat(results, name, server, wanted, clock)
                _write(results, wanted, clock)
        for streams in wanted.streams:
            for _ in range(wanted.rounds):
                for name, server in ready.items():
                    _level(results, name, server, streams, wanted, clock, questions)
                    _write(results, wanted, clock)
    _write(results, wanted, clock)
    return results


def _warm(server: Running, wanted: Comparison, clock: Clock) -> None:
    """Waits for a first short answer, then as many at once as there will be: what is compiled, is compiled by then."""
    server.wait(time.monotonic() + clock.limit(START_SECONDS))
    questions = Questions(seed=1)

    async def first() -> None:
        async with httpx.AsyncClient(base_url=server.address, timeout=clock.limit(START_SECONDS)) as client:
            await ask(client, server.model, [{"role": "user", "content": questions.next(0)}], 8)

    asyncio.run(asyncio.wait_for(first(), clock.limit(START_SECONDS)))
    limit = clock.limit(PHASE_SECONDS)
    if limit > _LEAST_SECONDS:
        load = Load(max(wanted.streams, default=1), 8, wanted.prompt_tokens, 0.0, limit)
        asyncio.run(run_load(server.address, server.model, load, questions))


def _level(
    results: Results, name: str, server: Running, streams: int, wanted: Comparison, clock: Clock, questions: Questions
) -> None:
    limit = clock.limit(max(PHASE_SECONDS, wanted.seconds / 8))
    if limit < _LEAST_SECONDS:
        _skip(results, f"{name}, {streams} streams: no time left")
        return
    load = Load(streams, wanted.max_tokens, wanted.prompt_tokens, min(wanted.level_s, limit / 2), limit)
    row = load_row(asyncio.run(run_load(server.address, server.model, load, questions)))
    results.load.setdefault(name, {}).setdefault(streams, []).append(row)
    print(f"{name:11} {streams:3} streams: {json.dumps(row)}", flush=True)
    if row["failed"]:
        print(f"{name} says:\n{server.last_words()}", flush=True)


def _chat(results: Results, name: str, server: Running, wanted: Comparison, clock: Clock) -> None:
    limit = clock.limit(max(PHASE_SECONDS, wanted.seconds / 4))
    if limit < _LEAST_SECONDS:
        _skip(results, f"{name}, chat: no time left")
        return
    answers = asyncio.run(run_turns(server.address, server.model, wanted.history, limit))
    results.turns[name] = [_turn(answer) for answer in answers]
    for number, turn in enumerate(results.turns[name], 1):
        print(f"{name:11} turn {number:2}: {json.dumps(turn)}", flush=True)


def _turn(answer: Answer) -> dict[str, Any]:
    return {key: round(value, 4) for key, value in asdict(answer).items() if key != "text"}


def _skip(results: Results, what: str) -> None:
    results.skipped.append(what)
    print(f"skipped: {what}", flush=True)


def _write(results: Results, wanted: Comparison, clock: Clock) -> None:
    results.seconds = round(clock.spent, 1)
    if wanted.output is None:
        return
    wanted.output.parent.mkdir(parents=True, exist_ok=True)
    wanted.output.with_suffix(".json").write_text(json.dumps(asdict(results), indent=1) + "\n")
    wanted.output.with_suffix(".md").write_text(table(results))


def table(results: Results) -> str:
    """The results in Markdown; of several rounds the median."""
    names = list(results.load) or list(results.turns)
    setting, machine = results.setting, results.machine
    lines = [
        f"# {results.title}",
        "",
        f"{machine['device']}, MLX {machine['mlx']}, mlx-gptoss {machine['mlx_gptoss']}. Every stream asks one "
        f"question after the other, greedy: prompts of about {setting['prompt_tokens'] or 90} tokens that share only "
        f"the system message, answers of at most {setting['max_tokens']} tokens. A round goes on asking for "
        f"{setting['level_s']:g} s, and twice in each stream; medians of {setting['rounds']}.",
        "",
        "| streams | " + " | ".join(f"{name}, tokens/s" for name in names) + " | "
        + " | ".join(f"{name}, first token p50 / p99 (ms)" for name in names) + " |",
        "|---" * (1 + 2 * len(names)) + "|",
    ]  # fmt: skip
    for streams in sorted({level for levels in results.load.values() for level in levels}):
        rows = [results.load[name].get(streams, []) for name in names]
        speeds = " | ".join(_middle(row, "tokens_per_s") for row in rows)
        firsts = " | ".join(
            f"{_middle(row, 'first_token_p50_ms')} / {_middle(row, 'first_token_p99_ms')}" for row in rows
        )
        lines.append(f"| {streams} | {speeds} | {firsts} |")
    if results.turns:
        talking = list(results.turns)
        lines += [
            "",
            "| turn | " + " | ".join(f"{name}: prompt (cached), first token ms" for name in talking) + " |",
            "|---" * (1 + len(talking)) + "|",
        ]
        for turn in range(max(len(turns) for turns in results.turns.values())):
            cells = [_turn_cell(results.turns[name], turn) for name in talking]
            lines.append(f"| {turn + 1} | {' | '.join(cells)} |")
    if results.skipped:
        lines += ["", "Not measured: " + "; ".join(" ".join(what.split())[:300] for what in results.skipped) + "."]
    return "\n".join(lines) + "\n"


def _middle(rows: list[dict[str, Any]], key: str) -> str:
    mark = "*" if any(row["given_up"] or row["failed"] for row in rows) else ""
    return f"{statistics.median(row[key] for row in rows):.1f}{mark}" if rows else "not measured"


def _turn_cell(turns: list[dict[str, Any]], index: int) -> str:
    if index >= len(turns):
        return "not measured"
    turn = turns[index]
    return f"{turn['prompt_tokens']} ({turn['cached_tokens']}), {1e3 * turn['first_s']:.0f}"
