"""Trains the demo checkpoint on one GPU for a fixed time.

    python -m training.train --vocabulary o200k_base.tiktoken --out out --seconds 1080

On several GPUs, `torchrun --standalone --nproc-per-node 8 -m training.train ...`: see `ranks.py`.

Writes `shipped-*.pt` (what export reads: every weight exactly as it ships) and `master-*.pt` (to train on from), at
the end, every `--save-every` seconds, and when it is told to stop by SIGTERM, SIGINT or a file `stop` in `--out`.
"""

from __future__ import annotations

import argparse
import multiprocessing as mp
import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from training.checkpoint import known_ids, resume, save
from training.data import LENGTHS, TASKS, Source, batches, survey
from training.lexicon import Known, Lexicon
from training.model import ToyGptOss
from training.ranks import Ranks
from training.shape import Shape
from training.step import Stepper

LONGEST = ((0.0, 640), (0.06, 1536), (0.12, 4096), (0.2, 8192))  # longest text by progress
AHEAD = 4  # batches that may be waiting on the GPU
PAUSED = 90.0  # an update that took more seconds was stopped from outside: the schedule waits for it


@dataclass(frozen=True, slots=True)
class Draw:
    """Tokens in a batch, and the tasks to draw more often."""

    tokens: int
    focus: tuple[str, ...] = ()


