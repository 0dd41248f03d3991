"""safetensors headers and index files, read with every bound checked.

A header is an 8-byte little-endian length, then JSON mapping names to dtype, shape and data_offsets. Nothing in it is
trusted: lengths are checked against the file before anything is allocated.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from mlx_gptoss.convert.files import SourceFile, read_small
from mlx_gptoss.errors import CheckpointError

HEADER_LIMIT: Final = 16 << 20
"""Longest header accepted: about a hundred times that of the largest gpt-oss shard."""

INDEX_NAME: Final = "model.safetensors.index.json"

ITEM_BYTES: Final[Mapping[str, int]] = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1, "I16": 2, "U16": 2, "F16": 2, "BF16": 2,
    "I32": 4, "U32": 4, "F32": 4, "I64": 8, "U64": 8, "F64": 8,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Entry:
    """One tensor of a file: `offset` counts from the start of `file`."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: SourceFile
    offset: int
    nbytes: int


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """All tensors of a safetensors checkpoint, the files they lie in, and the raw headers."""

    entries: Mapping[str, Entry]
    files: tuple[SourceFile, ...]
    headers: tuple[bytes, ...]


def parse_json_object(data: bytes, what: str, where: str) -> dict[str, Any]:
    """A JSON object without duplicate keys. Raises CheckpointError."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key, value in pairs:
            if key in found:
                raise CheckpointError(f"{what} names {key[:80]!r} twice", where=where)
            found[key] = value
        return found

    try:
        value = json.loads(data.decode("utf-8"), object_pairs_hook=unique)
    except (ValueError, RecursionError):
        raise CheckpointError(f"{what} is not valid JSON", where=where) from None
    if not isinstance(value, dict):
        raise CheckpointError(f"{what} is not a JSON object", got=type(value).__name__, where=where)
    return value


def read_header(file: SourceFile) -> tuple[dict[str, Entry], bytes]:
    """Tensors of one file and its raw header. Raises CheckpointError naming what is wrong."""
    where = str(file.path)
    if file.size < 8:
        raise CheckpointError(
            "a weight file is truncated", expected="at least 8 bytes", got=str(file.size), where=where
        )
    length = int.from_bytes(file.read(0, 8), "little")
    if length > HEADER_LIMIT or 8 + length > file.size:
        raise CheckpointError(
            "the safetensors header has an impossible length",
            expected=f"at most {min(HEADER_LIMIT, file.size - 8)} bytes",
            got=str(length),
            where=where,
            hint="The file is truncated or not safetensors; download it again",
        )
    raw = file.read(8, length)
    header = parse_json_object(raw, "the safetensors header", where)
    metadata = header.pop("__metadata__", None)
    if metadata is not None and not isinstance(metadata, dict):
        raise CheckpointError("__metadata__ of the safetensors header is not an object", where=where)
    start = 8 + length
    entries = {name: _entry(name, value, file, start) for name, value in header.items()}
    _check_layout(entries.values(), file, start)
    return entries, raw


def _entry(name: str, value: object, file: SourceFile, start: int) -> Entry:
    where = f"{file.path}: {name[:120]}"
    if not isinstance(value, dict):
        raise CheckpointError("a tensor's header entry is not an object", where=where)
    dtype, shape, offsets = value.get("dtype"), value.get("shape"), value.get("data_offsets")
    if not isinstance(dtype, str) or dtype not in ITEM_BYTES:
        raise CheckpointError("a tensor has an unknown dtype", got=repr(dtype)[:40], where=where)
    if not isinstance(shape, list) or len(shape) > 8 or not all(_is_length(d) for d in shape):
        raise CheckpointError("a tensor has an impossible shape", got=repr(shape)[:80], where=where)
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(_is_length(o) for o in offsets):
        raise CheckpointError("a tensor has impossible offsets", got=repr(offsets)[:80], where=where)
    begin, end = offsets
    if not begin <= end <= file.size - start:
        raise CheckpointError(
            "a tensor lies outside its file",
            expected=f"offsets within {file.size - start} bytes of data",
            got=f"{begin} to {end}",
            where=where,
            hint="The file is truncated; download it again",
        )
    nbytes = ITEM_BYTES[dtype] * math.prod(shape)
    if nbytes != end - begin:
        raise CheckpointError(
            "a tensor's length disagrees with its shape", expected=f"{nbytes} bytes", got=str(end - begin), where=where
        )
    return Entry(name, dtype, tuple(shape), file, start + begin, nbytes)


def _is_length(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 48


def _check_layout(entries: Any, file: SourceFile, start: int) -> None:
    end = start
    for entry in sorted(entries, key=lambda e: (e.offset, e.nbytes)):
        if entry.offset < end:
            raise CheckpointError("two tensors overlap", got=entry.name[:120], where=str(file.path))
        if entry.offset > end:
            raise CheckpointError("there is a hole between tensors", got=entry.name[:120], where=str(file.path))
        end = entry.offset + entry.nbytes
    if end != file.size:
        raise CheckpointError(
            "a weight file has the wrong length", expected=f"{end} bytes", got=str(file.size), where=str(file.path)
        )


def read_index(folder: Path) -> dict[str, str] | None:
    """The index's map from tensor to file name, or None without an index. Raises CheckpointError."""
    path = folder / INDEX_NAME
    if not path.exists():
        return None
    data = parse_json_object(read_small(path), "the index", str(path))
    mapping = data.get("weight_map")
    if not isinstance(mapping, dict) or not mapping:
        raise CheckpointError("the index has no weight_map", where=str(path))
    for name, file in mapping.items():
        if not isinstance(file, str) or not file.endswith(".safetensors") or len(file) > 200:
            raise CheckpointError(f"the index gives {name[:80]!r} no weight file", got=repr(file)[:80], where=str(path))
        if "/" in file or "\\" in file or "\0" in file or file.startswith("."):
            raise CheckpointError(
                "the index points outside its folder",
                expected="a plain file name",
                got=repr(file)[:120],
                where=str(path),
            )
    return mapping


