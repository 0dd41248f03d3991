"""Reading model folders back in tests, with the safetensors library as the independent reader."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mlx_gptoss.config import ModelConfig
from mlx_gptoss.folder import PAGE_BYTES, Manifest, check_alignment, check_tensors, read_manifest
from tests.tiny import Tensor

KINDS: dict[str, Any] = {"BF16": np.uint16, "F16": np.float16, "F32": np.float32, "U8": np.uint8, "U32": np.uint32}


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """A safetensors file by the plainest reader there is (BF16 as bits)."""
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    tensors: dict[str, Tensor] = {}
    for name, entry in json.loads(data[8 : 8 + length]).items():
        if name == "__metadata__":
            continue
        begin, end = entry["data_offsets"]
        raw = np.frombuffer(data[8 + length + begin : 8 + length + end], KINDS[entry["dtype"]])
        tensors[name] = Tensor(entry["dtype"], raw.reshape(entry["shape"]))
    return tensors


def read_folder(path: Path) -> dict[str, Tensor]:
    """Every real tensor of a model folder, after checking manifest, hashes, alignment, padding and config."""
    manifest = read_manifest(path)
    check_alignment(manifest)
    check_tensors(manifest, ModelConfig.from_file(path), str(path))
    assert hashlib.sha256((path / "config.json").read_bytes()).hexdigest() == manifest.config_sha256
    tensors: dict[str, Tensor] = {}
    for file in manifest.files:
        data = (path / file).read_bytes()
        assert len(data) % PAGE_BYTES == 0
        for name, tensor in read_safetensors(path / file).items():
            if name.startswith("__pad__."):
                assert not tensor.data.any()
                continue
            record = manifest[name]
            raw = data[record.offset : record.offset + record.nbytes]
            assert raw == tensor.data.tobytes()
            assert hashlib.sha256(raw).hexdigest() == record.sha256
            tensors[name] = tensor
    assert set(tensors) == set(manifest.by_name)
    return tensors


def assert_same(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """Same names, dtypes, shapes and bytes."""
    assert set(actual) == set(expected)
    for name, tensor in expected.items():
        assert actual[name].dtype == tensor.dtype, name
        assert actual[name].data.shape == tensor.data.shape, name
        assert actual[name].data.tobytes() == np.ascontiguousarray(tensor.data).tobytes(), name


def snapshot(folder: Path) -> dict[str, tuple[bytes, int]]:
    """Contents and times of every file under a folder, to prove that a source was not touched."""
    return {str(p): (p.read_bytes(), p.stat().st_mtime_ns) for p in sorted(folder.rglob("*")) if p.is_file()}


def values(tensor: Tensor) -> npt.NDArray[np.float32]:
    """A float tensor's values."""
    return tensor.to_float()


def manifest_of(path: Path) -> Manifest:
    return read_manifest(path)
