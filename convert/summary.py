"""What a model folder holds, by part: bytes, share of memory, and bytes read to decode one token."""

from __future__ import annotations

from dataclasses import dataclass
from os import PathLike
from pathlib import Path

from mlx_gptoss.config import ModelConfig
from mlx_gptoss.folder import CONFIG_NAME, LinearFormat, Manifest, read_manifest

_PARTS = ("embedding", "attention", "router and norms", "experts", "head")


@dataclass(frozen=True, slots=True)
class Part:
    """One part of the model. `per_token` is what decoding one token reads of it (batch 1, caches not counted)."""

    name: str
    format: str
    nbytes: int
    share: float
    per_token: int


@dataclass(frozen=True, slots=True)
class Summary:
    """A model folder at a glance."""

    manifest: Manifest
    config: ModelConfig
    parts: tuple[Part, ...]

    @property
    def nbytes(self) -> int:
        return sum(p.nbytes for p in self.parts)

    @property
    def per_token(self) -> int:
        return sum(p.per_token for p in self.parts)


def summarise(folder: str | PathLike[str]) -> Summary:
    """Reads a folder's manifest and config. Raises CheckpointError or ConfigError."""
    path = Path(folder)
    manifest = read_manifest(path)
    config = ModelConfig.from_file(path / CONFIG_NAME)
    sizes = dict.fromkeys(_PARTS, 0)
    reads = dict.fromkeys(_PARTS, 0)
    for tensor in manifest.tensors:
        part = part_of(tensor.name)
        sizes[part] += tensor.nbytes
        if part == "experts":
            reads[part] += tensor.nbytes * config.experts_per_token // config.num_experts
        elif part == "embedding":
            reads[part] += tensor.nbytes // config.vocab_size
        else:
            reads[part] += tensor.nbytes
    total = max(1, sum(sizes.values()))
    parts = tuple(Part(p, _formats(manifest, p), sizes[p], sizes[p] / total, reads[p]) for p in _PARTS)
    return Summary(manifest, config, parts)


def part_of(name: str) -> str:
    """Which part a tensor belongs to."""
    if name.startswith("embed."):
        return "embedding"
    if name.startswith("head."):
        return "head"
    if ".gate_up." in name or ".down." in name:
        return "experts"
    if ".qkv." in name or ".out." in name or name.endswith(".sinks"):
        return "attention"
    return "router and norms"


def _formats(manifest: Manifest, part: str) -> str:
    if part == "router and norms":
        return "+".join(sorted({t.dtype.lower() for t in manifest.tensors if part_of(t.name) == part}))
    found = {describe(f) for name, f in manifest.formats.items() if part_of(f"{name}.") == part}
    return "+".join(sorted(found)) or "bf16"


def describe(fmt: LinearFormat) -> str:
    """A format in words, such as `q8 (group 64)`."""
    return f"{fmt.format} (group {fmt.group_size})" if fmt.quantised else fmt.format
