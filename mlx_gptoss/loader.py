"""From a model folder to a model in memory.

On Metal, large tensors are wrapped where they lie in the page cache: loading takes no time and no memory of its own,
and processes share one copy. Elsewhere MLX reads the files in parallel straight into its own buffers.
Everything is checked first: the manifest against the config, and each file's header against the manifest.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, get_args

import mlx.core as mx
import numpy as np
import numpy.typing as npt

from mlx_gptoss import folder as layout
from mlx_gptoss.config import ModelConfig
from mlx_gptoss.errors import CheckpointError, InvalidRequestError
from mlx_gptoss.folder import Manifest, TensorRecord
from mlx_gptoss.model import GptOssModel
from mlx_gptoss.weights import Experts, LayerWeights, Linear, LinearFormat, ModelWeights

DtypeName = Literal["bfloat16", "float32"]

NAN_SCALE = 0xFF
"""The E8M0 code of NaN."""

WRAP_FROM_BYTES = 1 << 20
"""Smaller tensors are copied: a wrapped buffer costs the driver a page table entry and a page."""

_MAX_HEADER_BYTES = 100_000_000
_DTYPES: dict[str, mx.Dtype] = {
    "BF16": mx.bfloat16,
    "F16": mx.float16,
    "F32": mx.float32,
    "U8": mx.uint8,
    "U32": mx.uint32,
}


def load_model(folder: str | Path, dtype: DtypeName = "bfloat16") -> GptOssModel:
    """Loads a model folder made by `mlx-gptoss convert`.

    The model checks token ids that come as lists. An mx.array of ids is not looked at: one out of range gives logits
    that mean nothing, NaN, or a crash (see GptOssModel).

    `dtype` is that of activations, caches and unquantised weights: "bfloat16", or "float32" for checking. Raises
    ConfigError for a config that is not a valid gpt-oss, CheckpointError for weights that are missing, truncated,
    mistyped or corrupt (naming tensor and file), InvalidRequestError for another dtype.
    """
    if dtype not in get_args(DtypeName):
        raise InvalidRequestError("unknown dtype", param="dtype", expected="bfloat16 or float32", got=repr(dtype))
    if not isinstance(folder, str | os.PathLike):
        raise InvalidRequestError("a model folder is a path", param="folder", got=type(folder).__name__)
    config, weights = load_weights(folder)
    return GptOssModel(config, weights, mx.bfloat16 if dtype == "bfloat16" else mx.float32)


def load_weights(folder: str | Path) -> tuple[ModelConfig, ModelWeights]:
    """The config and all weights of a model folder, as stored. Errors as for `load_model`."""
    path = Path(folder)
    _check_is_model_folder(path)
    config = ModelConfig.from_file(path / layout.CONFIG_NAME)
    manifest = layout.read_manifest(path)
    layout.check_tensors(manifest, config, str(path))
    for file in manifest.files:
        check_header(path / file, [record for record in manifest.tensors if record.file == file])
    weights = assemble(config, manifest, read_tensors(path, manifest))
    check_scales(weights, path, manifest)
    return config, weights


def _check_is_model_folder(path: Path) -> None:
    if not path.is_dir():
        what = "there is no such model folder" if not path.exists() else "a model is a folder, and this is a file"
        raise CheckpointError(what, where=str(path))
    if layout.is_model_folder(path):
        return
    if (path / layout.CONFIG_NAME).is_file() and any(path.glob("*.safetensors")):
        raise CheckpointError(
            "this is a checkpoint, or an unfinished conversion, and not a model folder",
            expected=layout.MANIFEST_NAME,
            where=str(path),
            hint=f"Run `mlx-gptoss convert {path} TARGET` first",
        )
    raise CheckpointError("this is not a model folder", expected=layout.MANIFEST_NAME, where=str(path))


def check_header(path: Path, records: list[TensorRecord]) -> None:
    """Raises CheckpointError unless the safetensors file says of each tensor what the manifest says."""
    header, data_start = _read_header(path)
    for record in records:
        entry = header.get(record.name)
        if not isinstance(entry, dict):
            raise CheckpointError(f"{record.name} is missing from its file", where=str(path))
        begin = record.offset - data_start
        wanted: dict[str, Any] = {
            "dtype": record.dtype,
            "shape": list(record.shape),
            "data_offsets": [begin, begin + record.nbytes],
        }
        for key, value in wanted.items():
            if entry.get(key) != value:
                raise CheckpointError(
                    f"{record.name}: the file's header and the manifest disagree about {key}",
                    expected=str(value),
                    got=str(entry.get(key))[:80],
                    where=str(path),
                    hint="Convert the model again",
                )


def _read_header(path: Path) -> tuple[dict[str, Any], int]:
    """The header of a safetensors file and the offset of its data."""
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if not 2 <= length <= _MAX_HEADER_BYTES:
                raise CheckpointError("the file is not safetensors", got=f"header of {length} bytes", where=str(path))
            header = json.loads(file.read(length))
    except OSError as error:
        raise CheckpointError("the file cannot be read", got=error.strerror or str(error), where=str(path)) from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError("the file's header is corrupt", got=str(error)[:80], where=str(path)) from error
    if not isinstance(header, dict):
        raise CheckpointError("the file's header is corrupt", expected="an object", where=str(path))
    return header, 8 + length


def read_tensors(path: Path, manifest: Manifest) -> dict[str, mx.array]:
    """All real tensors by name, evaluated: wrapped in place on Metal, read elsewhere. Padding is never touched."""
    arrays: dict[str, mx.array] = {}
    wrap = can_wrap()
    for file in sorted(manifest.files):
        records = [record for record in manifest.tensors if record.file == file]
        try:
            arrays |= _wrap_file(path / file, records) if wrap else _read_file(path / file, records)
        except (OSError, RuntimeError, ValueError) as error:
            raise CheckpointError("the weights cannot be read", got=str(error)[:200], where=str(path / file)) from error
    return arrays


def can_wrap() -> bool:
    """Whether this machine's MLX can use file pages as buffers (Metal's unified memory)."""
    return mx.metal.is_available() and mx.default_device() == mx.Device(mx.gpu)


def wrap_tensor(pages: npt.NDArray[np.uint8], record: TensorRecord) -> mx.array:
    """A tensor over the mapped file `pages` (uint8, the whole file), without a copy where size and end allow one.

    Metal takes whole 16 KiB pages; a tensor whose last page is cut off by the file's end is copied.
    """
    end = record.offset + layout.align(record.nbytes)
    if record.nbytes < WRAP_FROM_BYTES or end > pages.shape[0]:
        whole = mx.array(pages[record.offset : record.offset + record.nbytes])
    else:
        whole = mx.asarray(pages[record.offset : end], copy=False)[: record.nbytes]
    dtype = _DTYPES[record.dtype]
    return (whole if dtype == mx.uint8 else whole.view(dtype)).reshape(record.shape)


def _wrap_file(path: Path, records: list[TensorRecord]) -> dict[str, mx.array]:
    pages = np.memmap(path, dtype=np.uint8, mode="r")
    arrays = {record.name: wrap_tensor(pages, record) for record in records}
    mx.eval(arrays)
    return arrays


def _read_file(path: Path, records: list[TensorRecord]) -> dict[str, mx.array]:
    stored = mx.load(str(path))
    if not isinstance(stored, dict):
        raise CheckpointError("the file is not safetensors", where=str(path))
    arrays = {record.name: stored[record.name] for record in records}
    mx.eval(arrays)
    return arrays


def assemble(config: ModelConfig, manifest: Manifest, arrays: Mapping[str, mx.array]) -> ModelWeights:
    """Tensors by name to typed records: packed words for expert blocks, formats from the manifest."""

    def linear(name: str, *, bias: bool) -> Linear:
        stored = manifest.format_of(name)
        weight = arrays[f"{name}.weight"]
        plain: LinearFormat = "f32" if weight.dtype == mx.float32 else "bf16"
        return Linear(
            weight,
            arrays[f"{name}.bias"] if bias else None,
            arrays.get(f"{name}.scales"),
            arrays.get(f"{name}.biases"),
            plain if not stored.quantised or stored.format == "mxfp4" else stored.format,
            stored.group_size if stored.quantised else 0,
        )

    def experts(name: str) -> Experts:
        bias = arrays[f"{name}.bias"]
        if f"{name}.weight" in arrays:
            return Experts(bias, weight=arrays[f"{name}.weight"])
        blocks = arrays[f"{name}.blocks"]
        words = blocks.reshape(*blocks.shape[:2], math.prod(blocks.shape[2:])).view(mx.uint32)
        return Experts(bias, blocks=words, scales=arrays[f"{name}.scales"])

    def block(index: int) -> LayerWeights:
        return LayerWeights(
            attn_norm=arrays[layout.layer(index, "attn_norm.weight")],
            qkv=linear(layout.layer(index, "qkv"), bias=True),
            sinks=arrays[layout.layer(index, "sinks")],
            out=linear(layout.layer(index, "out"), bias=True),
            mlp_norm=arrays[layout.layer(index, "mlp_norm.weight")],
            router=linear(layout.layer(index, "router"), bias=True),
            gate_up=experts(layout.layer(index, "gate_up")),
            down=experts(layout.layer(index, "down")),
        )

    weights = ModelWeights(
        embed=linear("embed", bias=False),
        layers=tuple(block(index) for index in range(config.num_layers)),
        norm=arrays["norm.weight"],
        head=linear("head", bias=False),
    )
    mx.eval(list(weights.arrays()))
    return weights


def check_scales(weights: ModelWeights, path: Path, manifest: Manifest) -> None:
    """Raises CheckpointError when an E8M0 scale is NaN: one such block would poison every answer that meets it."""
    named: dict[str, mx.array] = {}
    for index, block in enumerate(weights.layers):
        for part, experts in (("gate_up", block.gate_up), ("down", block.down)):
            if experts.blocks is not None and experts.scales is not None:
                named[layout.layer(index, f"{part}.scales")] = experts.scales
        for part, linear in (("qkv", block.qkv), ("out", block.out)):
            if linear.format == "mxfp8" and linear.scales is not None:
                named[layout.layer(index, f"{part}.scales")] = linear.scales
    for part, linear in (("embed", weights.embed), ("head", weights.head)):
        if linear.format == "mxfp8" and linear.scales is not None:
            named[f"{part}.scales"] = linear.scales
    for name, scales in named.items():
        if mx.max(scales).item() == NAN_SCALE:
            raise CheckpointError(
                f"{name} holds a NaN scale (0xFF)",
                where=str(path / manifest[name].file),
                hint="The source is corrupt: download and convert it again",
            )
