"""The model folder: what `convert` writes and the loader reads.

    folder/
    ├── config.json                        Hugging Face keys
    ├── model-00001-of-0000N.safetensors   readable by any safetensors reader
    └── manifest.json                      written last, by rename: a folder without it is not a model

Every real tensor starts on a 16 KiB page of its file, so that Metal can wrap the weights where they lie. safetensors
allows no holes, so padding tensors (`__pad__.K`, U8, zeros) fill the gaps, and the header is padded with spaces.

Tensor names (i = layer; H hidden, I intermediate, E experts, D head size, V vocabulary, nq/nkv query and key heads):

    embed.weight [V, H]                     norm.weight [H]                     head.weight [V, H]
    layers.{i}.attn_norm.weight [H]         layers.{i}.mlp_norm.weight [H]      layers.{i}.sinks [nq]
    layers.{i}.qkv.weight [(nq+2nkv)D, H]   layers.{i}.qkv.bias [(nq+2nkv)D]
    layers.{i}.out.weight [H, nq D]         layers.{i}.out.bias [H]
    layers.{i}.router.weight [E, H]         layers.{i}.router.bias [E]
    layers.{i}.gate_up.blocks U8 [E, 2I, H/32, 16], .scales U8 [E, 2I, H/32], .bias [E, 2I]
    layers.{i}.down.blocks U8 [E, H, I/32, 16],     .scales U8 [E, H, I/32],  .bias [E, H]

Rows of gate_up alternate gate, up, gate, up, as released. Dense experts are `.weight` [E, N, K] instead of `.blocks`
and `.scales`. `embed`, `head`, `qkv` and `out` may be quantised by MLX's own formats: `.weight` U32 in MLX's packing,
`.scales`, and `.biases` for the affine ones; the manifest's `formats` says which. Plain tensors are BF16, or F32 where
the source holds values that BF16 cannot.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

from mlx_gptoss.errors import CheckpointError

if TYPE_CHECKING:
    from mlx_gptoss.config import ModelConfig

FORMAT_VERSION: Final = 1
PAGE_BYTES: Final = 16384
CONFIG_NAME: Final = "config.json"
MANIFEST_NAME: Final = "manifest.json"
PAD_PREFIX: Final = "__pad__."
MANIFEST_LIMIT_BYTES: Final = 64 << 20

Format = Literal["bf16", "f32", "mxfp8", "q8", "q6", "q4", "mxfp4"]
FORMATS: Final[tuple[Format, ...]] = ("bf16", "f32", "mxfp8", "q8", "q6", "q4", "mxfp4")
BITS: Final[Mapping[str, int]] = {"mxfp8": 8, "q8": 8, "q6": 6, "q4": 4}
DTYPE_BYTES: Final[Mapping[str, int]] = {"BF16": 2, "F16": 2, "F32": 4, "U8": 1, "U32": 4}

_FILE_NAME = re.compile(r"model-\d{5}-of-\d{5}\.safetensors")


def layer(index: int, part: str) -> str:
    """Name of a tensor of layer `index`, for example `layer(3, "qkv.weight")`."""
    return f"layers.{index}.{part}"


def shard_name(index: int, count: int) -> str:
    """File name of shard `index` (from 0) of `count`."""
    return f"model-{index + 1:05d}-of-{count:05d}.safetensors"


def align(offset: int, page: int = PAGE_BYTES) -> int:
    """`offset` rounded up to a multiple of `page`."""
    return -(-offset // page) * page


def byte_length(dtype: str, shape: tuple[int, ...]) -> int:
    """Bytes of a tensor; raises KeyError for a dtype the folder never holds."""
    return DTYPE_BYTES[dtype] * math.prod(shape)


@dataclass(frozen=True, slots=True)
class LinearFormat:
    """How one matrix is stored. `group_size` is 0 for plain formats."""

    format: Format
    group_size: int = 0

    @property
    def quantised(self) -> bool:
        return self.format in BITS


@dataclass(frozen=True, slots=True)
class TensorRecord:
    """One real tensor: `offset` counts bytes from the start of `file`, and is a multiple of `PAGE_BYTES`."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: str
    offset: int
    nbytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class SourceRecord:
    """Where the weights came from. `fingerprint` identifies the exact source files and headers."""

    kind: str
    name: str
    revision: str | None
    fingerprint: str