def feed(lexicon: Lexicon, known: Known, draw: Draw, seed: int, longest: Any, queue: Any) -> None:
    """A worker's whole life: batches of the length that the trainer allows."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    torch.set_num_threads(1)
    parent = os.getppid()
    while True:
        now = int(longest.value)
        for batch in batches(Source(lexicon, seed), known, draw.tokens, now, draw.focus):
            queue.put(batch)
            if os.getppid() != parent:
                return
            if longest.value != now:
                break
        seed += 1000


def rate_at(progress: float, step: int, warm_up: int) -> float:
    """Share of the peak learning rate: a short warm-up, a plateau, a linear way down to nothing."""
    return min(1.0, (step + 1) / warm_up) * min(1.0, max(0.0, 1.0 - progress) / 0.6)


class Stop:
    """Whether somebody asked to stop: by a signal, or by a file."""

    def __init__(self, file: Path) -> None:
        self.file, self.signalled = file, False
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self.note)

    def note(self, *_: object) -> None:
        self.signalled = True

    def asked(self) -> bool:
        return self.signalled or self.file.exists()


def known_tokens(arguments: argparse.Namespace, lexicon: Lexicon) -> Known:
    """The known tokens: those of the checkpoint to train on from, or all that a survey of the data finds."""
    if arguments.resume:
        ids, own = known_ids(arguments.resume)
        return lexicon.table(ids, set(own))
    return lexicon.known(*survey(lexicon, arguments.survey))


def report(stepper: Stepper, seconds: float, seen: int, waited: float, progress: float) -> None:
    """One line about what was trained since the last one."""
    totals = {length: inputs.total.tolist() for length, inputs in stepper.inputs.items()}
    for inputs in stepper.inputs.values():
        inputs.total.zero_()

    def mean(least: int, most: int) -> str:
        chosen = [total for length, total in totals.items() if least <= length <= most]
        count = sum(c for _, c in chosen)
        return f"{sum(t for t, _ in chosen) / count:.5f}" if count else "-"

    print(
        f"{seconds:6.1f} s  {progress:6.1%}  step {stepper.steps:6d}  loss to 1024 {mean(0, 1024)}  to 4096 "
        f"{mean(1025, 4096)}  to 8192 {mean(4097, 8192)}  {seen / 1e6 / max(seconds, 1e-3):.2f} Mtok/s  "
        f"waited {waited:.1f} s",
        flush=True,
    )


def train(arguments: argparse.Namespace) -> None:
    began = time.time()
    ranks = Ranks.from_environment()
    stop = Stop(arguments.out / "stop")
    lexicon = Lexicon(arguments.vocabulary)
    known = known_tokens(arguments, lexicon)
    context = mp.get_context("fork")
    lengths = tuple(length for length in LENGTHS if length <= arguments.longest)
    longest, queue = context.Value("i", min(LONGEST[0][1], arguments.longest)), context.Queue(maxsize=60)
    draw = Draw(arguments.tokens, tuple(arguments.focus))
    work, seed = (lexicon, known, draw), arguments.seed + 100 * ranks.rank
    workers = [
        context.Process(target=feed, args=(*work, seed + i, longest, queue), daemon=True)
        for i in range(arguments.workers)
    ]
    for worker in workers:
        worker.start()
    device = ranks.device()
    ranks.join()
    torch.backends.cuda.matmul.allow_tf32 = True
    model = ToyGptOss(Shape(), known).to(device)
    if arguments.resume:
        resume(model, known, arguments.resume)
    size = sum(p.numel() for n, p in model.named_parameters() if not n.startswith(("embed", "head")))
    if ranks.first:
        print(f"known tokens {len(known.ids)}, with rows of their own {sum(i >= 0 for i in known.trained)}")
        print(f"parameters outside the vocabulary {size:,}; set up in {time.time() - began:.0f} s", flush=True)
    on_gpu = device.type == "cuda"
    stepper = Stepper(model, arguments.tokens, arguments.decay, on_gpu and not arguments.eager, ranks)
    stepper.prepare(lengths, not (arguments.eager or arguments.no_compile))
    print(f"rank {ranks.rank} ready after {time.time() - began:.0f} s, {len(stepper.captured)} graphs", flush=True)
    ranks.agreed(0.0, False)  # all are ready

    start, seen, waited = time.time(), 0, 0.0
    room = max(1.0, arguments.seconds - arguments.reserve - (start - began))  # for training alone
    shown, saved, progress, now = 0.0, start, arguments.begin, start
    marks: list[torch.cuda.Event] = []
    share_of_targets = arguments.targets / ranks.world
    while True:
        progress, asked_to_stop = ranks.agreed(progress, stop.asked())
        if progress >= 1.0 or asked_to_stop or (arguments.steps and stepper.steps >= arguments.steps):
            break
        longest.value = min(arguments.longest, max(limit for at, limit in LONGEST if progress >= at))
        targets, taken = 0, 0
        # Ranks wait for each other: with several, each takes the same number of batches, and chance evens them out.
        while taken < arguments.batches if arguments.batches else targets < share_of_targets:
            taken += 1
            asked = time.time()
            batch = queue.get()
            waited += time.time() - asked
            stepper.add(batch)
            seen += batch.tokens.size
            targets += int((batch.labels >= 0).sum())
            if on_gpu:  # do not run far ahead of the GPU: the schedule goes by the clock
                marks.append(torch.cuda.Event())
                marks[-1].record()
                if len(marks) > AHEAD:
                    marks.pop(0).synchronize()
        share = rate_at(progress, stepper.steps, arguments.warm_up)
        stepper.update(arguments.muon * share, arguments.adam * share)
        now, before = time.time(), now
        start += now - before if now - before > PAUSED else 0.0
        progress = arguments.begin + (1 - arguments.begin) * (now - start) / room
        if ranks.first and now - start >= shown:
            shown = now - start + arguments.every
            report(stepper, now - start, seen * ranks.world, waited, progress)
        if ranks.first and now - saved >= arguments.save_every:
            save(model, known, arguments.out)
            print(f"saved at {progress:.1%}: go on with --resume {arguments.out} --begin {progress:.2f}", flush=True)
            saved = time.time()
    for worker in workers:
        worker.terminate()
    if ranks.first:
        report(stepper, time.time() - start, seen * ranks.world, waited, progress)
        save(model, known, arguments.out)
        summary = f"{stepper.steps} steps, about {seen * ranks.world / 1e6:.0f} million tokens"
        print(f"{summary}, {time.time() - began:.0f} s in all", flush=True)
    ranks.leave()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--vocabulary", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=1080, help="in all, from start to end")
    parser.add_argument("--reserve", type=float, default=5, help="seconds of those kept for the last save")
    parser.add_argument("--save-every", type=float, default=120, help="seconds between checkpoints")
    parser.add_argument("--steps", type=int, default=0, help="stop after this many updates (0: by time only)")
    parser.add_argument("--tokens", type=int, default=32768, help="tokens per batch")
    parser.add_argument("--targets", type=int, default=9000, help="least targets per update: long batches have few")
    parser.add_argument("--batches", type=int, default=0, help="batches per update and GPU, instead of --targets")
    parser.add_argument("--longest", type=int, default=8192, help="tokens of the longest conversation")
    parser.add_argument("--workers", type=int, default=13)
    parser.add_argument("--focus", nargs="*", choices=TASKS, default=[], help="tasks to draw half of the time")
    parser.add_argument("--survey", type=int, default=12000, help="conversations to look for words in")
    parser.add_argument("--seed", type=int, default=100)
    parser.add_argument("--adam", type=float, default=3e-3)
    parser.add_argument("--muon", type=float, default=0.02)
    parser.add_argument("--warm-up", type=int, default=100, help="updates until the rates are at their peak")
    parser.add_argument("--decay", type=float, default=0.01)
    parser.add_argument("--every", type=float, default=10, help="seconds between lines of the log")
    parser.add_argument("--eager", action="store_true", help="neither compile nor capture graphs")
    parser.add_argument("--no-compile", action="store_true", help="capture graphs of uncompiled functions")
    parser.add_argument("--resume", type=Path, help="a folder that training wrote: go on from its weights")
    parser.add_argument("--begin", type=float, default=0.0, help="where in the schedule to begin, 0 to 1")
    train(parser.parse_args())


if __name__ == "__main__":
    main()
