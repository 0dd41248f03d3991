"""Matrices into MLX's own quantised formats, a few rows at a time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import mlx.core as mx
import numpy as np

from mlx_gptoss.convert.files import Bytes
from mlx_gptoss.convert.jobs import Allocate, Output, fresh, row_chunks
from mlx_gptoss.convert.tensors import Rows
from mlx_gptoss.folder import BITS, LinearFormat


@dataclass(frozen=True, slots=True)
class Quantise:
    """A BF16 matrix [N, K] as MLX's affine or mxfp8 format: weight U32, scales, and biases for the affine ones.

    Runs on the CPU, so that the same source gives the same bytes on every machine.
    """

    tensor: Rows
    format: LinearFormat
    outputs: tuple[Output, ...]

    @classmethod
    def of(cls, matrix: str, tensor: Rows, fmt: LinearFormat) -> Quantise:
        rows, cols = tensor.shape
        groups = (rows, cols // fmt.group_size)
        outputs = [Output(f"{matrix}.weight", "U32", (rows, cols * BITS[fmt.format] // 32))]
        if fmt.format == "mxfp8":
            outputs.append(Output(f"{matrix}.scales", "U8", groups))
        else:
            outputs += [Output(f"{matrix}.{part}", "BF16", groups) for part in ("scales", "biases")]
        return cls(tensor, fmt, tuple(outputs))

    def produce(self, allocate: Allocate) -> Iterator[tuple[int, Bytes]]:
        for start, count in row_chunks(self.tensor):
            raw = fresh(count * self.tensor.row_bytes).reshape(count, -1)
            self.tensor.fill(start, raw)
            with mx.stream(mx.cpu):
                values = mx.array(raw.view(np.uint16)).view(mx.bfloat16)
                parts = quantise(values, self.format)
                for index, part in enumerate(parts):
                    yield index, array_bytes(part)

    def note(self) -> str | None:
        return None


def quantise(values: mx.array, fmt: LinearFormat) -> tuple[mx.array, ...]:
    """Weight, scales (and biases) of `values` [n, K] in `fmt`, on the current stream."""
    if fmt.format == "mxfp8":
        return tuple(mx.quantize(values, group_size=fmt.group_size, bits=8, mode="mxfp8"))
    return tuple(mx.quantize(values, group_size=fmt.group_size, bits=BITS[fmt.format], mode="affine"))


@dataclass(frozen=True, slots=True)
class Dequantised:
    """A matrix stored in any of MLX's formats, as BF16 rows. `parts` are weight U32, scales (and biases).

    `mode` is MLX's (affine, mxfp4, mxfp8).
    """

    parts: tuple[Rows, ...]
    mode: str
    bits: int
    group: int

    @classmethod
    def of(cls, parts: tuple[Rows, ...], fmt: LinearFormat) -> Dequantised:
        return cls(parts, "mxfp8" if fmt.format == "mxfp8" else "affine", BITS[fmt.format], fmt.group_size)

    @property
    def dtype(self) -> str:
        return "BF16"

    @property
    def shape(self) -> tuple[int, ...]:
        *rows, words = self.parts[0].shape
        return (*rows, words * 32 // self.bits)

    @property
    def rows(self) -> int:
        return self.parts[0].rows

    @property
    def row_bytes(self) -> int:
        return 2 * self.shape[-1]

    def fill(self, start: int, out: Bytes) -> None:
        arrays = []
        with mx.stream(mx.cpu):
            for part in self.parts:
                raw = np.empty((len(out), part.row_bytes), np.uint8)
                part.fill(start, raw)
                arrays.append(as_array(raw, part.dtype))
            values = mx.dequantize(
                arrays[0],
                arrays[1],
                arrays[2] if len(arrays) > 2 else None,
                group_size=self.group,
                bits=self.bits,
                mode=self.mode,
                dtype=mx.bfloat16,
            )
            out.reshape(-1)[:] = array_bytes(values)


def as_array(raw: Bytes, dtype: str) -> mx.array:
    """Rows of bytes as an array of a safetensors dtype."""
    if dtype == "BF16":
        return mx.array(raw.view(np.uint16)).view(mx.bfloat16)
    kinds = {"U8": np.uint8, "U32": np.uint32, "F16": np.float16, "F32": np.float32}
    return mx.array(raw.view(kinds[dtype]))


def array_bytes(array: mx.array) -> Bytes:
    """The bytes of an array, row-major; bfloat16 as its 16 bits."""
    if array.dtype == mx.bfloat16:
        array = array.view(mx.uint16)
    return np.ascontiguousarray(np.array(array)).view(np.uint8).reshape(-1)
