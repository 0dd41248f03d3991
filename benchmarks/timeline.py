"""Where a step's or a prompt's time goes on an NVIDIA GPU: every kernel's own time, and the gaps between kernels.

    python -m benchmarks.timeline --random 20b --context 2048
    python -m benchmarks.timeline --random 20b --prefill 2048

Kernels are traced through CUPTI by PyTorch's profiler, which sees everything its process launches. Tracing itself
stretches short gaps: take shares from here and speeds from `mlx-gptoss bench`.
"""

from __future__ import annotations

import argparse
import itertools
import re
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import mlx.core as mx

from mlx_gptoss.bench.spec import BenchSpec
from mlx_gptoss.bench.subject import load_ours, random_ids
from mlx_gptoss.kernels.backends import cuda_available
from mlx_gptoss.plan.footprint import Precisions

_HASH = re.compile(r"_[0-9a-f]{12}$")


@dataclass(frozen=True, slots=True)
class Span:
    """One kernel on the device, in microseconds since the trace began."""

    name: str
    start: float
    end: float


def trace(work: Callable[[], None]) -> list[Span]:
    """Runs `work` and returns its kernels in the order they began."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        work()
        mx.synchronize()
    spans = []
    for event in profiler.events() or ():
        range_: Any = event.time_range
        if "CUDA" in str(event.device_type) and range_.end > range_.start:
            spans.append(Span(_HASH.sub("", event.name), range_.start, range_.end))
    return sorted(spans, key=lambda span: span.start)


def table(spans: Sequence[Span], rounds: int) -> list[str]:
    """Lines: microseconds a round by kernel, the busiest first; then busy time, gaps and the whole."""
    times: dict[str, list[float]] = defaultdict(list)
    for span in spans:
        times[span.name].append(span.end - span.start)
    lines = [f"{'kernel':48} {'count':>6} {'us each':>9} {'us':>9}"]
    for name, taken in sorted(times.items(), key=lambda item: -sum(item[1])):
        total = sum(taken)
        lines.append(f"{name[:48]:48} {len(taken) / rounds:6.1f} {total / len(taken):9.2f} {total / rounds:9.1f}")
    busy = sum(span.end - span.start for span in spans)
    whole = max(span.end for span in spans) - spans[0].start
    gaps = [max(0.0, after.start - before.end) for before, after in itertools.pairwise(spans)]
    short = sorted(gap for gap in gaps if gap < 20)
    middle = short[len(short) // 2] if short else 0.0
    waits = [gap for gap in gaps if gap >= 20]
    lines.append(
        f"busy {busy / rounds:.1f} us, whole {whole / rounds:.1f} us; median gap {middle:.2f} us; "
        f"{len(waits) / rounds:.1f} gaps of 20 us and more, {sum(waits) / rounds:.1f} us"
    )
    return lines


def host_line(step: Callable[[mx.array], mx.array], tokens: mx.array, rounds: int) -> str:
    """What a step costs the host: building its graph in Python, and MLX's evaluation of it. Not traced."""
    building = evaluating = 0.0
    for _ in range(rounds):
        began = time.perf_counter()
        tokens = step(tokens)
        built = time.perf_counter()
        mx.async_eval(tokens)  # type: ignore[no-untyped-call]  # mlx's stub leaves *args bare
        evaluating += time.perf_counter() - built
        building += built - began
        tokens.tolist()
    return f"host: {building / rounds * 1e6:.0f} us in Python, {evaluating / rounds * 1e6:.0f} us in MLX's evaluation"


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--random", default="20b")
    parser.add_argument("--layers", type=int)
    parser.add_argument("--precision", default="bf16")
    parser.add_argument("--context", type=int, default=2048)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--prefill", type=int, default=0, help="trace a prompt of this length, not decode steps")
    parser.add_argument("--rounds", type=int, default=8)
    options = parser.parse_args(arguments)
    if not cuda_available() or find_spec("torch") is None:
        print("a timeline needs an NVIDIA GPU, and PyTorch for its profiler", file=sys.stderr)
        return 1
    precision = options.precision
    spec = BenchSpec(
        random=options.random, layers=options.layers, precisions=Precisions(precision, precision, precision)
    )
    subject = load_ours(spec)
    if options.prefill:
        prompt = random_ids(subject.config, (1, options.prefill), 0)
        subject.prefill(prompt)
        rounds = 2

        def work() -> None:
            for _ in range(rounds):
                subject.prefill(prompt)
    else:
        rounds = options.rounds
        step = subject.decoder(options.context, options.batch, 4 * rounds)
        tokens = random_ids(subject.config, (options.batch,), 0)
        for _ in range(rounds):
            tokens = step(tokens)
            mx.eval(tokens)
        print(host_line(step, tokens, rounds))

        def work() -> None:
            flying = tokens
            for _ in range(rounds):
                flying = step(flying)
                mx.async_eval(flying)  # type: ignore[no-untyped-call]  # mlx's stub leaves *args bare

    for line in table(trace(work), rounds):
        print(line)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
