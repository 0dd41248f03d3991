"""A model folder as a source: the same model again with other precisions, without the original checkpoint."""

from __future__ import annotations

from pathlib import Path

from mlx_gptoss.config import ModelConfig
from mlx_gptoss.convert.files import SourceFile, fingerprint, read_small
from mlx_gptoss.convert.quantise import Dequantised
from mlx_gptoss.convert.safetensors import Entry
from mlx_gptoss.convert.source import Packed, Source
from mlx_gptoss.convert.tensors import Rows, Stored
from mlx_gptoss.folder import CONFIG_NAME, MANIFEST_LIMIT_BYTES, MANIFEST_NAME, check_tensors, read_manifest


def open_model_folder(folder: Path) -> Source:
    """A finished conversion, read back. Quantised matrices are carried over, or dequantised when others are asked for.

    Raises ConfigError or CheckpointError.
    """
    manifest = read_manifest(folder)
    raw = read_small(folder / CONFIG_NAME)
    config = ModelConfig.from_file(folder / CONFIG_NAME)
    check_tensors(manifest, config, str(folder))
    files: dict[str, SourceFile] = {}
    try:
        for name in manifest.files:
            files[name] = SourceFile(folder / name)
    except BaseException:
        for file in files.values():
            file.close()
        raise
    tensors: dict[str, Rows] = {}
    for record in manifest.tensors:
        entry = Entry(record.name, record.dtype, record.shape, files[record.file], record.offset, record.nbytes)
        tensors[record.name] = Stored.of(entry, 2 if record.name.endswith(".blocks") else 1)
    packed: dict[str, Packed] = {}
    for matrix, fmt in manifest.formats.items():
        if fmt.quantised:
            names = ("weight", "scales") if fmt.format == "mxfp8" else ("weight", "scales", "biases")
            parts = {name: tensors.pop(f"{matrix}.{name}") for name in names}
            packed[matrix] = Packed(fmt, parts)
            tensors[f"{matrix}.weight"] = Dequantised.of(tuple(parts.values()), fmt)
    return Source(
        kind=manifest.source.kind,
        path=folder,
        config=config,
        config_json=raw,
        tensors=tensors,
        files=tuple(files.values()),
        fingerprint=fingerprint(files.values(), [raw, read_small(folder / MANIFEST_NAME, MANIFEST_LIMIT_BYTES)]),
        packed=packed,
        notes=manifest.notes,
    )