@dataclass(frozen=True, slots=True)
class Manifest:
    """The whole of manifest.json.

    `formats` is keyed by matrix (`embed`, `head`, `layers.3.qkv`, `layers.3.gate_up`, ...); `precision` is what the
    user asked for (`attention`, `embedding`, `head`, `experts`); `notes` are the converter's remarks, such as
    quantisation errors. `files` gives each shard's length in bytes.
    """

    version: int
    source: SourceRecord
    precision: Mapping[str, str]
    formats: Mapping[str, LinearFormat]
    files: Mapping[str, int]
    tensors: tuple[TensorRecord, ...]
    config_sha256: str
    notes: tuple[str, ...] = ()
    created_by: str = ""
    by_name: Mapping[str, TensorRecord] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "by_name", {t.name: t for t in self.tensors})

    def __getitem__(self, name: str) -> TensorRecord:
        try:
            return self.by_name[name]
        except KeyError:
            raise CheckpointError(f"the manifest has no tensor {name!r}", where=MANIFEST_NAME) from None

    @property
    def nbytes(self) -> int:
        """Bytes of all real tensors."""
        return sum(t.nbytes for t in self.tensors)

    def format_of(self, matrix: str) -> LinearFormat:
        """Format of a matrix, `bf16` when the manifest says nothing."""
        return self.formats.get(matrix, LinearFormat("bf16"))

    def to_dict(self) -> dict[str, Any]:
        return {
            "format_version": self.version,
            "created_by": self.created_by,
            "source": {
                "kind": self.source.kind,
                "name": self.source.name,
                "revision": self.source.revision,
                "fingerprint": self.source.fingerprint,
            },
            "precision": dict(self.precision),
            "formats": {k: {"format": f.format, "group_size": f.group_size} for k, f in self.formats.items()},
            "config_sha256": self.config_sha256,
            "notes": list(self.notes),
            "files": dict(self.files),
            "tensors": [
                {
                    "name": t.name,
                    "dtype": t.dtype,
                    "shape": list(t.shape),
                    "file": t.file,
                    "offset": t.offset,
                    "nbytes": t.nbytes,
                    "sha256": t.sha256,
                }
                for t in self.tensors
            ],
        }

    def to_json(self) -> str:
        return json.dumps(self.to_dict(), indent=1) + "\n"


def is_model_folder(path: str | os.PathLike[str]) -> bool:
    """Whether `path` holds a complete conversion (its manifest exists)."""
    return (Path(path) / MANIFEST_NAME).is_file()


def read_manifest(path: str | os.PathLike[str]) -> Manifest:
    """Reads and checks a folder's manifest: version, types, page alignment, bounds, overlaps, and file lengths on disk.

    Raises CheckpointError naming the first thing that is wrong.
    """
    folder = Path(path)
    where = str(folder / MANIFEST_NAME)
    try:
        with open(where, "rb") as f:
            raw = f.read(MANIFEST_LIMIT_BYTES + 1)
    except FileNotFoundError:
        raise CheckpointError(
            "this is not a complete model folder: manifest.json is missing",
            where=str(folder),
            hint="Run `mlx-gptoss convert SOURCE FOLDER`, which also finishes an interrupted conversion",
        ) from None
    except OSError as e:
        raise CheckpointError("cannot read the manifest", got=e.strerror or str(e), where=where) from None
    if len(raw) > MANIFEST_LIMIT_BYTES:
        raise CheckpointError("the manifest is too long", expected=f"at most {MANIFEST_LIMIT_BYTES} bytes", where=where)
    try:
        data = json.loads(raw)
    except (ValueError, RecursionError):
        raise CheckpointError("the manifest is not valid JSON", where=where) from None
    manifest = parse_manifest(data, where)
    for name, size in manifest.files.items():
        try:
            actual = os.stat(folder / name).st_size
        except OSError:
            raise CheckpointError("a weight file is missing", expected=name, where=str(folder)) from None
        if actual != size:
            raise CheckpointError(
                f"{name} has the wrong length", expected=f"{size} bytes", got=f"{actual} bytes", where=str(folder)
            )
    return manifest


