"""The models a server can answer with, described for `/api/tags`, `/api/show` and `/v1/models`."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from mlx_gptoss.config import ModelConfig
from mlx_gptoss.errors import GptOssError
from mlx_gptoss.folder import read_manifest
from mlx_gptoss.names import DEMO, as_folder, looks_like_path, resolve_model
from mlx_gptoss.registry import Registry

# Names by which Ollama's clients know the released models.
OLLAMA_NAMES = {"openai/gpt-oss-20b": "gpt-oss:20b", "openai/gpt-oss-120b": "gpt-oss:120b"}


@dataclass(frozen=True, slots=True)
class CatalogEntry:
    """One model or alias. `digest` is 64 hex digits, `modified` ISO 8601; `parameters` counts weights."""

    name: str
    target: str
    size_bytes: int
    digest: str
    modified: str
    created: int
    parameters: int
    precision: str
    config: ModelConfig

    @property
    def details(self) -> dict[str, Any]:
        """Ollama's `details` object."""
        return {
            "parent_model": self.target if self.target != self.name else "",
            "format": "safetensors",
            "family": "gptoss",
            "families": ["gptoss"],
            "parameter_size": _billions(self.parameters),
            "quantization_level": self.precision,
        }


def ollama_name(name: str) -> str:
    """A model's name with a tag, as Ollama's clients expect it."""
    known = OLLAMA_NAMES.get(name)
    if known is not None:
        return known
    return name if ":" in name else f"{name}:latest"


def parameter_count(config: ModelConfig) -> int:
    """Weights of a model: matrices, biases, norms and sinks."""
    hidden, inner, experts = config.hidden_size, config.intermediate_size, config.num_experts
    attention = (hidden + 1) * config.qkv_size + (config.q_size + 1) * hidden + config.num_heads
    moe = experts * ((hidden + 1) * 2 * inner + (inner + 1) * hidden) + (hidden + 1) * experts
    return config.num_layers * (attention + moe + 2 * hidden) + 2 * config.vocab_size * hidden + hidden


def _billions(count: int) -> str:
    return f"{count / 1e9:.1f}B" if count >= 1e9 else f"{count / 1e6:.1f}M"


def describe(name: str, target: str, folder: Path) -> CatalogEntry:
    """Read what there is to say about a model folder. Raises CheckpointError or ConfigError for a broken one."""
    manifest_path = folder / "manifest.json"
    manifest = read_manifest(folder)
    config = ModelConfig.from_file(folder / "config.json")
    moved = manifest_path.stat().st_mtime
    digest = hashlib.sha256(manifest_path.read_bytes() + name.encode()).hexdigest()
    experts = manifest.precision.get("experts", "mxfp4").upper()
    return CatalogEntry(
        name=name,
        target=target,
        size_bytes=sum(manifest.files.values()),
        digest=digest,
        modified=datetime.fromtimestamp(moved, UTC).isoformat(),
        created=int(moved),
        parameters=parameter_count(config),
        precision=experts,
        config=config,
    )


def catalog(registry: Registry, default: str | None = None) -> list[CatalogEntry]:
    """Every model and alias that is complete; a broken folder is left out rather than failing the list.

    `default` is what the server answers with when nothing is named: it is listed even where it is a folder outside
    the registry, or the demo that has not been used yet, for clients choose from what is listed.
    """
    entries = []
    names = [(model.name, model.name) for model in registry.models()]
    names += [(alias.name, alias.source) for alias in registry.aliases()]
    try:
        if default is not None and looks_like_path(default):
            entries.append(describe(default, default, as_folder(default)))
        elif default is not None and registry.target(default) == DEMO and (DEMO, DEMO) not in names:
            entries.append(describe(DEMO, DEMO, resolve_model(DEMO, registry=registry)))
    except (GptOssError, OSError):
        pass
    for name, target in names:
        try:
            entries.append(describe(name, target, registry.find(target).path))
        except (GptOssError, OSError):
            continue
    return entries
