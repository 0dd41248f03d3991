"""What each precision costs in quality: KL divergence of next-token distributions from bf16's.

    python -m benchmarks.precision_kl                    the demo checkpoint that comes with the package
    python -m benchmarks.precision_kl /data/model        a model folder in bf16

The bf16 model answers a few prompts greedily; then every variant reads the same tokens, and KL(bf16 || variant) is
averaged over all positions. Each part is lowered on its own, then all together, then as the presets have them. Prints
a table (nats per token, share of positions with the same top token, size), then one JSON line.

The demo checkpoint's matrices were rounded to two bits of mantissa so that they pack small: mxfp8 holds them all but
exactly, and the demo says nothing about what mxfp8 costs a real model.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import mlx.core as mx
import numpy as np
import numpy.typing as npt

from mlx_gptoss.convert import PRESETS, Precision, convert
from mlx_gptoss.demo import unpack_demo
from mlx_gptoss.harmony.render import render
from mlx_gptoss.loader import load_model
from mlx_gptoss.messages import UserMessage
from mlx_gptoss.model import GptOssModel
from mlx_gptoss.request import ChatRequest

PROMPTS = ("What is 17 + 25?", "Hello! Who are you?", "What is 91 - 13?")
FORMATS = ("mxfp8", "q8", "q6", "q4")
PARTS = ("attention", "embedding", "head")


@dataclass(frozen=True, slots=True)
class Score:
    """One variant against bf16: mean and largest KL in nats, agreement of the top token, bytes of weights."""

    name: str
    mean_kl: float
    max_kl: float
    same_top: float
    nbytes: int


def variants() -> Iterator[tuple[str, Precision]]:
    for fmt in FORMATS:
        for part in PARTS:
            yield (
                f"{part} {fmt}",
                Precision.from_mapping({"attention": "bf16", "embedding": "bf16", "head": "bf16"} | {part: fmt}),
            )
        yield f"all {fmt}", Precision.from_mapping(dict.fromkeys(PARTS, fmt))
    for name, preset in PRESETS.items():
        yield f"--for {name}", preset


def answer(model: GptOssModel, prompt: Sequence[int], count: int) -> list[int]:
    """The prompt and up to `count` greedy tokens."""
    ids = list(prompt)
    cache = model.make_cache()
    logits = model.prefill([ids], cache)
    for _ in range(count):
        if logits is None:
            break
        ids.append(int(np.array(mx.argmax(logits[0]))))
        if ids[-1] in (200002, 200012):
            break
        logits = model.decode(mx.array([ids[-1]], mx.int32), [cache])
    return ids


def log_probabilities(model: GptOssModel, ids: Sequence[int]) -> mx.array:
    """float32 [L, V] of one sequence."""
    logits = model([list(ids)])[0, :, : model.config.used_vocab_size].astype(mx.float32)
    return logits - mx.logsumexp(logits, axis=-1, keepdims=True)


def compare(
    name: str, model: GptOssModel, texts: Sequence[Sequence[int]], truths: Sequence[mx.array], nbytes: int
) -> Score:
    """Scores `model` on texts whose log-probabilities under bf16 are `truths`."""
    kls: list[npt.NDArray[np.float32]] = []
    same: list[npt.NDArray[np.bool_]] = []
    for ids, truth in zip(texts, truths, strict=True):
        other = log_probabilities(model, ids)
        kls.append(np.array(mx.sum(mx.exp(truth) * (truth - other), axis=-1)))
        same.append(np.array(mx.argmax(truth, axis=-1) == mx.argmax(other, axis=-1)))
    all_kl = np.concatenate(kls)
    return Score(name, float(all_kl.mean()), float(all_kl.max()), float(np.concatenate(same).mean()), nbytes)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path, nargs="?", help="a model folder in bf16 (default: the demo)")
    parser.add_argument("--tokens", type=int, default=32, help="tokens to answer a prompt with")
    options = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as work:
        folder = options.folder
        if folder is None:
            folder = Path(work) / "bf16"
            convert(unpack_demo(Path(work) / "demo"), folder)
        reference = load_model(folder)
        texts = [
            answer(reference, render(ChatRequest(messages=(UserMessage(p),))).token_ids, options.tokens)
            for p in PROMPTS
        ]
        truths = [log_probabilities(reference, ids) for ids in texts]
        mx.eval(truths)
        print(f"{sum(map(len, texts))} positions of {len(texts)} texts")
        print(f"{'variant':18} {'mean KL':>10} {'max KL':>10} same top      size", flush=True)
        scores: list[Score] = []
        for name, precision in variants():
            target = Path(work) / name.replace(" ", "-")
            manifest = convert(
                folder, target, attention=precision.attention, embedding=precision.embedding, head=precision.head
            )
            # The same values as plain bf16: MLX's quantised matmul on a CPU takes minutes for a vocabulary.
            convert(target, target.with_name("plain"), attention="bf16", embedding="bf16", head="bf16")
            scores.append(compare(name, load_model(target.with_name("plain")), texts, truths, manifest.nbytes))
            shutil.rmtree(target)
            shutil.rmtree(target.with_name("plain"))
            s = scores[-1]
            print(
                f"{s.name:18} {s.mean_kl:10.6f} {s.max_kl:10.6f} {s.same_top:8.2%} {s.nbytes / 1e6:6.1f} MB", flush=True
            )
    print(json.dumps({"benchmark": "precision_kl", "kl": {s.name: s.mean_kl for s in scores},
                      "same_top": {s.name: s.same_top for s in scores}}))  # fmt: skip
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
