"""`verify`: every byte of a model folder against its manifest."""

from __future__ import annotations

import hashlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from threading import Lock

import numpy as np

from mlx_gptoss.config import ModelConfig
from mlx_gptoss.convert.files import SourceFile, read_small
from mlx_gptoss.convert.safetensors import read_header
from mlx_gptoss.convert.writing import Progress
from mlx_gptoss.errors import CheckpointError
from mlx_gptoss.folder import (
    CONFIG_NAME,
    PAD_PREFIX,
    Manifest,
    TensorRecord,
    check_alignment,
    check_tensors,
    read_manifest,
)

_CHUNK_BYTES = 4 << 20
_WORKERS = 2


@dataclass(frozen=True, slots=True)
class Verified:
    """What `verify` found to be whole."""

    tensors: int
    nbytes: int


def verify(folder: str | PathLike[str], *, progress: Progress | None = None) -> Verified:
    """Re-reads a model folder: manifest, config, headers, alignment and the SHA-256 of every tensor.

    Raises CheckpointError naming every damaged tensor.
    """
    path = Path(folder)
    manifest = read_manifest(path)
    config_json = read_small(path / CONFIG_NAME)
    if hashlib.sha256(config_json).hexdigest() != manifest.config_sha256:
        raise CheckpointError("config.json is not what the converter wrote", where=str(path))
    check_alignment(manifest)
    check_tensors(manifest, ModelConfig.from_file(path / CONFIG_NAME), str(path))
    files = {name: SourceFile(path / name) for name in manifest.files}
    try:
        for name, file in files.items():
            _check_header(name, file, manifest)
        damaged = _check_hashes(files, manifest, progress)
    finally:
        for file in files.values():
            file.close()
    if damaged:
        raise CheckpointError(
            f"{len(damaged)} of {len(manifest.tensors)} tensors are damaged",
            got=", ".join(damaged[:5]),
            where=str(path),
            hint="Convert or pull the model again",
        )
    return Verified(len(manifest.tensors), manifest.nbytes)


def _check_header(name: str, file: SourceFile, manifest: Manifest) -> None:
    entries, _ = read_header(file)
    real = {n: e for n, e in entries.items() if not n.startswith(PAD_PREFIX)}
    listed = {t.name: t for t in manifest.tensors if t.file == name}
    for tensor in sorted(set(real) ^ set(listed)):
        raise CheckpointError("manifest and weight file name different tensors", got=tensor[:120], where=str(file.path))
    for tensor, entry in real.items():
        record = listed[tensor]
        if (entry.dtype, entry.shape, entry.offset) != (record.dtype, record.shape, record.offset):
            raise CheckpointError("manifest and weight file disagree", got=tensor, where=str(file.path))


def _check_hashes(files: dict[str, SourceFile], manifest: Manifest, progress: Progress | None) -> list[str]:
    lock = Lock()
    done = 0

    def is_whole(record: TensorRecord) -> bool:
        nonlocal done
        digest = hashlib.sha256()
        buffer = np.empty(_CHUNK_BYTES, np.uint8)
        for start in range(0, record.nbytes, _CHUNK_BYTES):
            part = buffer[: min(_CHUNK_BYTES, record.nbytes - start)]
            files[record.file].read_into(record.offset + start, part)
            digest.update(part.data)
            with lock:
                done += len(part)
                if progress is not None:
                    progress(done, manifest.nbytes)
        return digest.hexdigest() == record.sha256

    with ThreadPoolExecutor(_WORKERS) as pool:
        return [
            t.name for t, whole in zip(manifest.tensors, pool.map(is_whole, manifest.tensors), strict=True) if not whole
        ]
