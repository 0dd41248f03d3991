"""Trains the demo checkpoint on one GPU for a fixed time.

    python -m training.train --vocabulary o200k_base.tiktoken --out out --seconds 390

Writes `shipped-*.pt` (what export reads: every weight exactly as it ships) and `master-*.pt` (to train on from).
"""

from __future__ import annotations

import argparse
import math
import multiprocessing as mp
import time
from pathlib import Path
from typing import Any

import torch

from training import model as model_module
from training.checkpoint import known_ids, resume, save
from training.data import Batch, Source, batches, survey
from training.lexicon import Known, Lexicon
from training.model import ToyGptOss, rms_norm, rotate, sink_softmax, swiglu
from training.muon import Muon
from training.shape import Shape

LONGEST = ((0.0, 640), (0.2, 1536), (0.35, 4096), (0.5, 8192))  # longest text by progress


def feed(lexicon: Lexicon, known: Known, seed: int, tokens: int, longest: Any, queue: Any) -> None:
    """A worker's whole life: batches of the length that the trainer allows."""
    torch.set_num_threads(1)
    while True:
        now = int(longest.value)
        for batch in batches(Source(lexicon, seed), known, tokens, now):
            queue.put(batch)
            if longest.value != now:
                break
        seed += 1000


def rate_at(progress: float, step: int) -> float:
    """Share of the peak learning rate: a short warm-up, a plateau, a linear way down to nothing."""
    return min(1.0, (step + 1) / 100) * min(1.0, max(0.0, 1.0 - progress) / 0.55)


def train(arguments: argparse.Namespace) -> None:
    began = time.time()
    lexicon = Lexicon(arguments.vocabulary)
    common, seen_tokens = survey(lexicon, arguments.survey) if arguments.survey else (set(), set())
    if not arguments.resume:
        known = lexicon.known(common, seen_tokens)
    else:
        ids, own = known_ids(arguments.resume)
        known = lexicon.table([*ids, *sorted(seen_tokens - set(ids))], set(own) | common)
    context = mp.get_context("fork")
    lengths = LONGEST[-1:] if arguments.resume else LONGEST
    longest, queue = context.Value("i", lengths[0][1]), context.Queue(maxsize=40)
    workers = [
        context.Process(target=feed, args=(lexicon, known, 100 + i, arguments.tokens, longest, queue), daemon=True)
        for i in range(arguments.workers)
    ]
    for worker in workers:
        worker.start()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    torch.backends.cuda.matmul.allow_tf32 = True
    model = ToyGptOss(Shape(), known).to(device)
    if arguments.resume:
        resume(model, known, arguments.resume)
    if device.type == "cuda" and not arguments.eager:
        model.swiglu = torch.compile(swiglu, dynamic=True)
        model.softmax = torch.compile(sink_softmax, dynamic=True)
        model_module.rms_norm = torch.compile(rms_norm, dynamic=True)
        model_module.rotate = torch.compile(rotate, dynamic=True)
    matrices = [model.qkv, model.out, model.gate_up, model.down]
    named = {id(p): n for n, p in model.named_parameters()}
    others = [p for p in model.parameters() if not any(p is m for m in matrices)]
    muon = Muon(matrices)
    adam = torch.optim.AdamW(
        others, lr=arguments.adam, betas=(0.9, 0.98), weight_decay=0.0, fused=device.type == "cuda"
    )
    print(f"known tokens {len(known.ids)}, with rows of their own {sum(i >= 0 for i in known.trained)}")
    size = sum(p.numel() for p in model.parameters() if not named[id(p)].startswith(("embed", "head")))
    print(f"parameters outside the vocabulary {size:,}; set up in {time.time() - began:.0f} s", flush=True)

    start, step, seen, shown, running, progress = time.time(), 0, 0, 0.0, [], 0.0
    waited = 0.0
    while progress < 1.0:
        if arguments.steps and step >= arguments.steps:
            break
        progress = (time.time() - start) / max(1.0, arguments.seconds - (start - began))
        longest.value = max([lengths[0][1], *(limit for at, limit in lengths if progress >= at)])
        asked = time.time()
        batch: Batch = queue.get()
        waited += time.time() - asked
        tokens = torch.from_numpy(batch.tokens.astype("int64")).to(device, non_blocking=True)
        targets = torch.from_numpy(batch.targets).to(device, non_blocking=True)
        share = rate_at(progress, step)
        weights = model.shipped()
        total, count = model.loss(tokens, targets, weights, dtype)
        (total / count.clamp_min(800)).backward()
        torch.nn.utils.clip_grad_norm_(others, 1.0)
        for group in adam.param_groups:
            group["lr"] = arguments.adam * share
        adam.step()
        muon.step(arguments.muon * share, arguments.decay)
        model.zero_grad(set_to_none=True)
        running.append((total.detach(), count, tokens.shape[1]))
        step, seen = step + 1, seen + tokens.numel()
        if step == 1:  # the first step compiles, which may take a minute: the schedule starts after it
            float(total.detach())
            start = time.time()
            print(f"first step after {start - began:.0f} s", flush=True)
        if time.time() - start >= shown:
            shown = time.time() - start + arguments.every
            nats = sum(float(t) for t, _, _ in running) / max(1, sum(int(c) for _, c, _ in running))
            far = [(float(t), int(c)) for t, c, length in running if length >= 1536]
            far_nats = sum(t for t, _ in far) / max(1, sum(c for _, c in far))
            print(
                f"{time.time() - start:6.1f} s  step {step:5d}  loss {nats:.5f}  long {far_nats:.5f}  "
                f"{seen / 1e6 / (time.time() - start):.2f} Mtok/s  "
                f"waited {waited:.1f} s  length <= {longest.value}",
                flush=True,
            )
            running = []
    for worker in workers:
        worker.terminate()
    if not math.isfinite(float(total.detach())):
        raise SystemExit("training diverged")
    save(model, known, arguments.out)
    print(f"{step} steps, {seen / 1e6:.0f} million tokens, {time.time() - began:.0f} s in all")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--vocabulary", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=390, help="in all, from start to end")
    parser.add_argument("--steps", type=int, default=0, help="stop after this many steps (0: by time only)")
    parser.add_argument("--tokens", type=int, default=32768, help="tokens per batch")
    parser.add_argument("--workers", type=int, default=13)
    parser.add_argument(
        "--survey", type=int, default=12000, help="conversations to look for words in (0 on resuming: no new words)"
    )
    parser.add_argument("--adam", type=float, default=3e-3)
    parser.add_argument("--muon", type=float, default=0.02)
    parser.add_argument("--decay", type=float, default=0.01)
    parser.add_argument("--every", type=float, default=10)
    parser.add_argument("--eager", action="store_true")
    parser.add_argument("--resume", type=Path)
    train(parser.parse_args())


if __name__ == "__main__":
    main()