def parse_manifest(data: object, where: str) -> Manifest:
    """Checks everything about a manifest that needs no file; raises CheckpointError."""
    top = _Object(data, "manifest", where)
    version = top.integer("format_version")
    if version != FORMAT_VERSION:
        raise CheckpointError(
            "this model folder has another format version",
            expected=str(FORMAT_VERSION),
            got=str(version),
            where=where,
            hint="Convert it again with this version of mlx-gptoss",
        )
    source = _Object(top.get("source"), "source", where)
    revision = source.get("revision")
    if revision is not None and not isinstance(revision, str):
        raise CheckpointError("source.revision must be text or null", where=where)
    files: dict[str, int] = {}
    for name in top.child("files").keys():  # noqa: SIM118 - _Object is no mapping
        if _FILE_NAME.fullmatch(name) is None:
            raise CheckpointError("a weight file has an unexpected name", got=repr(name)[:80], where=where)
        files[name] = top.child("files").integer(name)
    tensors = tuple(_tensor(item, files, where) for item in top.items("tensors"))
    _check_disjoint(tensors, where)
    formats: dict[str, LinearFormat] = {}
    for name in top.child("formats").keys():  # noqa: SIM118 - as above
        entry = _Object(top.child("formats").get(name), f"formats.{name}", where)
        kind = entry.text("format")
        if kind not in FORMATS:
            raise CheckpointError(
                f"unknown weight format for {name}", expected="|".join(FORMATS), got=kind, where=where
            )
        formats[name] = LinearFormat(kind, entry.integer("group_size"))
    precision = top.child("precision")
    notes = [n for n in top.items("notes") if isinstance(n, str)]
    return Manifest(
        version=version,
        source=SourceRecord(source.text("kind"), source.text("name"), revision, source.text("fingerprint")),
        precision={name: precision.text(name) for name in precision.keys()},  # noqa: SIM118 - as above
        formats=formats,
        files=files,
        tensors=tensors,
        config_sha256=top.text("config_sha256"),
        notes=tuple(notes),
        created_by=top.text("created_by"),
    )


def _tensor(item: object, files: Mapping[str, int], where: str) -> TensorRecord:
    entry = _Object(item, "tensors", where)
    name, dtype, file = entry.text("name"), entry.text("dtype"), entry.text("file")
    dims = entry.items("shape")
    shape = tuple(d for d in dims if isinstance(d, int) and not isinstance(d, bool) and 0 < d < 1 << 40)
    if len(shape) != len(dims) or not 1 <= len(shape) <= 4:
        raise CheckpointError(f"{name} has an impossible shape", got=repr(dims)[:80], where=where)
    if dtype not in DTYPE_BYTES:
        raise CheckpointError(f"{name} has an unknown dtype", expected="|".join(DTYPE_BYTES), got=dtype, where=where)
    offset, nbytes = entry.integer("offset"), entry.integer("nbytes")
    if nbytes != byte_length(dtype, shape):
        raise CheckpointError(
            f"{name} has the wrong length", expected=str(byte_length(dtype, shape)), got=str(nbytes), where=where
        )
    if offset % PAGE_BYTES:
        raise CheckpointError(f"{name} does not start on a page", got=f"offset {offset}", where=where)
    if file not in files or offset + nbytes > files[file]:
        raise CheckpointError(f"{name} lies outside its file", got=f"{file} at {offset}", where=where)
    return TensorRecord(name, dtype, shape, file, offset, nbytes, entry.text("sha256"))


def _check_disjoint(tensors: tuple[TensorRecord, ...], where: str) -> None:
    seen: set[str] = set()
    end, file = 0, ""
    for t in sorted(tensors, key=lambda t: (t.file, t.offset)):
        if t.name in seen:
            raise CheckpointError("a tensor is listed twice", got=t.name, where=where)
        if t.file == file and t.offset < end:
            raise CheckpointError("two tensors overlap", got=t.name, where=where)
        seen.add(t.name)
        file, end = t.file, t.offset + t.nbytes


def check_alignment(manifest: Manifest) -> None:
    """Raises CheckpointError unless every tensor starts on a 16 KiB page (zero-copy loading needs it)."""
    for t in manifest.tensors:
        if t.offset % PAGE_BYTES:
            raise CheckpointError(f"{t.name} does not start on a page", got=f"offset {t.offset}", where=t.file)


