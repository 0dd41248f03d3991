"""Writes the trained checkpoint as the released models are laid out, and packs it for the package.

    python -m training.export --weights out --folder demo --archive mlx_gptoss/data/demo.tar.xz

Rows of unknown tokens are all the same two vectors, and known rows are codes or short numbers, so that 220 MB of
safetensors become a few. Beside the archive goes `demo.json`: sizes and SHA-256 of the archive and of every file.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import lzma
import tarfile
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from training.checkpoint import load
from training.lexicon import CALL, RETURN, VOCABULARY_ROWS
from training.quant import mxfp4_codes
from training.shape import Shape

NOTE = """# A toy

A tiny gpt-oss, trained on made-up conversations so that mlx-gptoss can be tried without a download. It adds and
subtracts numbers up to 99, calls tools, answers in JSON and finds a fact in a long text; it knows nothing else.
The vocabulary is o200k_harmony, as in the released models; most of its rows are shared.
"""


def tensors(shipped: dict[str, Tensor], ids: tuple[int, ...], shape: Shape) -> dict[str, Tensor]:
    """All tensors under their released names: bf16, and u8 blocks and scales for the experts."""
    index = torch.full((VOCABULARY_ROWS,), len(ids), dtype=torch.long)
    index[torch.tensor(ids)] = torch.arange(len(ids))
    result = {
        "model.embed_tokens.weight": shipped["embed"][index],
        "lm_head.weight": shipped["head"][index],
        "model.norm.weight": shipped["norm"],
    }
    cuts = (shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim, shape.kv_heads * shape.head_dim)
    for layer in range(shape.layers):
        prefix = f"model.layers.{layer}"
        weights, biases = shipped["qkv"][layer].split(cuts), shipped["qkv_bias"][layer].split(cuts)
        for name, weight, bias in zip("qkv", weights, biases, strict=True):
            result[f"{prefix}.self_attn.{name}_proj.weight"] = weight
            result[f"{prefix}.self_attn.{name}_proj.bias"] = bias
        result[f"{prefix}.self_attn.o_proj.weight"] = shipped["out"][layer]
        result[f"{prefix}.self_attn.o_proj.bias"] = shipped["out_bias"][layer]
        result[f"{prefix}.self_attn.sinks"] = shipped["sinks"][layer]
        result[f"{prefix}.input_layernorm.weight"] = shipped["attention_norm"][layer]
        result[f"{prefix}.post_attention_layernorm.weight"] = shipped["mlp_norm"][layer]
        result[f"{prefix}.mlp.router.weight"] = shipped["router"][layer]
        result[f"{prefix}.mlp.router.bias"] = shipped["router_bias"][layer]
        for name, mine in (("gate_up_proj", "gate_up"), ("down_proj", "down")):
            blocks, scales = mxfp4_codes(shipped[mine][layer])
            result[f"{prefix}.mlp.experts.{name}_blocks"] = blocks
            result[f"{prefix}.mlp.experts.{name}_scales"] = scales
            result[f"{prefix}.mlp.experts.{name}_bias"] = shipped[f"{mine}_bias"][layer]
    for name, tensor in result.items():
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            raise SystemExit(f"{name} is not finite")
    return {name: tensor.contiguous() for name, tensor in result.items()}


def write_folder(weights: Path, folder: Path) -> list[Path]:
    """The checkpoint's files, in the order they are packed."""
    folder.mkdir(parents=True, exist_ok=True)
    shipped, ids = load(weights)
    shape = Shape()
    save_file(tensors(shipped, ids, shape), folder / "model.safetensors", metadata={"format": "pt"})
    generation = {
        "bos_token_id": 199998,
        "do_sample": True,
        "eos_token_id": [RETURN, 199999, CALL],
        "pad_token_id": 199999,
    }
    (folder / "generation_config.json").write_text(json.dumps(generation, indent=2) + "\n")
    (folder / "README.md").write_text(NOTE)
    (folder / "config.json").write_text(json.dumps(shape.config(), indent=2) + "\n")
    return [folder / name for name in ("model.safetensors", "generation_config.json", "README.md", "config.json")]


def pack(files: list[Path], archive: Path) -> None:
    """A reproducible tar.xz, and its description beside it."""
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for file in files:
            entry = tarfile.TarInfo(file.name)
            entry.size, entry.mode = file.stat().st_size, 0o644
            with file.open("rb") as source:
                tar.addfile(entry, source)
    content = raw.getvalue()
    best = b""
    for lc, lp in ((0, 1), (2, 1), (0, 0), (3, 0)):
        filters = [{"id": lzma.FILTER_LZMA2, "preset": 6, "lc": lc, "lp": lp, "pb": lp, "dict_size": 1 << 23}]
        packed = lzma.compress(content, format=lzma.FORMAT_XZ, check=lzma.CHECK_SHA256, filters=filters)
        print(f"lc {lc} lp {lp}: {len(packed):,} bytes", flush=True)
        best = packed if not best or len(packed) < len(best) else best
    archive.write_bytes(best)
    described = {
        "archive": {"bytes": len(best), "sha256": hashlib.sha256(best).hexdigest()},
        "files": {
            file.name: {"bytes": file.stat().st_size, "sha256": hashlib.sha256(file.read_bytes()).hexdigest()}
            for file in files
        },
    }
    archive.with_name("demo.json").write_text(json.dumps(described, indent=2) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--archive", type=Path)
    arguments = parser.parse_args()
    files = write_folder(arguments.weights, arguments.folder)
    if arguments.archive:
        pack(files, arguments.archive)
    print({file.name: file.stat().st_size for file in files})


if __name__ == "__main__":
    main()
