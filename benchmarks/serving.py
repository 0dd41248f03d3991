"""What serving costs: overhead a token, throughput and first tokens of many streams, the tenth turn of a long chat.

    python -m benchmarks.serving overhead
    python -m benchmarks.serving peer-folder FOLDER      # the demo checkpoint as a folder that mlx-lm's server opens
    python -m benchmarks.serving compare --model demo --peer FOLDER --output results/serving-demo
    python -m benchmarks.serving compare --random 20b --backend cuda --output results/serving-20b

`compare` measures our server and mlx-lm's in turn, each in a process of its own, and ends after --seconds whatever
happens; without --peer (and --random) it measures ours alone. It writes OUTPUT.json and OUTPUT.md after every phase.
`overhead` prints a table and one JSON line.
"""

from __future__ import annotations

import argparse
import json
import signal
from pathlib import Path
from types import FrameType

from benchmarks import serving_process as process
from benchmarks.serving_compare import Comparison, compare, table


def run_overhead(arguments: argparse.Namespace) -> None:
    from benchmarks.serving_stub import measure

    rows = [measure(route, streams, arguments.tokens) for route in ("chat", "ollama", "responses", "anthropic")
            for streams in (1, 8)]  # fmt: skip
    print("| route | streams | overhead a token (us) | tokens/s through the server |\n|---|---|---|---|")
    for row in rows:
        print(f"| {row['route']} | {row['streams']} | {row['us_per_token']} | {row['tokens_per_s']} |")
    print(json.dumps({"overhead": rows}))


def run_peer_folder(arguments: argparse.Namespace) -> None:
    from benchmarks.peer_folder import peer_folder

    print(json.dumps({"folder": str(peer_folder(arguments.folder))}))


def run_compare(arguments: argparse.Namespace) -> None:
    if arguments.random is not None:
        servers = {"ours": process.random_ours(arguments.random, arguments.layers, arguments.backend)}
        if not arguments.alone:
            servers["mlx-lm"] = process.random_peer(arguments.random, arguments.layers)
        layers = "" if arguments.layers is None else f", {arguments.layers} layers"
        model = f"random {arguments.random} weights{layers}"
    else:
        servers = {"ours": process.ours(arguments.model, arguments.backend)}
        if arguments.peer is not None and not arguments.alone:
            servers["mlx-lm"] = process.peer(arguments.peer)
        model = arguments.model
    results = compare(
        Comparison(
            servers=servers,
            streams=tuple(arguments.streams),
            max_tokens=arguments.max_tokens,
            prompt_tokens=arguments.prompt_tokens,
            history=arguments.history,
            rounds=arguments.rounds,
            seconds=arguments.seconds,
            level_s=arguments.level_seconds,
            output=arguments.output,
            title=f"Serving {model}",
        )
    )
    print(table(results))
    if not results.load and not results.turns:
        raise SystemExit("nothing was measured")


def _end(number: int, frame: FrameType | None) -> None:
    # Through the context managers, so that no server outlives us.
    raise SystemExit(128 + number)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    command = commands.add_parser("compare")
    command.add_argument("--model", default="demo", help="a model name or model folder")
    command.add_argument("--peer", metavar="FOLDER", help="the same checkpoint as mlx-lm's server opens it")
    command.add_argument("--random", choices=["20b", "120b"], help="random weights in memory, for both servers")
    command.add_argument("--layers", type=int, default=None, help="of the random weights, instead of all")
    command.add_argument("--alone", action="store_true", help="without mlx-lm's server")
    command.add_argument("--backend", default="auto", choices=["auto", "stock", "metal", "cuda"])
    command.add_argument("--streams", type=int, nargs="+", default=[1, 4, 8, 16])
    command.add_argument("--rounds", type=int, default=1, help="of each level on each server, in turn")
    command.add_argument("--level-seconds", type=float, default=4.0, help="how long each level goes on asking")
    command.add_argument("--max-tokens", type=int, default=64)
    command.add_argument("--prompt-tokens", type=int, default=256, help="of each question; 0 for a short one")
    command.add_argument("--history", type=int, default=8192, help="tokens before the tenth turn; 0 for no chat")
    command.add_argument("--seconds", type=float, default=150.0, help="for everything; what does not fit is left out")
    command.add_argument("--output", type=Path, default=None, metavar="PATH", help="writes PATH.json and PATH.md")
    command.set_defaults(run=run_compare)
    overhead = commands.add_parser("overhead")
    overhead.add_argument("--tokens", type=int, default=2000)
    overhead.set_defaults(run=run_overhead)
    folder = commands.add_parser("peer-folder")
    folder.add_argument("folder", type=Path)
    folder.set_defaults(run=run_peer_folder)
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, _end)
    arguments.run(arguments)


if __name__ == "__main__":
    main()
