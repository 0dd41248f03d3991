"""Makes logits.npz: what Hugging Face transformers and OpenAI's torch reference say, in float32.

    pip install torch transformers mlx-lm
    pip download --no-deps --python-version 3.12 --only-binary=:all: gpt-oss && unzip gpt_oss-*.whl -d REFERENCE
    python -m tests.golden.make_logits --reference REFERENCE

Prints the table of README.md: how far this project, mlx-lm and transformers in bfloat16 are from both, on every
position of every case.
`--only-measure` leaves the file alone.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import mlx.core as mx
import numpy as np

from mlx_gptoss.model import GptOssModel
from tests.golden.cases import Case, cases
from tests.golden.compare import distance
from tests.golden.oracles import Logits, mlx_lm_logits, openai_logits, transformers_logits
from tests.tiny import random_weights

TARGET = Path(__file__).with_name("logits.npz")


def our_logits(case: Case, dtype: mx.Dtype) -> Logits:
    """This project's stock model, [L, vocab]."""
    model = GptOssModel(case.config, random_weights(case.config, case.seed, dtype=dtype), dtype)
    return np.array(model(mx.array(case.token_ids)[None])[0])


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--reference", type=Path, required=True, help="folder that holds gpt_oss/torch/model.py")
    parser.add_argument("--only-measure", action="store_true")
    options = parser.parse_args()
    sys.path.insert(0, str(options.reference))
    stored: dict[str, Logits] = {}
    print("| case | oracle | who | dtype | relative error | mean KL | worst KL | flips |")
    print("|---|---|---|---|---|---|---|---|")
    for case in cases():
        ids = case.token_ids
        oracles = {
            "transformers": transformers_logits(case.config, case.seed, ids),
            "openai": openai_logits(case.config, case.seed, ids),
        }
        between = distance(oracles["transformers"], oracles["openai"])
        print(f"| {case.name} | transformers | openai | f32 | {between.relative:.1e} | {between.kl:.1e} | "
              f"{between.worst_kl:.1e} | {between.flips} |")  # fmt: skip
        for name, dtype in (("f32", mx.float32), ("bf16", mx.bfloat16)):
            runs = {
                "this project": our_logits(case, dtype),
                "mlx-lm": mlx_lm_logits(case.config, case.seed, ids, dtype),
            }
            if dtype == mx.bfloat16:
                runs["transformers"] = transformers_logits(case.config, case.seed, ids, bfloat16=True)
            for who, logits in runs.items():
                for oracle, wanted in oracles.items():
                    d = distance(wanted, logits)
                    print(f"| {case.name} | {oracle} | {who} | {name} | {d.relative:.1e} | {d.kl:.1e} | "
                          f"{d.worst_kl:.1e} | {d.flips} |", flush=True)  # fmt: skip
        for oracle, logits in oracles.items():
            stored[f"{case.name}.{oracle}"] = logits[list(case.positions)]
    if not options.only_measure:
        np.savez_compressed(TARGET, allow_pickle=False, **stored)
        print(f"\n{TARGET.name}: {TARGET.stat().st_size} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
