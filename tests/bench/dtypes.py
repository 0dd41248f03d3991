"""Element types of buffers: their names in MLX and in Metal, sizes, poison, and conversion to and from numpy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


@dataclass(frozen=True, slots=True)
class ElementType:
    """`name` is MLX's, `metal` is what MLX's generated signature says; `poison` is a pattern that no sum produces."""

    name: str
    metal: str
    storage: str
    poison: int

    @property
    def size(self) -> int:
        """Bytes of one element."""
        return np.dtype(self.storage).itemsize

    @property
    def mlx(self) -> mx.Dtype:
        """The MLX dtype."""
        dtype = getattr(mx, "bool_" if self.name == "bool" else self.name)
        assert isinstance(dtype, mx.Dtype)
        return dtype


_TYPES = {
    t.name: t
    for t in (
        ElementType("bool", "bool", "uint8", 0xA5),
        ElementType("uint8", "uint8_t", "uint8", 0xA5),
        ElementType("int8", "int8_t", "int8", 0xA5),
        ElementType("uint16", "uint16_t", "uint16", 0xFFA5),
        ElementType("int16", "int16_t", "int16", 0xFFA5),
        ElementType("uint32", "uint32_t", "uint32", 0xFFE5A5C3),
        ElementType("int32", "int32_t", "int32", 0xFFE5A5C3),
        ElementType("uint64", "uint64_t", "uint64", 0xFFE5A5C3FFE5A5C3),
        ElementType("int64", "int64_t", "int64", 0xFFE5A5C3FFE5A5C3),
        ElementType("float16", "float16_t", "float16", 0xFEA5),
        ElementType("bfloat16", "bfloat16_t", "uint16", 0xFFA5),
        ElementType("float32", "float", "float32", 0xFFE5A5C3),
    )
}


@dataclass(frozen=True, slots=True)
class Bfloat16:
    """A bfloat16 array as its bits: `bits` is uint16 of the array's shape."""

    bits: NDArray[np.uint16]


def element_type(dtype: object) -> ElementType:
    """The element type of an `mx.Dtype`, numpy dtype or name."""
    name = str(dtype).rsplit(".", 1)[-1] if isinstance(dtype, mx.Dtype) else str(dtype)
    name = {"bool_": "bool"}.get(name, name)
    if name not in _TYPES:
        name = np.dtype(dtype).name  # type: ignore[call-overload]  # anything numpy can name
    return _TYPES[name]


def to_numpy(value: object) -> tuple[Array, ElementType]:
    """The elements of an input as a numpy array of its storage type (a view where it can be), and its type."""
    if isinstance(value, Bfloat16):
        return np.asarray(value.bits, dtype=np.uint16), _TYPES["bfloat16"]
    if isinstance(value, mx.array):
        kind = element_type(value.dtype)
        bits = value.view(mx.uint16) if kind.name == "bfloat16" else value
        if kind.name == "bool":
            bits = value.view(mx.uint8)
        mx.eval(bits)
        return np.array(bits, copy=None), kind
    array = np.asarray(value)
    kind = element_type(array.dtype)
    return array.view(kind.storage) if kind.name == "bool" else array, kind


def to_mlx(array: Array, kind: ElementType) -> mx.array:
    """The MLX array of a storage array."""
    if kind.name == "bfloat16":
        return mx.array(array).view(mx.bfloat16)
    if kind.name == "bool":
        return mx.array(array).view(mx.bool_)
    return mx.array(array)


def to_floats(array: Array, kind: ElementType) -> NDArray[np.float32]:
    """The values of a storage array as float32 (exact for bfloat16 and float16)."""
    if kind.name == "bfloat16":
        return (array.astype(np.uint32) << 16).view(np.float32)
    return array.astype(np.float32)


def poison_bits(kind: ElementType) -> int:
    """The bit pattern that fills an output before a launch."""
    return kind.poison
