"""GGUF files: metadata and tensor table, read with every bound checked.

Written from the published format: magic, version, counts, key-value pairs, tensor infos, padding, data. Only what the
converter needs is kept; vocabularies and other long arrays are walked over. Nothing is allocated on a file's say-so.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from mlx_gptoss.convert.files import SourceFile
from mlx_gptoss.errors import CheckpointError

MAGIC: Final = b"GGUF"
HEADER_LIMIT: Final = 96 << 20
_COUNT_LIMIT: Final = 100_000
_STRING_LIMIT: Final = 65_536
_SCALARS: Final[Mapping[int, str]] = {
    0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d",
}  # fmt: skip
_STRING, _ARRAY = 8, 9
_U32, _U64 = struct.Struct("<I"), struct.Struct("<Q")

MXFP4_OLLAMA: Final = 4
MXFP4: Final = 39
PLAIN: Final[Mapping[int, str]] = {0: "F32", 1: "F16", 30: "BF16"}

Value = int | float | bool | str


@dataclass(frozen=True, slots=True)
class GgufTensor:
    """One tensor: `kind` is ggml's type number; `shape` in row-major order; `offset` from the start of `file`."""

    name: str
    kind: int
    shape: tuple[int, ...]
    file: SourceFile
    offset: int
    nbytes: int


@dataclass(frozen=True, slots=True)
class GgufFile:
    """One file: scalar and text metadata, tensors, and the raw header for fingerprints."""

    file: SourceFile
    metadata: Mapping[str, Value]
    tensors: Mapping[str, GgufTensor]
    header: bytes


def is_gguf(path: Path) -> bool:
    """Whether a file starts with GGUF's magic."""
    try:
        with path.open("rb") as f:
            return f.read(4) == MAGIC
    except OSError:
        return False


