"""Converts a fine-tune of gpt-oss, with LoRA adapters merged if there are any, and says what it cost.

    python examples/convert_finetune.py my-finetune/ my-model/
    python examples/convert_finetune.py gpt-oss-20b/ my-model/ --adapter my-lora/ --attention q8

The source may be what transformers' `save_pretrained` writes (dense bf16, fp16 or fp32 experts, quantised to MXFP4
here), the released MXFP4 checkpoint (experts are kept bit for bit), or a GGUF file. The result loads with
`GptOss.load("my-model/")` and `mlx-gptoss chat --model my-model/`.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from mlx_gptoss.convert import convert
from mlx_gptoss.convert.summary import summarise
from mlx_gptoss.convert.verify import verify
from mlx_gptoss.errors import GptOssError


def show_progress(done: int, total: int) -> None:
    print(f"\r{done / total:6.1%} of {total / 1e9:.2f} GB", end="", file=sys.stderr, flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("source", type=Path, help="the fine-tune, or the model that the adapters belong to")
    parser.add_argument("target", type=Path, help="the model folder to write")
    parser.add_argument("--adapter", type=Path, action="append", default=[], help="a LoRA folder; may be repeated")
    parser.add_argument("--attention", default="source", help="bf16, mxfp8, q8, q6 or q4")
    parser.add_argument("--experts", default="mxfp4", choices=["mxfp4", "bf16"])
    options = parser.parse_args()
    try:
        manifest = convert(
            options.source,
            options.target,
            attention=options.attention,
            experts=options.experts,
            adapters=options.adapter,
            progress=show_progress,
        )
        verified = verify(options.target)
    except GptOssError as error:
        print(f"\n{error}", file=sys.stderr)
        return 1
    print(file=sys.stderr)
    for note in manifest.notes:  # quantisation error of every expert matrix, adapters merged, values rounded
        print(note)
    for part in summarise(options.target).parts:
        print(f"{part.name:18} {part.format:16} {part.nbytes / 1e6:9.1f} MB  {part.share:6.1%}")
    print(f"{verified.tensors} tensors verified in {options.target}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
