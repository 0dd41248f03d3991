"""The Hugging Face layout: MXFP4 experts as released, or the dense experts of a fine-tune.

Released: `gate_up_proj_blocks` [E, 2I, H/32, 16] and `gate_up_proj_scales` [E, 2I, H/32] (rows alternate gate, up).
Dense: `gate_up_proj` [E, H, 2I] and `down_proj` [E, I, H], which is input-major, so each expert is transposed here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from mlx_gptoss.config import ModelConfig
from mlx_gptoss.convert.adapters import Adapter
from mlx_gptoss.convert.files import fingerprint, read_small
from mlx_gptoss.convert.mxfp4 import TransposedExperts
from mlx_gptoss.convert.safetensors import Checkpoint, Entry, parse_json_object
from mlx_gptoss.convert.source import Source
from mlx_gptoss.convert.tensors import Concatenated, Rows, Stored
from mlx_gptoss.errors import CheckpointError
from mlx_gptoss.folder import CONFIG_NAME, layer

LAYER_NAMES: Mapping[str, str] = {
    "attn_norm.weight": "input_layernorm.weight",
    "sinks": "self_attn.sinks",
    "out.weight": "self_attn.o_proj.weight",
    "out.bias": "self_attn.o_proj.bias",
    "mlp_norm.weight": "post_attention_layernorm.weight",
    "router.weight": "mlp.router.weight",
    "router.bias": "mlp.router.bias",
    "gate_up.bias": "mlp.experts.gate_up_proj_bias",
    "down.bias": "mlp.experts.down_proj_bias",
}
TOP_NAMES: Mapping[str, str] = {
    "embed.weight": "model.embed_tokens.weight",
    "norm.weight": "model.norm.weight",
    "head.weight": "lm_head.weight",
}


def prefix(index: int) -> str:
    """Prefix of the tensors of layer `index`."""
    return f"model.layers.{index}."


class Taker:
    """Takes tensors of a checkpoint by name, remembering which were used."""

    def __init__(self, checkpoint: Checkpoint, where: str, optional_prefix: str = "") -> None:
        self.checkpoint = checkpoint
        self.where = where
        self.optional_prefix = optional_prefix
        self.used: set[str] = set()

    def has(self, name: str) -> bool:
        return name in self.checkpoint.entries

    def entry(self, name: str) -> Entry:
        """The tensor `name`. Raises CheckpointError when it is missing."""
        entry = self.checkpoint.entries.get(name)
        if entry is None:
            raise CheckpointError("a tensor is missing from the source", expected=name, where=self.where)
        self.used.add(name)
        return entry

    def rows(self, name: str, row_dims: int = 1) -> Rows:
        return Stored.of(self.entry(name), row_dims)

    def blocks(self, name: str) -> Rows:
        """MXFP4 blocks [E, N, K/32, 16] with one output row a row."""
        entry = self.entry(name)
        if len(entry.shape) != 4:
            raise CheckpointError(
                f"{name} has the wrong shape", expected="4 axes", got=str(entry.shape), where=self.where
            )
        return Stored.of(entry, 2)

    def ignored(self) -> tuple[str, ...]:
        """Names nobody took."""
        return tuple(sorted(set(self.checkpoint.entries) - self.used))


def read_config(folder: Path) -> tuple[bytes, dict[str, object], ModelConfig]:
    """config.json of a folder: its bytes, its object and the validated config."""
    path = folder / CONFIG_NAME
    raw = read_small(path)
    data = parse_json_object(raw, "config.json", str(path))
    return raw, data, ModelConfig.from_dict(data, str(path))


def open_huggingface(folder: Path, checkpoint: Checkpoint, adapters: Sequence[Adapter]) -> Source:
    """A checkpoint in the Hugging Face layout, with LoRA adapters merged. Raises ConfigError or CheckpointError."""
    raw, _, config = read_config(folder)
    take = Taker(checkpoint, str(folder))
    merged = merger(adapters)
    tensors: dict[str, Rows] = {
        ours: merged(theirs.removesuffix(".weight"), take.rows(theirs)) if ours != "norm.weight" else take.rows(theirs)
        for ours, theirs in TOP_NAMES.items()
    }
    dense = False
    for index in range(config.num_layers):
        base = prefix(index)
        for ours, theirs in LAYER_NAMES.items():
            rows = take.rows(base + theirs)
            tensors[layer(index, ours)] = merged((base + theirs).removesuffix(".weight"), rows)
        tensors.update(fused_qkv(take, index, merged))
        for ours, theirs in (("gate_up", "gate_up_proj"), ("down", "down_proj")):
            name = f"{base}mlp.experts.{theirs}"
            if take.has(f"{name}_blocks") or not take.has(name):
                tensors[layer(index, f"{ours}.blocks")] = take.blocks(f"{name}_blocks")
                tensors[layer(index, f"{ours}.scales")] = take.rows(f"{name}_scales")
            else:
                dense = True
                tensors[layer(index, f"{ours}.weight")] = dense_experts(take, name)
    check_adapters_used(adapters)
    return Source(
        kind="huggingface-dense" if dense else "huggingface",
        path=folder,
        config=config,
        config_json=raw,
        tensors=tensors,
        files=(*checkpoint.files, *(f for a in adapters for f in a.files)),
        fingerprint=fingerprint(checkpoint.files, [raw, *checkpoint.headers, *(a.stamp for a in adapters)]),
        ignored=take.ignored(),
        notes=tuple(a.note() for a in adapters),
    )


def fused_qkv(take: Taker, index: int, merged: Callable[[str, Rows], Rows]) -> dict[str, Rows]:
    """Query, key and value projections, one after another."""
    base = f"{prefix(index)}self_attn."
    names = [f"{base}{p}_proj" for p in ("q", "k", "v")]
    weights = [merged(name, take.rows(f"{name}.weight")) for name in names]
    biases = [take.rows(f"{name}.bias") for name in names]
    return {
        layer(index, "qkv.weight"): Concatenated.of(weights, names),
        layer(index, "qkv.bias"): Concatenated.of(biases, names),
    }


def dense_experts(take: Taker, name: str) -> Rows:
    """Dense experts [E, K, N] as [E, N, K]."""
    entry = take.entry(name)
    if len(entry.shape) != 3 or entry.dtype not in ("BF16", "F16", "F32"):
        raise CheckpointError(
            f"{name} is not a dense expert matrix", expected="BF16|F16|F32 with 3 axes",
            got=f"{entry.dtype} {list(entry.shape)}", where=take.where,
        )  # fmt: skip
    return TransposedExperts(Stored.of(entry))


def merger(adapters: Sequence[Adapter]) -> Callable[[str, Rows], Rows]:
    """A function that merges every adapter's change to a module into its weight."""

    def merged(module: str, rows: Rows) -> Rows:
        for adapter in adapters:
            rows = adapter.merge(module, rows)
        return rows

    return merged


def check_adapters_used(adapters: Sequence[Adapter]) -> None:
    """Raises CheckpointError when an adapter changes a module that this checkpoint does not have."""
    for adapter in adapters:
        adapter.check_used()