def read_checkpoint(folder: Path, names: tuple[str, ...] | None = None) -> Checkpoint:
    """All tensors of the safetensors files of `folder` (those of its index when it has one; else `names`, else all)."""
    index = read_index(folder) if names is None else None
    if index is not None:
        wanted = sorted(set(index.values()))
    elif names is not None:
        wanted = sorted(names)
    else:
        wanted = sorted(p.name for p in folder.glob("*.safetensors"))
    files: list[SourceFile] = []
    headers: list[bytes] = []
    entries: dict[str, Entry] = {}
    try:
        for name in wanted:
            files.append(_open_shard(folder, name, index is not None))
            found, raw = read_header(files[-1])
            headers.append(raw)
            for tensor, entry in found.items():
                if index is not None and index.get(tensor) != name:
                    continue
                if tensor in entries:
                    raise CheckpointError(
                        f"{tensor[:120]} is in two files",
                        got=f"{entries[tensor].file.path.name} and {name}",
                        where=str(folder),
                        hint="Keep one copy of the weights in the folder, or give it an index",
                    )
                entries[tensor] = entry
        if index is not None:
            for tensor, name in index.items():
                if tensor not in entries:
                    raise CheckpointError(
                        "the index names a tensor that its file does not hold",
                        got=tensor[:120],
                        where=str(folder / name),
                    )
    except BaseException:
        for file in files:
            file.close()
        raise
    return Checkpoint(entries, tuple(files), tuple(headers))


def _open_shard(folder: Path, name: str, indexed: bool) -> SourceFile:
    path = folder / name
    if indexed and not path.exists():
        raise CheckpointError(
            "a weight file is missing", expected=name, where=str(folder), hint="Download the checkpoint again"
        )
    return SourceFile(path)
