"""Buffers between guard pages: right-aligned so that running past the end faults, or left-aligned for the start."""

from __future__ import annotations

import ctypes
import mmap
from dataclasses import dataclass
from typing import Literal

import numpy as np

from tests.bench.dtypes import Array, ElementType
from tests.bench.native import Runtime

Side = Literal["end", "start"]
_ALIGNMENT = 16
_FILL = 0xFB


@dataclass(slots=True)
class GuardedBuffer:
    """`size` bytes at `address` inside `mapped` bytes at `base`; the slack is filled with a canary."""

    base: int
    mapped: int
    address: int
    size: int

    def bytes_view(self) -> Array:
        """The buffer's bytes, writable, no copy."""
        if self.size == 0:
            return np.empty(0, np.uint8)
        return np.ctypeslib.as_array((ctypes.c_uint8 * self.size).from_address(self.address))

    def array(self, kind: ElementType, shape: tuple[int, ...]) -> Array:
        """The buffer's elements, copied out."""
        return self.bytes_view().copy().view(kind.storage).reshape(shape)

    def overrun(self) -> int | None:
        """Offset from the buffer's start of the first canary byte that changed, or None."""
        whole = np.ctypeslib.as_array((ctypes.c_uint8 * self.mapped).from_address(self.base))
        lead = self.address - self.base
        for start, part in ((0, whole[:lead]), (lead + self.size, whole[lead + self.size :])):
            # Only the bytes that share a page with the buffer's edge can have been touched by small mistakes.
            changed = np.flatnonzero(part != _FILL)
            if changed.size:
                return start + int(changed[0]) - lead
        return None


def allocate(runtime: Runtime, size: int, side: Side) -> GuardedBuffer:
    """A guarded buffer of `size` bytes, aligned to 16."""
    page = mmap.PAGESIZE
    mapped = max(1, (size + page - 1) // page) * page
    base = runtime.map(mapped)
    lead = (mapped - size) // _ALIGNMENT * _ALIGNMENT if side == "end" else 0
    buffer = GuardedBuffer(base, mapped, base + lead, size)
    ctypes.memset(base, _FILL, lead)
    ctypes.memset(base + lead + size, _FILL, mapped - lead - size)
    return buffer


def fill(buffer: GuardedBuffer, kind: ElementType, bits: int) -> None:
    """Fills a buffer with one element's bits."""
    pattern = np.frombuffer(bits.to_bytes(kind.size, "little"), f"u{kind.size}")
    buffer.bytes_view().view(f"u{kind.size}")[:] = pattern


def element_bits(kind: ElementType, value: float) -> int:
    """The bits of a value in this type, as MLX's fill would write it."""
    if kind.name == "bfloat16":
        bits = int(np.float32(value).view(np.uint32))
        return (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    return int.from_bytes(np.array(value).astype(kind.storage).tobytes(), "little")
