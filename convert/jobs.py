"""Units of conversion: each makes one or a few target tensors, in order, from rows of the source."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from mlx_gptoss.convert.files import Bytes
from mlx_gptoss.convert.tensors import Rows
from mlx_gptoss.folder import PAGE_BYTES, byte_length

CHUNK_BYTES = 4 << 20


@dataclass(frozen=True, slots=True)
class Output:
    """A target tensor: name, dtype and shape as they will stand in the folder."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return byte_length(self.dtype, self.shape)


class Allocate(Protocol):
    """Lends a buffer of `count` bytes; it comes back when the chunk has been written."""

    def __call__(self, count: int) -> Bytes: ...


class Job(Protocol):
    """Makes `outputs`. `produce` yields (index of the output, next bytes of it); chunks of one output come in order."""

    @property
    def outputs(self) -> tuple[Output, ...]: ...

    def produce(self, allocate: Allocate) -> Iterator[tuple[int, Bytes]]: ...

    def note(self) -> str | None:
        """A remark for the manifest once the job is done, such as a quantisation error."""


@dataclass(frozen=True, slots=True)
class Copy:
    """One output, byte for byte what `tensor` yields."""

    tensor: Rows
    outputs: tuple[Output, ...] = field(default=())

    @classmethod
    def of(cls, name: str, tensor: Rows) -> Copy:
        return cls(tensor, (Output(name, tensor.dtype, tensor.shape),))

    def produce(self, allocate: Allocate) -> Iterator[tuple[int, Bytes]]:
        for start, count in row_chunks(self.tensor):
            buffer = allocate(count * self.tensor.row_bytes)
            self.tensor.fill(start, buffer.reshape(count, self.tensor.row_bytes))
            yield 0, buffer

    def note(self) -> str | None:
        return None


def row_chunks(tensor: Rows, chunk_bytes: int = CHUNK_BYTES) -> Iterator[tuple[int, int]]:
    """(first row, count) of successive chunks of at most `chunk_bytes`.

    Where rows allow it, a chunk (but the last) is whole pages, so that it can be written past the page cache.
    """
    step = max(1, chunk_bytes // max(1, tensor.row_bytes))
    multiple = PAGE_BYTES // math.gcd(PAGE_BYTES, tensor.row_bytes)
    step = step // multiple * multiple or step
    for start in range(0, tensor.rows, step):
        yield start, min(step, tensor.rows - start)


def fresh(count: int) -> Bytes:
    """An allocator without recycling, for callers outside the pipeline."""
    return np.empty(count, np.uint8)
