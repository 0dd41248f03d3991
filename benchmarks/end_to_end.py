"""A checkpoint of full size from end to end: convert it, load it, answer with it; mlx-lm on the same weights beside.

python -m benchmarks.make_synthetic /tmp/20b-hf --shape 20b
python -m benchmarks.end_to_end /tmp/20b-hf /tmp/20b --prompt 16 --tokens 4
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.measure import flush, folder_bytes, run


def generate_ours(folder: Path, prompt: int, tokens: int) -> dict[str, float]:
    """Load and answer through the public API; seconds and tokens a second."""
    from mlx_gptoss import GptOss
    from mlx_gptoss.request import ChatRequest

    start = time.perf_counter()
    with GptOss.load(folder, context=4096) as llm:
        loaded = time.perf_counter() - start
        request = ChatRequest(prompt_ids=tuple(range(100, 100 + prompt)), max_tokens=tokens)
        done = llm.generate(request, temperature=0)
    return {
        "load_s": loaded,
        "prefill_tps": done.timings.prefill_tps,
        "decode_tps": done.timings.decode_tps,
        "tokens": done.usage.completion_tokens,
    }


def generate_mlx_lm(folder: Path, prompt: int, tokens: int) -> dict[str, float]:
    """The same with mlx-lm's own model, cache and greedy loop."""
    import mlx.core as mx
    from mlx_lm.models.cache import make_prompt_cache
    from mlx_lm.utils import load_model

    start = time.perf_counter()
    model: Any = load_model(folder, lazy=False)[0]
    loaded = time.perf_counter() - start
    cache = make_prompt_cache(model)
    start = time.perf_counter()
    token = mx.argmax(model(mx.arange(100, 100 + prompt)[None], cache=cache)[:, -1], axis=-1)
    mx.eval(token)
    prefill = time.perf_counter() - start
    start = time.perf_counter()
    for _ in range(tokens - 1):
        token = mx.argmax(model(token[:, None], cache=cache)[:, -1], axis=-1)
        mx.eval(token)
    decode = time.perf_counter() - start
    return {"load_s": loaded, "prefill_tps": prompt / prefill, "decode_tps": (tokens - 1) / decode, "tokens": tokens}


WAYS = {"mlx-gptoss": generate_ours, "mlx-lm": generate_mlx_lm}


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("source", type=Path, help="a checkpoint in the Hugging Face layout")
    parser.add_argument("target", type=Path, help="the model folder to make")
    parser.add_argument("--prompt", type=int, default=16, help="prompt tokens")
    parser.add_argument("--tokens", type=int, default=4, help="tokens to generate")
    parser.add_argument("--skip-mlx-lm", action="store_true")
    parser.add_argument("--only", choices=sorted(WAYS), help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.only:
        print(json.dumps(WAYS[options.only](options.source, options.prompt, options.tokens)))
        return 0
    size = folder_bytes(options.source)
    flush(options.source)
    program = "from mlx_gptoss.cli import main; main()"
    made = run([sys.executable, "-c", program, "convert", options.source, options.target])
    result: dict[str, Any] = {
        "benchmark": "end_to_end",
        "source_bytes": size,
        "convert": {"seconds": made.seconds, "bytes_per_second": size / made.seconds, "peak_bytes": made.peak_bytes},
    }
    print(f"convert    {size / 1e9:.2f} GB in {made.seconds:.0f} s, peak {made.peak_bytes / 1e6:.0f} MB", flush=True)
    for name, folder in (("mlx-gptoss", options.target), ("mlx-lm", options.source)):
        if name == "mlx-lm" and options.skip_mlx_lm:
            continue
        only = [sys.executable, "-m", "benchmarks.end_to_end", folder, folder, "--only", name]
        done = run([*only, "--prompt", str(options.prompt), "--tokens", str(options.tokens)])
        found = json.loads(done.output.splitlines()[-1])
        result[name] = {**found, "seconds": done.seconds, "peak_bytes": done.peak_bytes}
        print(
            f"{name:10} load {found['load_s']:.0f} s, prefill {found['prefill_tps']:.3f} tok/s, "
            f"decode {found['decode_tps']:.3f} tok/s, peak {done.peak_bytes / 1e9:.2f} GB",
            flush=True,
        )
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
