"""Loading a model folder against reading the same bytes with pread, and against mlx-lm, in one run.

    python -m benchmarks.load /data/model --mlx-lm /data/synthetic-20b --rounds 3

`--mlx-lm` names the Hugging Face checkpoint that the folder was made from. Every load is a process of its own and
evaluates every weight; times are those inside the process, from before the first byte is asked for (imports excluded).
Prints the ratios, then one JSON line.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.measure import flush, run

_CHUNK_BYTES = 8 << 20


def read_plainly(folder: Path) -> float:
    """Seconds to pread every shard of a folder into memory, in one thread."""
    buffers: list[bytearray] = []
    files = [(path, path.stat().st_size) for path in sorted(folder.glob("*.safetensors"))]
    start = time.perf_counter()
    for path, size in files:
        buffer = bytearray(size)
        view = memoryview(buffer)
        fd = os.open(path, os.O_RDONLY)
        done = 0
        while done < size:
            done += os.preadv(fd, [view[done : done + _CHUNK_BYTES]], done)
        os.close(fd)
        buffers.append(buffer)
    return time.perf_counter() - start


def load_ours(folder: Path) -> float:
    """Seconds to load a model folder, every weight evaluated."""
    import mlx.core as mx

    from mlx_gptoss.loader import load_weights

    start = time.perf_counter()
    _, weights = load_weights(folder)
    mx.eval(list(weights.arrays()))
    return time.perf_counter() - start


def load_mlx_lm(folder: Path) -> float:
    """Seconds for mlx-lm to load a checkpoint, every weight evaluated."""
    from mlx_lm.utils import load_model

    start = time.perf_counter()
    load_model(folder, lazy=False)
    return time.perf_counter() - start


WAYS: dict[str, Any] = {"pread": read_plainly, "mlx-gptoss": load_ours, "mlx-lm": load_mlx_lm}


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path, help="a model folder")
    parser.add_argument("--mlx-lm", type=Path, default=None, help="the checkpoint it was made from")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--cold", action="store_true", help="empty the page cache before every load")
    parser.add_argument("--only", choices=sorted(WAYS), help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.only:
        print(WAYS[options.only](options.folder))
        return 0
    targets = {"pread": options.folder, "mlx-gptoss": options.folder}
    if options.mlx_lm is not None:
        targets["mlx-lm"] = options.mlx_lm
    seconds: dict[str, list[float]] = {name: [] for name in targets}
    peaks: dict[str, int] = dict.fromkeys(targets, 0)
    for _ in range(options.rounds):
        for name, folder in targets.items():
            if options.cold:
                flush(folder)
            done = run([sys.executable, "-m", "benchmarks.load", folder, "--only", name])
            seconds[name].append(float(done.output.split()[-1]))
            peaks[name] = max(peaks[name], done.peak_bytes)
            print(f"{name:10} {seconds[name][-1]:7.2f} s  peak {done.peak_bytes / 1e9:.2f} GB", flush=True)
    middle = {name: statistics.median(values) for name, values in seconds.items()}
    for name in middle:
        print(f"{name:10} median {middle[name]:.2f} s, {middle[name] / middle['pread']:.2f} x pread")
    print(json.dumps({"benchmark": "load", "cold": options.cold, "seconds": middle, "peak_bytes": peaks}))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
