"""Logical tensors: what a source offers, as rows of bytes that are made on demand.

A `Rows` is a tensor seen as a matrix of bytes [rows, row_bytes] in row-major order. `fill` makes any run of rows, so
readers, transforms and writers compose without ever holding a whole tensor.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from mlx_gptoss.convert.files import Bytes
from mlx_gptoss.convert.safetensors import ITEM_BYTES, Entry
from mlx_gptoss.errors import CheckpointError, ConversionError

Floats = NDArray[np.float32]

FLOAT_DTYPES = ("BF16", "F16", "F32")


class Rows(Protocol):
    """A tensor of `dtype` and `shape`, seen as [rows, row_bytes]."""

    @property
    def dtype(self) -> str: ...

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def rows(self) -> int: ...

    @property
    def row_bytes(self) -> int: ...

    def fill(self, start: int, out: Bytes) -> None:
        """Writes rows start .. start + len(out) into `out` [n, row_bytes] (contiguous)."""


def row_view(shape: tuple[int, ...], row_dims: int) -> tuple[int, int]:
    """Rows and items per row when the last `row_dims` axes form a row (a vector is a column of single items)."""
    if len(shape) <= row_dims:
        return (shape[0], math.prod(shape[1:])) if shape else (1, 1)
    return math.prod(shape[:-row_dims]), math.prod(shape[-row_dims:])


@dataclass(frozen=True, slots=True)
class Stored:
    """A tensor as it lies in a safetensors file."""

    entry: Entry
    dtype: str
    shape: tuple[int, ...]
    rows: int
    row_bytes: int

    @classmethod
    def of(cls, entry: Entry, row_dims: int = 1) -> Stored:
        rows, items = row_view(entry.shape, row_dims)
        return cls(entry, entry.dtype, entry.shape, rows, items * ITEM_BYTES[entry.dtype])

    def fill(self, start: int, out: Bytes) -> None:
        self.entry.file.read_into(self.entry.offset + start * self.row_bytes, out)


@dataclass(frozen=True, slots=True)
class Concatenated:
    """Tensors of one dtype and row length, one after another along the first axis."""

    parts: tuple[Rows, ...]

    @classmethod
    def of(cls, parts: Sequence[Rows], names: Sequence[str]) -> Concatenated:
        """Raises ConversionError when the parts do not fit together."""
        first = parts[0]
        for part, name in zip(parts, names, strict=True):
            if part.dtype != first.dtype or part.shape[1:] != first.shape[1:] or len(part.shape) != len(first.shape):
                raise ConversionError(
                    f"{name} cannot be joined to {names[0]}",
                    expected=f"{first.dtype} [*, {', '.join(map(str, first.shape[1:]))}]",
                    got=f"{part.dtype} {list(part.shape)}",
                )
        return cls(tuple(parts))

    @property
    def dtype(self) -> str:
        return self.parts[0].dtype

    @property
    def shape(self) -> tuple[int, ...]:
        return (sum(p.shape[0] for p in self.parts), *self.parts[0].shape[1:])

    @property
    def rows(self) -> int:
        return sum(p.rows for p in self.parts)

    @property
    def row_bytes(self) -> int:
        return self.parts[0].row_bytes

    def fill(self, start: int, out: Bytes) -> None:
        done = 0
        for part in self.parts:
            if done == len(out):
                return
            if start >= part.rows:
                start -= part.rows
                continue
            count = min(part.rows - start, len(out) - done)
            part.fill(start, out[done : done + count])
            done, start = done + count, 0


@dataclass(frozen=True, slots=True)
class Interleaved:
    """Rows of two equal tensors alternately: even rows from `even`, odd rows from `odd`.

    `axis` is the axis that doubles; rows must enumerate the axes up to and including it.
    """

    even: Rows
    odd: Rows
    axis: int

    @property
    def dtype(self) -> str:
        return self.even.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        shape = list(self.even.shape)
        shape[self.axis] *= 2
        return tuple(shape)

    @property
    def rows(self) -> int:
        return 2 * self.even.rows

    @property
    def row_bytes(self) -> int:
        return self.even.row_bytes

    def fill(self, start: int, out: Bytes) -> None:
        stop = start + len(out)
        first, last = start // 2, (stop + 1) // 2
        half = np.empty((last - first, self.row_bytes), np.uint8)
        for parity, part in enumerate((self.even, self.odd)):
            part.fill(first, half)
            begin = (parity - start) % 2
            picked = half[(start + begin) // 2 - first :]
            target = out[begin::2]
            target[:] = picked[: len(target)]


@dataclass(frozen=True, slots=True)
class InterleavedColumns:
    """Items of two equal matrices [N, K] alternately, as [N, 2K]."""

    even: Rows
    odd: Rows

    @property
    def dtype(self) -> str:
        return self.even.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        return self.even.shape[0], 2 * self.even.shape[1]

    @property
    def rows(self) -> int:
        return self.even.rows

    @property
    def row_bytes(self) -> int:
        return 2 * self.even.row_bytes

    def fill(self, start: int, out: Bytes) -> None:
        kind = np.uint16 if ITEM_BYTES[self.dtype] == 2 else np.uint32
        half = np.empty((len(out), self.even.row_bytes), np.uint8)
        for parity, part in enumerate((self.even, self.odd)):
            part.fill(start, half)
            out.view(kind)[:, parity::2] = half.view(kind)


def interleave_rows(gate: Rows, up: Rows, where: str) -> Rows:
    """Rows of gate and up [E, I, ...] alternately, as [E, 2I, ...]. Raises CheckpointError unless they match."""
    if gate.shape != up.shape or gate.dtype != up.dtype or len(gate.shape) < 3:
        raise CheckpointError(
            "gate and up do not match", expected=f"{gate.dtype} {gate.shape}", got=f"{up.dtype} {up.shape}", where=where
        )
    return Interleaved(gate, up, axis=1)


def interleave_columns(gate: Rows, up: Rows, where: str) -> Rows:
    """Biases [E, I] of gate and up alternately, as [E, 2I]. Raises CheckpointError unless they match."""
    if gate.shape != up.shape or gate.dtype != up.dtype or len(gate.shape) != 2 or gate.dtype not in FLOAT_DTYPES:
        raise CheckpointError(
            "gate and up biases do not match",
            expected=f"{gate.dtype} {gate.shape}",
            got=f"{up.dtype} {up.shape}",
            where=where,
        )
    return InterleavedColumns(gate, up)


def to_floats(data: Bytes, dtype: str) -> Floats:
    """Rows of bytes [n, b] as float32 [n, items]; exact for every float dtype the converter reads."""
    if dtype == "BF16":
        return (data.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
    if dtype == "F16":
        return data.view(np.float16).astype(np.float32)
    if dtype == "F32":
        return data.view(np.float32)
    raise ConversionError("a weight has a dtype that cannot be read as numbers", expected="BF16|F16|F32", got=dtype)


def to_bf16(values: Floats) -> NDArray[np.uint16]:
    """float32 to bfloat16 bits, round to nearest even (values are finite)."""
    bits = np.ascontiguousarray(values).view(np.uint32)
    rounded = bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))
    return (rounded >> np.uint32(16)).astype(np.uint16)


@dataclass(frozen=True, slots=True)
class Cast:
    """A float tensor in another float dtype (`BF16` or `F32`)."""

    inner: Rows
    dtype: str

    @property
    def shape(self) -> tuple[int, ...]:
        return self.inner.shape

    @property
    def rows(self) -> int:
        return self.inner.rows

    @property
    def row_bytes(self) -> int:
        return self.inner.row_bytes // ITEM_BYTES[self.inner.dtype] * ITEM_BYTES[self.dtype]

    def fill(self, start: int, out: Bytes) -> None:
        raw = np.empty((len(out), self.inner.row_bytes), np.uint8)
        self.inner.fill(start, raw)
        values = to_floats(raw, self.inner.dtype)
        if self.dtype == "F32":
            out.view(np.float32)[:] = values
        else:
            out.view(np.uint16)[:] = to_bf16(values)


@dataclass(frozen=True, slots=True)
class Reshaped:
    """The same bytes under another shape and dtype; rows stay rows."""

    inner: Rows
    dtype: str
    shape: tuple[int, ...]

    @property
    def rows(self) -> int:
        return self.inner.rows

    @property
    def row_bytes(self) -> int:
        return self.inner.row_bytes

    def fill(self, start: int, out: Bytes) -> None:
        self.inner.fill(start, out)


@dataclass(frozen=True, slots=True)
class Checked:
    """A tensor whose values are checked on the way: finite floats, or E8M0 scales without NaN (0xFF)."""

    inner: Rows
    name: str
    where: str

    @property
    def dtype(self) -> str:
        return self.inner.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        return self.inner.shape

    @property
    def rows(self) -> int:
        return self.inner.rows

    @property
    def row_bytes(self) -> int:
        return self.inner.row_bytes

    def fill(self, start: int, out: Bytes) -> None:
        self.inner.fill(start, out)
        if has_nan(out, self.dtype):
            raise ConversionError(
                f"{self.name} holds NaN or infinity",
                expected="finite numbers",
                where=self.where,
                hint="The checkpoint is damaged; download it again",
            )


def has_nan(data: Bytes, dtype: str) -> bool:
    """Whether floats are non-finite, or E8M0 scales (U8) are NaN."""
    if dtype == "U8":
        return bool(data.max(initial=0) == 0xFF)
    if dtype == "BF16":
        return bool((data.view(np.uint16) << np.uint16(1)).max(initial=0) >= 0xFF00)
    if dtype == "F16":
        return bool((data.view(np.uint16) << np.uint16(1)).max(initial=0) >= 0xF800)
    if dtype == "F32":
        return bool((data.view(np.uint32) << np.uint32(1)).max(initial=0) >= 0xFF000000)
    return False


def read_all(tensor: Rows) -> Bytes:
    """A whole tensor as bytes [rows, row_bytes]; for small ones."""
    out = np.empty((tensor.rows, tensor.row_bytes), np.uint8)
    tensor.fill(0, out)
    return out
