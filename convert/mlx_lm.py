"""mlx-lm and mlx-community folders: experts split into gate and up, other matrices perhaps quantised by MLX.

Experts in MLX's `mxfp4` mode are the released bits seen as words, so they come through exactly. Matrices in MLX's
affine 8, 6 or 4-bit or mxfp8 format at our group sizes are carried over; others are dequantised to bf16. Experts in
another format are dequantised and quantised to MXFP4 again, which the notes say.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mlx_gptoss.config import ModelConfig
from mlx_gptoss.convert.adapters import Adapter
from mlx_gptoss.convert.files import fingerprint
from mlx_gptoss.convert.huggingface import LAYER_NAMES, TOP_NAMES, Taker, prefix, read_config
from mlx_gptoss.convert.quantise import Dequantised
from mlx_gptoss.convert.safetensors import Checkpoint
from mlx_gptoss.convert.source import Packed, Source
from mlx_gptoss.convert.tensors import Concatenated, Reshaped, Rows, interleave_columns, interleave_rows
from mlx_gptoss.errors import CheckpointError, ConversionError
from mlx_gptoss.folder import Format, LinearFormat, layer

_MATRICES = ("qkv", "out")
_AFFINE: Mapping[int, Format] = {8: "q8", 6: "q6", 4: "q4"}


def open_mlx_lm(folder: Path, checkpoint: Checkpoint, adapters: Sequence[Adapter]) -> Source:
    """A folder as mlx-lm writes it. Raises ConfigError, CheckpointError or ConversionError."""
    if adapters:
        raise ConversionError("adapters are merged into Hugging Face checkpoints only", where=str(folder))
    raw, data, config = read_config(folder)
    reader = _Reader(Taker(checkpoint, str(folder)), data, config)
    reader.read()
    return Source(
        kind="mlx-lm",
        path=folder,
        config=config,
        config_json=raw,
        tensors=reader.tensors,
        files=checkpoint.files,
        fingerprint=fingerprint(checkpoint.files, [raw, *checkpoint.headers]),
        packed=reader.packed,
        ignored=reader.take.ignored(),
        notes=tuple(reader.notes),
    )


@dataclass(frozen=True, slots=True)
class _Matrix:
    """A matrix of the source: plain rows, or the parts of a quantised one."""

    plain: Rows | None
    parts: Mapping[str, Rows] = field(default_factory=dict)
    mode: str = "plain"
    bits: int = 16
    group: int = 0

    @property
    def format(self) -> LinearFormat | None:
        """Our name for the format, when we have one."""
        if self.mode == "affine" and self.bits in _AFFINE:
            return LinearFormat(_AFFINE[self.bits], self.group)
        if self.mode == "mxfp8" and self.group == 32:
            return LinearFormat("mxfp8", 32)
        return None


@dataclass(slots=True)
class _Reader:
    take: Taker
    data: Mapping[str, object]
    config: ModelConfig
    tensors: dict[str, Rows] = field(default_factory=dict)
    packed: dict[str, Packed] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def read(self) -> None:
        for ours, theirs in TOP_NAMES.items():
            self._linear(ours.removesuffix(".weight"), [theirs.removesuffix(".weight")])
        for index in range(self.config.num_layers):
            base = prefix(index)
            for ours, theirs in LAYER_NAMES.items():
                if not ours.endswith("up.bias") and ours != "down.bias" and ours not in ("out.weight", "router.weight"):
                    self.tensors[layer(index, ours)] = self.take.rows(base + theirs)
            self._linear(layer(index, "qkv"), [f"{base}self_attn.{p}_proj" for p in "qkv"])
            names = [f"{base}self_attn.{p}_proj.bias" for p in "qkv"]
            self.tensors[layer(index, "qkv.bias")] = Concatenated.of([self.take.rows(n) for n in names], names)
            self._linear(layer(index, "out"), [f"{base}self_attn.o_proj"])
            self._linear(layer(index, "router"), [f"{base}mlp.router"])
            self._experts(index, f"{base}mlp.experts.")

    def _linear(self, ours: str, names: Sequence[str]) -> None:
        parts = [self._matrix(name) for name in names]
        if all(p.plain is not None for p in parts):
            rows = [p.plain for p in parts if p.plain is not None]
            self.tensors[f"{ours}.weight"] = rows[0] if len(rows) == 1 else Concatenated.of(rows, names)
            return
        formats = {p.format for p in parts}
        rows = [self._dequantised(p, name) for p, name in zip(parts, names, strict=True)]
        self.tensors[f"{ours}.weight"] = rows[0] if len(rows) == 1 else Concatenated.of(rows, names)
        fmt = formats.pop()
        carried = not formats and fmt is not None and ours.rpartition(".")[2] in (*_MATRICES, "embed", "head")
        columns = self.tensors[f"{ours}.weight"].shape[-1]
        ordinary = 32 if fmt is not None and (fmt.format == "mxfp8" or columns % 64) else 64
        if carried and fmt is not None and fmt.group_size in (32, 64, ordinary):
            joined = {
                part: parts[0].parts[part]
                if len(parts) == 1
                else Concatenated.of([p.parts[part] for p in parts], [f"{n}.{part}" for n in names])
                for part in parts[0].parts
            }
            self.packed[ours] = Packed(fmt, joined)

    def _matrix(self, name: str) -> _Matrix:
        if not self.take.has(f"{name}.scales"):
            return _Matrix(self.take.rows(f"{name}.weight"))
        settings = self._settings(name)
        parts = {p: self.take.rows(f"{name}.{p}") for p in ("weight", "scales")}
        if self.take.has(f"{name}.biases"):
            parts["biases"] = self.take.rows(f"{name}.biases")
        for part, tensor in parts.items():
            if part == "weight" and tensor.dtype != "U32":
                raise CheckpointError(
                    f"{name}.weight has the wrong dtype", expected="U32", got=tensor.dtype, where=self.take.where
                )
        matrix = _Matrix(None, parts, *settings)
        self._check_shapes(matrix, name)
        return matrix

    def _settings(self, name: str) -> tuple[str, int, int]:
        table = self.data.get("quantization")
        if not isinstance(table, dict):
            raise CheckpointError(
                "quantised weights without a `quantization` in config.json", got=name, where=self.take.where
            )
        own = table.get(name)
        settings = own if isinstance(own, dict) else table
        bits, group = settings.get("bits"), settings.get("group_size")
        affine = self.take.has(f"{name}.biases")
        if affine and bits in (2, 3, 4, 5, 6, 8) and group in (32, 64, 128):
            return "affine", int(bits), int(group)
        if not affine and bits in (4, 8) and group == 32:
            return f"mxfp{bits}", int(bits), 32
        raise CheckpointError(
            f"unknown quantisation of {name}",
            expected="MLX's affine, mxfp4 or mxfp8",
            got=f"bits {bits!r}, group_size {group!r}"[:120],
            where=self.take.where,
        )

    def _check_shapes(self, matrix: _Matrix, name: str) -> None:
        weight = matrix.parts["weight"]
        columns = weight.shape[-1] * 32 // matrix.bits
        expected = (*weight.shape[:-1], columns // matrix.group)
        wanted = {"scales", "weight"} | ({"biases"} if matrix.mode == "affine" else set())
        shapes = {p: t.shape for p, t in matrix.parts.items() if p != "weight"}
        if set(matrix.parts) != wanted or columns % matrix.group or any(s != expected for s in shapes.values()):
            raise CheckpointError(
                f"the parts of {name} do not fit together", expected=f"{sorted(wanted)}, scales {expected}",
                got=str(shapes), where=self.take.where,
            )  # fmt: skip
        floats = ("U8",) if matrix.mode != "affine" else ("BF16", "F16", "F32")
        for part in ("scales", "biases"):
            if part in matrix.parts and matrix.parts[part].dtype not in floats:
                raise CheckpointError(
                    f"{name}.{part} has the wrong dtype", expected="|".join(floats), got=matrix.parts[part].dtype,
                    where=self.take.where,
                )  # fmt: skip

    def _dequantised(self, matrix: _Matrix, name: str) -> Rows:
        if matrix.plain is not None:
            return matrix.plain
        self.notes.append(f"{name} is {matrix.mode} with {matrix.bits} bits in the source")
        return Dequantised(tuple(matrix.parts.values()), matrix.mode, matrix.bits, matrix.group)

    def _experts(self, index: int, base: str) -> None:
        gate, up, down = (self._matrix(f"{base}{p}_proj") for p in ("gate", "up", "down"))
        biases = [self.take.rows(f"{base}{p}_proj.bias") for p in ("gate", "up", "down")]
        self.tensors[layer(index, "gate_up.bias")] = interleave_columns(biases[0], biases[1], base)
        self.tensors[layer(index, "down.bias")] = biases[2]
        if all(m.mode == "mxfp4" and m.group == 32 for m in (gate, up, down)):
            for part, ours in (("weight", "blocks"), ("scales", "scales")):
                pair = interleave_rows(gate.parts[part], up.parts[part], f"{base}{part}")
                self.tensors[layer(index, f"gate_up.{ours}")] = as_blocks(pair) if ours == "blocks" else pair
                rows = down.parts[part]
                self.tensors[layer(index, f"down.{ours}")] = as_blocks(rows) if ours == "blocks" else rows
            return
        dense = [
            self._dequantised(m, f"{base}{p}_proj")
            for m, p in zip((gate, up, down), ("gate", "up", "down"), strict=True)
        ]
        self.tensors[layer(index, "gate_up.weight")] = interleave_rows(dense[0], dense[1], base)
        self.tensors[layer(index, "down.weight")] = dense[2]


def as_blocks(words: Rows) -> Rows:
    """MLX's mxfp4 words U32 [E, N, K/8] as the released blocks U8 [E, N, K/32, 16]."""
    experts, rows, count = words.shape
    return Reshaped(words, "U8", (experts, rows, count // 4, 16))
