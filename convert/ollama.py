"""Ollama's blob store: from a model's name to the GGUF file that Ollama keeps for it.

models/manifests/registry.ollama.ai/library/gpt-oss/20b    JSON: layers with media types and digests
models/blobs/sha256-...                                    the layers themselves
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

from mlx_gptoss.convert.files import read_small
from mlx_gptoss.convert.safetensors import parse_json_object
from mlx_gptoss.errors import CheckpointError, InvalidRequestError, ModelNotFoundError

VARIABLE: Final = "OLLAMA_MODELS"
_REGISTRY: Final = "registry.ollama.ai"
_MODEL_LAYER: Final = "application/vnd.ollama.image.model"
_PART: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_DIGEST: Final = re.compile(r"sha256:[0-9a-f]{64}")


def store_folders(environment: Mapping[str, str] = os.environ) -> Iterator[Path]:
    """Where Ollama may keep its models: `$OLLAMA_MODELS`, the user's home, and the Linux service's home."""
    if environment.get(VARIABLE):
        yield Path(environment[VARIABLE]).expanduser()
        return
    yield Path.home() / ".ollama" / "models"
    yield Path("/usr/share/ollama/.ollama/models")


def find_ollama_model(name: str, store: Path | None = None) -> Path:
    """The GGUF blob of an Ollama model such as `gpt-oss:20b`, for `convert`.

    `store` is Ollama's `models` folder; by default `$OLLAMA_MODELS`, else the usual places. Raises
    InvalidRequestError for a name that is none, ModelNotFoundError when Ollama has no such model, CheckpointError when
    its store is damaged.
    """
    relative = _manifest_path(name)
    stores = [store] if store is not None else list(store_folders())
    for folder in stores:
        manifest = folder / "manifests" / relative
        if manifest.is_file():
            return _blob(folder, manifest)
    known = sorted({m for folder in stores for m in _installed(folder)})
    raise ModelNotFoundError(
        f"Ollama has no model {name!r}",
        expected=f"one of {', '.join(known[:8])}" if known else f"a model under {stores[0]}",
        hint=f"Run `ollama pull {name}`, or set {VARIABLE} to Ollama's models folder",
    )


def _manifest_path(name: str) -> Path:
    body, _, tag = name.partition(":")
    parts = body.split("/")
    path = {1: [_REGISTRY, "library"], 2: [_REGISTRY], 3: []}.get(len(parts), [])
    full = [*path, *parts, tag or "latest"]
    if len(full) != 4 or not all(_PART.fullmatch(p) for p in full):
        raise InvalidRequestError(
            "this is not the name of an Ollama model",
            param="name",
            expected="NAME:TAG such as gpt-oss:20b",
            got=repr(name)[:80],
        )
    return Path(*full)


def _blob(store: Path, manifest: Path) -> Path:
    data = parse_json_object(read_small(manifest, 1 << 20), "Ollama's manifest", str(manifest))
    layers = data.get("layers")
    found = [
        layer
        for layer in (layers if isinstance(layers, list) else [])
        if isinstance(layer, dict) and layer.get("mediaType") == _MODEL_LAYER
    ]
    if len(found) != 1:
        raise CheckpointError("Ollama's manifest names no single model file", got=str(len(found)), where=str(manifest))
    digest = found[0].get("digest")
    if not isinstance(digest, str) or _DIGEST.fullmatch(digest) is None:
        raise CheckpointError("Ollama's manifest has an impossible digest", got=repr(digest)[:80], where=str(manifest))
    blob = store / "blobs" / digest.replace(":", "-")
    if not blob.is_file():
        raise CheckpointError(
            "Ollama's model file is missing", expected=blob.name, where=str(store), hint="Run `ollama pull` again"
        )
    size = found[0].get("size")
    if isinstance(size, int) and blob.stat().st_size != size:
        raise CheckpointError(
            "Ollama's model file is truncated", expected=f"{size} bytes", got=str(blob.stat().st_size), where=str(blob)
        )
    return blob


def _installed(store: Path) -> Iterator[str]:
    library = store / "manifests" / _REGISTRY / "library"
    if library.is_dir():
        for model in sorted(library.iterdir()):
            if model.is_dir():
                yield from (f"{model.name}:{tag.name}" for tag in sorted(model.iterdir()) if tag.is_file())
