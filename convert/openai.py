"""OpenAI's original layout (`original/` of the released repositories): fused QKV and MXFP4 experts, as we store them.

`block.N.attn.qkv` holds queries, keys and values one after another; `mlp1` is gate and up with alternating rows, `mlp2`
is down. config.json has OpenAI's own key spellings; the target gets Hugging Face's.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from mlx_gptoss.convert.adapters import Adapter
from mlx_gptoss.convert.files import fingerprint
from mlx_gptoss.convert.huggingface import Taker, read_config
from mlx_gptoss.convert.safetensors import Checkpoint
from mlx_gptoss.convert.source import Source
from mlx_gptoss.convert.tensors import Rows
from mlx_gptoss.errors import ConversionError
from mlx_gptoss.folder import layer

_LAYER: Mapping[str, str] = {
    "attn_norm.weight": "attn.norm.scale",
    "qkv.weight": "attn.qkv.weight",
    "qkv.bias": "attn.qkv.bias",
    "sinks": "attn.sinks",
    "out.weight": "attn.out.weight",
    "out.bias": "attn.out.bias",
    "mlp_norm.weight": "mlp.norm.scale",
    "router.weight": "mlp.gate.weight",
    "router.bias": "mlp.gate.bias",
    "gate_up.scales": "mlp.mlp1_weight.scales",
    "gate_up.bias": "mlp.mlp1_bias",
    "down.scales": "mlp.mlp2_weight.scales",
    "down.bias": "mlp.mlp2_bias",
}
_TOP: Mapping[str, str] = {
    "embed.weight": "embedding.weight",
    "norm.weight": "norm.scale",
    "head.weight": "unembedding.weight",
}
_BLOCKS: Mapping[str, str] = {"gate_up.blocks": "mlp.mlp1_weight.blocks", "down.blocks": "mlp.mlp2_weight.blocks"}


def open_openai(folder: Path, checkpoint: Checkpoint, adapters: Sequence[Adapter]) -> Source:
    """A checkpoint in OpenAI's original layout. Raises ConfigError, CheckpointError or ConversionError."""
    if adapters:
        raise ConversionError(
            "adapters are merged into Hugging Face checkpoints only", where=str(folder),
            hint="Use the repository's top folder instead of original/",
        )  # fmt: skip
    raw, _, config = read_config(folder)
    take = Taker(checkpoint, str(folder))
    tensors: dict[str, Rows] = {ours: take.rows(theirs) for ours, theirs in _TOP.items()}
    for index in range(config.num_layers):
        base = f"block.{index}."
        tensors.update({layer(index, ours): take.rows(base + theirs) for ours, theirs in _LAYER.items()})
        tensors.update({layer(index, ours): take.blocks(base + theirs) for ours, theirs in _BLOCKS.items()})
    return Source(
        kind="openai",
        path=folder,
        config=config,
        config_json=(json.dumps(config.to_dict(), indent=2) + "\n").encode(),
        tensors=tensors,
        files=checkpoint.files,
        fingerprint=fingerprint(checkpoint.files, [raw, *checkpoint.headers]),
        ignored=take.ignored(),
    )