def linear_parts(name: str, rows: int, cols: int, fmt: LinearFormat) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Tensor names and shapes of one matrix [rows, cols] stored as `fmt`."""
    if not fmt.quantised:
        yield f"{name}.weight", (rows, cols)
        return
    yield f"{name}.weight", (rows, cols * BITS[fmt.format] // 32)
    yield f"{name}.scales", (rows, cols // fmt.group_size)
    if fmt.format != "mxfp8":
        yield f"{name}.biases", (rows, cols // fmt.group_size)


def expected_shapes(config: ModelConfig, formats: Mapping[str, LinearFormat]) -> dict[str, tuple[int, ...]]:
    """Every tensor a folder must hold for `config`, in file order, with its shape."""
    h, i, e, d, v = (
        config.hidden_size,
        config.intermediate_size,
        config.num_experts,
        config.head_dim,
        config.vocab_size,
    )
    nq, qkv = config.num_heads, (config.num_heads + 2 * config.num_kv_heads) * d
    plain = LinearFormat("bf16")
    shapes: dict[str, tuple[int, ...]] = {}
    shapes.update(linear_parts("embed", v, h, formats.get("embed", plain)))
    for n in range(config.num_layers):
        shapes[layer(n, "attn_norm.weight")] = (h,)
        shapes.update(linear_parts(layer(n, "qkv"), qkv, h, formats.get(layer(n, "qkv"), plain)))
        shapes[layer(n, "qkv.bias")] = (qkv,)
        shapes[layer(n, "sinks")] = (nq,)
        shapes.update(linear_parts(layer(n, "out"), h, nq * d, formats.get(layer(n, "out"), plain)))
        shapes[layer(n, "out.bias")] = (h,)
        shapes[layer(n, "mlp_norm.weight")] = (h,)
        shapes[layer(n, "router.weight")] = (e, h)
        shapes[layer(n, "router.bias")] = (e,)
        for part, rows, cols in (("gate_up", 2 * i, h), ("down", h, i)):
            base = layer(n, part)
            if formats.get(base, LinearFormat("mxfp4", 32)).format == "mxfp4":
                shapes[f"{base}.blocks"] = (e, rows, cols // 32, 16)
                shapes[f"{base}.scales"] = (e, rows, cols // 32)
            else:
                shapes[f"{base}.weight"] = (e, rows, cols)
            shapes[f"{base}.bias"] = (e, rows)
    shapes["norm.weight"] = (h,)
    shapes.update(linear_parts("head", v, h, formats.get("head", plain)))
    return shapes


def check_tensors(manifest: Manifest, config: ModelConfig, where: str) -> None:
    """Raises CheckpointError unless the manifest lists exactly the tensors, shapes and dtypes `config` needs."""
    shapes = expected_shapes(config, manifest.formats)
    for name, shape in shapes.items():
        record = manifest.by_name.get(name)
        if record is None:
            raise CheckpointError("a tensor is missing", expected=name, where=where)
        if record.shape != shape:
            raise CheckpointError(
                f"{name} has the wrong shape", expected=str(shape), got=str(record.shape), where=where
            )
        allowed = _allowed_dtypes(name, manifest)
        if record.dtype not in allowed:
            raise CheckpointError(
                f"{name} has the wrong dtype", expected="|".join(allowed), got=record.dtype, where=where
            )
    extra = [t.name for t in manifest.tensors if t.name not in shapes]
    if extra:
        raise CheckpointError(
            "the folder holds tensors this model does not have", got=", ".join(extra[:5]), where=where
        )


def _allowed_dtypes(name: str, manifest: Manifest) -> tuple[str, ...]:
    base, _, part = name.rpartition(".")
    if part == "blocks":
        return ("U8",)
    fmt = manifest.formats.get(base, LinearFormat("bf16"))
    if part == "scales" and fmt.format in ("bf16", "mxfp4", "mxfp8"):
        return ("U8",)
    if part == "weight" and fmt.quantised:
        return ("U32",)
    return ("BF16", "F32", "F16") if fmt.quantised else ("BF16", "F32")


class _Object:
    """A JSON object whose fields are fetched with their types checked."""

    __slots__ = ("_data", "_name", "_where")

    def __init__(self, data: object, name: str, where: str) -> None:
        if not isinstance(data, dict):
            raise CheckpointError(f"{name} must be an object", got=type(data).__name__, where=where)
        self._data: dict[str, object] = data
        self._name = name
        self._where = where

    def keys(self) -> list[str]:
        return list(self._data)

    def get(self, key: str) -> object:
        return self._data.get(key)

    def child(self, key: str) -> _Object:
        return _Object(self._data.get(key), key, self._where)

    def text(self, key: str) -> str:
        value = self._data.get(key)
        if not isinstance(value, str):
            raise CheckpointError(f"{self._name}.{key} must be text", got=repr(value)[:80], where=self._where)
        return value

    def integer(self, key: str) -> int:
        value = self._data.get(key)
        if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 1 << 62:
            raise CheckpointError(
                f"{self._name}.{key} must be a whole number >= 0", got=repr(value)[:80], where=self._where
            )
        return value

    def items(self, key: str) -> list[object]:
        value = self._data.get(key)
        if not isinstance(value, list):
            raise CheckpointError(f"{self._name}.{key} must be a list", got=repr(value)[:80], where=self._where)
        return value