def read_gguf(file: SourceFile) -> GgufFile:
    """Reads the header of an open file. Raises CheckpointError naming what is wrong."""
    data = file.read(0, min(file.size, HEADER_LIMIT))
    cursor = _Cursor(data, file)
    if cursor.take(4) != MAGIC:
        raise CheckpointError("this is not a GGUF file", where=str(file.path))
    version = cursor.u32()
    if version not in (2, 3):
        raise CheckpointError(
            "this version of GGUF cannot be read",
            expected="2 or 3 (little-endian)",
            got=str(version),
            where=str(file.path),
        )
    tensor_count = cursor.count("tensors", 24)
    pair_count = cursor.count("metadata entries", 12)
    metadata: dict[str, Value] = {}
    for _ in range(pair_count):
        key = cursor.text()
        if key in metadata:
            raise CheckpointError("a metadata key is there twice", got=key[:120], where=str(file.path))
        value = cursor.value(cursor.u32())
        if value is not None:
            metadata[key] = value
    infos = [cursor.tensor_info() for _ in range(tensor_count)]
    alignment = metadata.get("general.alignment", 32)
    if not isinstance(alignment, int) or not 8 <= alignment <= 1 << 16 or alignment & (alignment - 1):
        raise CheckpointError("general.alignment is impossible", got=repr(alignment)[:40], where=str(file.path))
    start = -(-cursor.position // alignment) * alignment
    tensors: dict[str, GgufTensor] = {}
    for info in infos:
        if info.name in tensors:
            raise CheckpointError("a tensor is there twice", got=info.name[:120], where=str(file.path))
        tensors[info.name] = _place(info, start, alignment, file)
    _check_disjoint(tensors, file)
    return GgufFile(file, metadata, tensors, data[: cursor.position])


@dataclass(frozen=True, slots=True)
class _Info:
    name: str
    dims: tuple[int, ...]
    kind: int
    offset: int


@dataclass(slots=True)
class _Cursor:
    data: bytes
    file: SourceFile
    position: int = 0
    _where: str = field(init=False)

    def __post_init__(self) -> None:
        self._where = str(self.file.path)

    def take(self, count: int) -> bytes:
        end = self.position + count
        if count < 0 or end > len(self.data):
            raise CheckpointError(
                "the GGUF header does not end",
                expected=f"at most {len(self.data)} bytes",
                where=self._where,
                hint="The file is truncated or damaged; download it again",
            )
        part = self.data[self.position : end]
        self.position = end
        return part

    def u32(self) -> int:
        return int(_U32.unpack(self.take(4))[0])

    def u64(self) -> int:
        return int(_U64.unpack(self.take(8))[0])

    def count(self, what: str, item_bytes: int) -> int:
        count = self.u64()
        if count > _COUNT_LIMIT or count * item_bytes > len(self.data):
            raise CheckpointError(
                f"the GGUF header gives an impossible number of {what}", got=str(count), where=self._where
            )
        return count

    def text(self) -> str:
        length = self.u64()
        if length > _STRING_LIMIT:
            raise CheckpointError("a name in the GGUF header is too long", got=f"{length} bytes", where=self._where)
        try:
            return self.take(length).decode("utf-8")
        except UnicodeDecodeError:
            raise CheckpointError("a name in the GGUF header is not UTF-8", where=self._where) from None

    def value(self, kind: int) -> Value | None:
        """A scalar or text; None for text too long to matter and for arrays, which are walked over."""
        if kind in _SCALARS:
            fmt = _SCALARS[kind]
            value: Value = struct.unpack(fmt, self.take(struct.calcsize(fmt)))[0]
            return value
        if kind == _STRING:
            raw = self.take(self.u64())
            return raw.decode("utf-8", "replace") if len(raw) <= _STRING_LIMIT else None
        if kind == _ARRAY:
            self._skip_array()
            return None
        raise CheckpointError("the GGUF header has an unknown value type", got=str(kind), where=self._where)

    def _skip_array(self) -> None:
        kind, count = self.u32(), self.u64()
        if kind in _SCALARS:
            self.take(min(count * struct.calcsize(_SCALARS[kind]), HEADER_LIMIT + 1))
        elif kind == _STRING:
            data, position = self.data, self.position
            if count * 8 > len(data) - position:
                self.take(HEADER_LIMIT + 1)
            for _ in range(count):
                if position + 8 > len(data):
                    break
                position += 8 + _U64.unpack_from(data, position)[0]
            self.position = position
            self.take(0)
        else:
            raise CheckpointError("the GGUF header has an array of an unknown type", got=str(kind), where=self._where)

    def tensor_info(self) -> _Info:
        name = self.text()
        axes = self.u32()
        if not 1 <= axes <= 4:
            raise CheckpointError(f"{name[:120]} has an impossible shape", got=f"{axes} axes", where=self._where)
        dims = tuple(self.u64() for _ in range(axes))
        if not all(0 < d < 1 << 40 for d in dims):
            raise CheckpointError(f"{name[:120]} has an impossible shape", got=str(dims), where=self._where)
        return _Info(name, dims[::-1], self.u32(), self.u64())


def block_size(kind: int) -> tuple[int, int] | None:
    """Values and bytes of one block of ggml's type `kind`, or None when nobody here knows the type."""
    if kind == MXFP4_OLLAMA:
        return 32, 17
    from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

    try:
        size: tuple[int, int] = GGML_QUANT_SIZES[GGMLQuantizationType(kind)]
    except (KeyError, ValueError):
        return None
    return size


def _place(info: _Info, start: int, alignment: int, file: SourceFile) -> GgufTensor:
    where = f"{file.path}: {info.name[:120]}"
    size = block_size(info.kind)
    if size is None:
        raise CheckpointError("a tensor has an unknown type", got=f"ggml type {info.kind}", where=where)
    values, block_bytes = size
    if info.dims[-1] % values:
        raise CheckpointError(
            "a tensor's rows are not whole blocks",
            expected=f"a multiple of {values}",
            got=str(info.dims[-1]),
            where=where,
        )
    nbytes = math.prod(info.dims) // values * block_bytes
    offset = start + info.offset
    if info.offset % alignment or offset + nbytes > file.size:
        raise CheckpointError(
            "a tensor lies outside its file",
            expected=f"{nbytes} bytes within {file.size}",
            got=f"offset {offset}",
            where=where,
            hint="The file is truncated or damaged; download it again",
        )
    return GgufTensor(info.name, info.kind, info.dims, file, offset, nbytes)


def _check_disjoint(tensors: Mapping[str, GgufTensor], file: SourceFile) -> None:
    end = 0
    for tensor in sorted(tensors.values(), key=lambda t: t.offset):
        if tensor.offset < end:
            raise CheckpointError("two tensors overlap", got=tensor.name[:120], where=str(file.path))
        end = tensor.offset + tensor.nbytes
