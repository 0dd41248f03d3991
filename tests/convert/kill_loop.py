"""Kills conversions with SIGKILL at random moments and checks what is left.

    python -m tests.convert.kill_loop SOURCE TARGET KILLS SEED

One process forks every conversion, so that a round costs milliseconds. Prints a JSON line with what happened.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

from mlx_gptoss.convert import convert
from mlx_gptoss.convert.journal import JOURNAL_NAME
from mlx_gptoss.errors import CheckpointError
from mlx_gptoss.folder import is_model_folder, read_manifest


def run_child(source: Path, target: Path, report: int) -> None:
    """Converts in a forked process; writes the bytes found done at the start to `report`."""
    first: list[int] = []

    def progress(done: int, total: int) -> None:
        if not first:
            first.append(done)
            os.write(report, f"{done}\n".encode())

    try:
        convert(source, target, progress=progress, sync_bytes=0, shard_bytes=1 << 20)
    except BaseException as error:
        os.write(report, f"error {error!r}\n".encode())
        os._exit(1)
    os._exit(0)


def attempt(source: Path, target: Path, delay: float | None) -> tuple[str, float]:
    """One conversion, killed after `delay` seconds; what the child said, and how long it ran."""
    read_end, write_end = os.pipe()
    start = time.monotonic()
    pid = os.fork()
    if pid == 0:
        os.close(read_end)
        run_child(source, target, write_end)
    os.close(write_end)
    if delay is not None:
        time.sleep(delay)
        os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    with os.fdopen(read_end) as pipe:
        return pipe.read(), time.monotonic() - start


def check(target: Path) -> str:
    """State of the target: absent, resumable or complete; anything else is an AssertionError."""
    if not target.exists() or not os.listdir(target):
        return "absent"
    if is_model_folder(target):
        read_manifest(target)
        return "complete"
    try:
        read_manifest(target)
    except CheckpointError:
        names = set(os.listdir(target))
        if JOURNAL_NAME not in names:
            raise AssertionError(f"left without a journal: {names}") from None
        return "resumable"
    raise AssertionError("a half-written folder loads")


def main(source: Path, target: Path, kills: int, seed: int) -> None:
    rng = random.Random(seed)
    output, whole = attempt(source, target.with_name("timing"), None)
    if "error" in output:
        raise AssertionError(output)
    counts = {"absent": 0, "resumable": 0, "complete": 0}
    resumed = 0
    done_before = 0
    for _ in range(kills):
        output, _ = attempt(source, target, rng.uniform(0, whole * 0.6))
        if "error" in output:
            raise AssertionError(output)
        if output.strip():
            done = int(output.split()[0])
            resumed += done > 0
            if done < done_before:
                raise AssertionError(f"finished tensors were redone: {done} < {done_before}")
            done_before = done
        state = check(target)
        counts[state] += 1
        if state == "complete":
            for name in os.listdir(target):
                os.unlink(target / name)
            done_before = 0
    output, _ = attempt(source, target, None)
    print(json.dumps({"counts": counts, "resumed": resumed, "last": output.strip(), "final": check(target)}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
