"""`export`: a model folder back into the Hugging Face layout.

What was not re-quantised comes out byte for byte as it was in the source: the fused projection is cut into queries,
keys and values, experts keep their blocks and scales, dense experts are turned back to input-major. Matrices that the
folder holds in one of MLX's formats are dequantised to bf16, and the result says which.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Final

from mlx_gptoss.config import ModelConfig
from mlx_gptoss.convert.files import Bytes, SourceFile, read_small
from mlx_gptoss.convert.huggingface import LAYER_NAMES, TOP_NAMES, prefix
from mlx_gptoss.convert.jobs import Copy
from mlx_gptoss.convert.journal import JOURNAL_NAME, Finished
from mlx_gptoss.convert.layout import lay_out
from mlx_gptoss.convert.mxfp4 import TransposedExperts
from mlx_gptoss.convert.quantise import Dequantised
from mlx_gptoss.convert.safetensors import INDEX_NAME, Entry
from mlx_gptoss.convert.target import check_space, open_target
from mlx_gptoss.convert.tensors import Rows, Stored
from mlx_gptoss.convert.writing import Progress, Writing
from mlx_gptoss.errors import ConversionError
from mlx_gptoss.folder import CONFIG_NAME, MANIFEST_NAME, Manifest, check_tensors, layer, read_manifest

SHARD_BYTES: Final = 5_000_000_000


@dataclass(frozen=True, slots=True)
class Exported:
    """What `export` wrote. `dequantised` are the matrices that differ from the original checkpoint."""

    files: tuple[str, ...]
    tensors: int
    nbytes: int
    dequantised: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class RowSlice:
    """Rows start .. start + count of a tensor along its first axis."""

    inner: Rows
    start: int
    count: int

    @property
    def dtype(self) -> str:
        return self.inner.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.count, *self.inner.shape[1:])

    @property
    def rows(self) -> int:
        return self.count

    @property
    def row_bytes(self) -> int:
        return self.inner.row_bytes

    def fill(self, start: int, out: Bytes) -> None:
        self.inner.fill(self.start + start, out)


def export(
    folder: str | PathLike[str],
    target: str | PathLike[str],
    *,
    overwrite: bool = False,
    progress: Progress | None = None,
    shard_bytes: int = SHARD_BYTES,
    sync_bytes: int = 256 << 20,
) -> Exported:
    """Writes the Hugging Face layout of a model folder to `target`: config, shards of about 5 GB, and their index.

    The index is written last; interrupted, the same call goes on where it stopped. Raises CheckpointError for a
    damaged folder, ConversionError for a bad target, InsufficientDiskError.
    """
    source, path = Path(folder), Path(target)
    manifest = read_manifest(source)
    config_json = read_small(source / CONFIG_NAME)
    config = ModelConfig.from_file(source / CONFIG_NAME)
    check_tensors(manifest, config, str(source))
    files = {name: SourceFile(source / name) for name in manifest.files}
    try:
        reader = _Reader(manifest, config, files)
        jobs = [Copy.of(name, rows) for name, rows in reader.tensors()]
        layout = lay_out(jobs, shard_bytes, paged=False)
        if not path.exists():
            check_space(path, layout)
        with open_target(path, INDEX_NAME) as opened:
            opened.check_ours()
            if INDEX_NAME in opened.names():
                if not overwrite:
                    raise ConversionError(
                        "the target holds a checkpoint already",
                        where=str(path),
                        hint="Choose another target, or say --overwrite",
                    )
                opened.clear()

            def check_source() -> None:
                for file in files.values():
                    file.check_unchanged()

            def finish(finished: dict[str, Finished]) -> None:
                weight_map = {p.output.name: p.file for places in layout.places for p in places}
                index = {"metadata": {"total_size": layout.payload}, "weight_map": weight_map}
                opened.replace(CONFIG_NAME, config_json)
                opened.replace(INDEX_NAME, (json.dumps(index, indent=2) + "\n").encode())
                opened.unlink(JOURNAL_NAME)

            key = hashlib.sha256(read_small(source / MANIFEST_NAME, 64 << 20) + b"export").hexdigest()
            Writing(opened, jobs, layout, key, check_source, progress, sync_bytes).run(finish)
    finally:
        for file in files.values():
            file.close()
    return Exported(tuple(s.name for s in layout.shards), len(jobs), layout.payload, tuple(reader.dequantised))


class _Reader:
    """Tensors of a model folder under Hugging Face's names."""

    def __init__(self, manifest: Manifest, config: ModelConfig, files: dict[str, SourceFile]) -> None:
        self.manifest = manifest
        self.config = config
        self.files = files
        self.dequantised: list[str] = []

    def _rows(self, name: str, row_dims: int = 1) -> Rows:
        record = self.manifest[name]
        entry = Entry(name, record.dtype, record.shape, self.files[record.file], record.offset, record.nbytes)
        return Stored.of(entry, row_dims)

    def _matrix(self, base: str) -> Rows:
        fmt = self.manifest.format_of(base)
        if not fmt.quantised:
            return self._rows(f"{base}.weight")
        self.dequantised.append(base)
        parts = ["weight", "scales"] + (["biases"] if fmt.format != "mxfp8" else [])
        return Dequantised.of(tuple(self._rows(f"{base}.{p}") for p in parts), fmt)

    def tensors(self) -> Iterator[tuple[str, Rows]]:
        yield TOP_NAMES["embed.weight"], self._matrix("embed")
        for index in range(self.config.num_layers):
            yield from self._layer(index, prefix(index))
        yield TOP_NAMES["norm.weight"], self._rows("norm.weight")
        yield TOP_NAMES["head.weight"], self._matrix("head")

    def _layer(self, index: int, base: str) -> Iterator[tuple[str, Rows]]:
        for ours, theirs in LAYER_NAMES.items():
            name = layer(index, ours)
            yield base + theirs, self._matrix(layer(index, "out")) if ours == "out.weight" else self._rows(name)
        for kind in ("weight", "bias"):
            fused = self._matrix(layer(index, "qkv")) if kind == "weight" else self._rows(layer(index, "qkv.bias"))
            start = 0
            for part, count in (("q", self.config.q_size), ("k", self.config.kv_size), ("v", self.config.kv_size)):
                yield f"{base}self_attn.{part}_proj.{kind}", RowSlice(fused, start, count)
                start += count
        for ours, theirs in (("gate_up", "gate_up_proj"), ("down", "down_proj")):
            matrix = layer(index, ours)
            name = f"{base}mlp.experts.{theirs}"
            if self.manifest.format_of(matrix).format == "mxfp4":
                yield f"{name}_blocks", self._rows(f"{matrix}.blocks", 2)
                yield f"{name}_scales", self._rows(f"{matrix}.scales")
            else:
                yield name, TransposedExperts(self._rows(f"{matrix}.weight"))
