"""Conversion against `cp` of the same files, on the same disk, in one run.

    python -m benchmarks.convert /data/synthetic-20b /data/out --rounds 3

Each round copies and converts, in turn, the source dropped from the page cache before, each timed to the end of a
`sync`. Prints GB/s, the ratio (more than 1: faster than cp) and the converter's peak memory, then one JSON line.
`--attention q8` and so on convert with those precisions.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.measure import Run, flush, folder_bytes, run

_CLI = "from mlx_gptoss.cli import main; raise SystemExit(main())"
_SYNCED = '"$@" && sync'


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("source", type=Path)
    parser.add_argument("work", type=Path, help="a folder on the target disk, emptied between rounds")
    parser.add_argument("--rounds", type=int, default=2)
    for part in ("attention", "embedding", "head"):
        parser.add_argument(f"--{part}", default="source")
    parser.add_argument("--keep", action="store_true", help="keep the last model folder as WORK/model")
    options = parser.parse_args(argv)
    size = folder_bytes(options.source)
    choices = [f"--{p}={getattr(options, p)}" for p in ("attention", "embedding", "head")]
    convert = [sys.executable, "-c", _CLI, "convert", *choices, options.source, options.work / "model"]
    copy = ["cp", "-r", options.source, options.work / "copy"]
    options.work.mkdir(parents=True, exist_ok=True)
    results: dict[str, list[Run]] = {"cp": [], "convert": []}
    for number in range(options.rounds):
        order = [("cp", copy), ("convert", convert)]
        for name, command in order if number % 2 == 0 else reversed(order):
            shutil.rmtree(command[-1], ignore_errors=True)
            flush(options.source)
            last = run(["sh", "-c", _SYNCED, "sh", *command])
            results[name].append(last)
            print(
                f"{name:8} {last.seconds:7.2f} s  {size / last.seconds / 1e9:.2f} GB/s  CPU {last.cpu_seconds:.1f} s  "
                f"peak {last.peak_bytes / 1e6:.0f} MB",
                flush=True,
            )
    shutil.rmtree(options.work / "copy", ignore_errors=True)
    if not options.keep:
        shutil.rmtree(options.work / "model", ignore_errors=True)
    best = {name: statistics.median(r.seconds for r in runs) for name, runs in results.items()}
    peak = max(r.peak_bytes for r in results["convert"])
    print(f"convert runs at {best['cp'] / best['convert']:.2f} x cp, peak memory {peak / 1e6:.0f} MB")
    print(json.dumps({
        "benchmark": "convert", "source_bytes": size, "rounds": options.rounds, "cp_s": best["cp"],
        "convert_s": best["convert"], "ratio": best["cp"] / best["convert"], "peak_bytes": peak,
    }))  # fmt: skip
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
