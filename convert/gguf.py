"""GGUF checkpoints of gpt-oss, as llama.cpp and Ollama ship them.

An MXFP4 block is 17 bytes: the E8M0 scale, then 16 bytes whose low nibbles are elements 0..15 and high nibbles 16..31.
The released order is two neighbours a byte, so nibbles are re-paired, losing nothing. Ollama's first gpt-oss files use
type number 4 for blocks already in the released order. Gate and up are separate tensors in llama.cpp's files and one
tensor in Ollama's. Other tensor types are dequantised by the gguf package.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from mlx_gptoss.config import ModelConfig
from mlx_gptoss.convert.files import Bytes, SourceFile, fingerprint
from mlx_gptoss.convert.gguf_file import (
    MXFP4,
    MXFP4_OLLAMA,
    PLAIN,
    GgufFile,
    GgufTensor,
    Value,
    block_size,
    read_gguf,
)
from mlx_gptoss.convert.safetensors import Entry
from mlx_gptoss.convert.source import Source
from mlx_gptoss.convert.tensors import Concatenated, Rows, Stored, interleave_columns, interleave_rows
from mlx_gptoss.errors import CheckpointError
from mlx_gptoss.folder import layer

ARCHITECTURES = ("gpt-oss", "gptoss")
_SPLIT = re.compile(r"(?P<stem>.+)-(?P<index>\d{5})-of-(?P<count>\d{5})\.gguf")
_SPLIT_LIMIT = 64
_MXFP4 = (MXFP4, MXFP4_OLLAMA)
_LAYER: Mapping[str, tuple[str, ...]] = {
    "attn_norm.weight": ("attn_norm.weight",),
    "sinks": ("attn_sinks.weight", "attn_sinks"),
    "out.weight": ("attn_output.weight", "attn_out.weight"),
    "out.bias": ("attn_output.bias", "attn_out.bias"),
    "mlp_norm.weight": ("post_attention_norm.weight", "ffn_norm.weight"),
    "router.weight": ("ffn_gate_inp.weight",),
    "router.bias": ("ffn_gate_inp.bias",),
    "down.bias": ("ffn_down_exps.bias",),
}


@dataclass(frozen=True, slots=True)
class Mxfp4Part:
    """Released blocks U8 [..., K/32, 16] or scales U8 [..., K/32] out of 17-byte blocks [..., K]."""

    raw: Stored
    columns: int
    scales: bool
    paired: bool

    @classmethod
    def of(cls, tensor: GgufTensor, part: str) -> Mxfp4Part:
        columns = tensor.shape[-1]
        stored = _stored(tensor, "U8", (*tensor.shape[:-1], columns // 32 * 17))
        return cls(stored, columns, part == "scales", tensor.kind == MXFP4_OLLAMA)

    @property
    def dtype(self) -> str:
        return "U8"

    @property
    def shape(self) -> tuple[int, ...]:
        groups = (*self.raw.shape[:-1], self.columns // 32)
        return groups if self.scales else (*groups, 16)

    @property
    def rows(self) -> int:
        return self.raw.rows

    @property
    def row_bytes(self) -> int:
        return self.columns // 32 * (1 if self.scales else 16)

    def fill(self, start: int, out: Bytes) -> None:
        raw = np.empty((len(out), self.raw.row_bytes), np.uint8)
        self.raw.fill(start, raw)
        blocks = raw.reshape(len(out), -1, 17)
        if self.scales:
            out[:] = blocks[:, :, 0]
            return
        target = out.reshape(len(out), -1, 16)
        if self.paired:
            target[:] = blocks[:, :, 1:]
            return
        even, odd = blocks[:, :, 1::2], blocks[:, :, 2::2]
        target[:, :, :8] = (even & 0x0F) | (odd << 4)
        target[:, :, 8:] = (even >> 4) | (odd & 0xF0)


@dataclass(frozen=True, slots=True)
class Dequantised:
    """A tensor of one of ggml's quantised types as F32 rows, by the gguf package."""

    raw: Stored
    kind: int
    columns: int

    @property
    def dtype(self) -> str:
        return "F32"

    @property
    def shape(self) -> tuple[int, ...]:
        return (*self.raw.shape[:-1], self.columns)

    @property
    def rows(self) -> int:
        return self.raw.rows

    @property
    def row_bytes(self) -> int:
        return 4 * self.columns

    def fill(self, start: int, out: Bytes) -> None:
        from gguf.constants import GGMLQuantizationType
        from gguf.quants import dequantize

        raw = np.empty((len(out), self.raw.row_bytes), np.uint8)
        self.raw.fill(start, raw)
        out.view(np.float32)[:] = dequantize(raw, GGMLQuantizationType(self.kind))


def _stored(tensor: GgufTensor, dtype: str, shape: tuple[int, ...]) -> Stored:
    return Stored.of(Entry(tensor.name, dtype, shape, tensor.file, tensor.offset, tensor.nbytes))


def _rows(tensor: GgufTensor) -> Rows:
    if tensor.kind in PLAIN:
        return _stored(tensor, PLAIN[tensor.kind], tensor.shape)
    values, size = block_size(tensor.kind) or (1, 1)
    raw = _stored(tensor, "U8", (*tensor.shape[:-1], tensor.shape[-1] // values * size))
    if tensor.kind == MXFP4_OLLAMA:
        raise CheckpointError("a tensor is MXFP4 where gpt-oss has none", got=tensor.name, where=str(tensor.file.path))
    if not can_dequantise(tensor.kind):
        raise CheckpointError(
            "a tensor's type cannot be dequantised",
            got=f"{tensor.name}, ggml type {tensor.kind}",
            where=str(tensor.file.path),
        )
    return Dequantised(raw, tensor.kind, tensor.shape[-1])


def can_dequantise(kind: int) -> bool:
    """Whether the gguf package turns blocks of type `kind` into numbers (tried on one block of zeros)."""
    from gguf.constants import GGMLQuantizationType
    from gguf.quants import dequantize

    _, size = block_size(kind) or (1, 1)
    try:
        dequantize(np.zeros((1, size), np.uint8), GGMLQuantizationType(kind))
    except (NotImplementedError, ValueError, KeyError):  # what the package raises for types that it does not know
        return False
    return True


def open_gguf(path: Path) -> Source:
    """A GGUF file (or the first of a split set) of a gpt-oss model. Raises CheckpointError or ConfigError."""
    files: list[SourceFile] = []
    try:
        parts = _open_parts(path, files)
        return _source(path, parts, files)
    except BaseException:
        for file in files:
            file.close()
        raise


def _open_parts(path: Path, files: list[SourceFile]) -> list[GgufFile]:
    files.append(SourceFile(path))
    first = read_gguf(files[0])
    count = first.metadata.get("split.count", 1)
    if not isinstance(count, int) or count <= 1:
        return [first]
    match = _SPLIT.fullmatch(path.name)
    if match is None or int(match["count"]) != count or count > _SPLIT_LIMIT:
        raise CheckpointError(
            "this is one part of a split GGUF under another name",
            expected=f"NAME-00001-of-{min(count, 99999):05d}.gguf",
            got=path.name,
            where=str(path),
        )
    parts = [first] if int(match["index"]) == 1 else []
    for index in range(1, count + 1):
        name = f"{match['stem']}-{index:05d}-of-{count:05d}.gguf"
        if name == path.name:
            if not parts or parts[-1] is not first:
                parts.append(first)
            continue
        files.append(SourceFile(path.with_name(name)))
        parts.append(read_gguf(files[-1]))
    return parts


def _source(path: Path, parts: Sequence[GgufFile], files: list[SourceFile]) -> Source:
    tensors: dict[str, GgufTensor] = {}
    for part in parts:
        for name, tensor in part.tensors.items():
            if name in tensors:
                raise CheckpointError("a tensor is in two parts", got=name[:120], where=str(path))
            tensors[name] = tensor
    reader = _Reader(parts[0].metadata, tensors, str(path))
    config = reader.config()
    reader.read(config)
    return Source(
        kind="gguf",
        path=path,
        config=config,
        config_json=(json.dumps(config.to_dict(), indent=2) + "\n").encode(),
        tensors=reader.out,
        files=tuple(files),
        fingerprint=fingerprint(files, [p.header for p in parts]),
        ignored=tuple(sorted(set(tensors) - reader.used)),
        notes=tuple(reader.notes),
    )


@dataclass(slots=True)
class _Reader:
    metadata: Mapping[str, Value]
    tensors: Mapping[str, GgufTensor]
    where: str
    out: dict[str, Rows] = field(default_factory=dict)
    used: set[str] = field(default_factory=set)
    notes: list[str] = field(default_factory=list)

    def config(self) -> ModelConfig:
        arch = self.metadata.get("general.architecture")
        if arch not in ARCHITECTURES:
            raise CheckpointError(
                "this GGUF is not a gpt-oss model",
                expected=" or ".join(ARCHITECTURES),
                got=repr(arch)[:60],
                where=self.where,
            )

        def get(key: str, default: Value | None = None) -> Value | None:
            value = self.metadata.get(f"{arch}.{key}", default)
            # Numbers are stored as float32: 1e-5 comes back as 9.999999747378752e-06.
            return float(str(np.float32(value))) if isinstance(value, float) else value

        data: dict[str, object] = {
            "model_type": "gpt_oss",
            "num_hidden_layers": get("block_count"),
            "hidden_size": get("embedding_length"),
            "intermediate_size": get("expert_feed_forward_length", get("feed_forward_length")),
            "num_local_experts": get("expert_count"),
            "num_experts_per_tok": get("expert_used_count"),
            "num_attention_heads": get("attention.head_count"),
            "num_key_value_heads": get("attention.head_count_kv"),
            "head_dim": get("attention.key_length"),
            "sliding_window": get("attention.sliding_window"),
            "vocab_size": self._get("token_embd.weight").shape[0],
            "rms_norm_eps": get("attention.layer_norm_rms_epsilon"),
            "rope_theta": get("rope.freq_base"),
            "max_position_embeddings": get("context_length"),
            "swiglu_limit": 7.0,
        }
        factor = get("rope.scaling.factor")
        kind = get("rope.scaling.type", "yarn" if factor is not None else "none")
        if kind == "yarn":
            data["rope_scaling"] = {
                "rope_type": "yarn",
                "factor": factor,
                "original_max_position_embeddings": get("rope.scaling.original_context_length"),
                "beta_fast": get("rope.scaling.yarn_beta_fast", 32.0),
                "beta_slow": get("rope.scaling.yarn_beta_slow", 1.0),
                "truncate": False,
            }
        else:
            data["rope_scaling"] = {"rope_type": "default" if kind == "none" else str(kind)[:40]}
        return ModelConfig.from_dict(data, self.where)

    def _get(self, *names: str) -> GgufTensor:
        for name in names:
            if name in self.tensors:
                self.used.add(name)
                return self.tensors[name]
        raise CheckpointError("a tensor is missing from the source", expected=" or ".join(names), where=self.where)

    def _has(self, name: str) -> bool:
        return name in self.tensors

    def read(self, config: ModelConfig) -> None:
        self.out["embed.weight"] = self._plain("token_embd.weight")
        self.out["norm.weight"] = self._plain("output_norm.weight")
        self.out["head.weight"] = self._plain("output.weight", "token_embd.weight")
        for index in range(config.num_layers):
            base = f"blk.{index}."
            for ours, theirs in _LAYER.items():
                self.out[layer(index, ours)] = self._plain(*(base + name for name in theirs))
            for kind in ("weight", "bias"):
                self.out[layer(index, f"qkv.{kind}")] = self._qkv(base, kind)
            self._experts(index, base)

    def _plain(self, *names: str) -> Rows:
        tensor = self._get(*names)
        if tensor.kind not in PLAIN:
            self.notes.append(f"{tensor.name} is quantised in the source (ggml type {tensor.kind})")
        return _rows(tensor)

    def _qkv(self, base: str, kind: str) -> Rows:
        if self._has(f"{base}attn_qkv.{kind}"):
            return self._plain(f"{base}attn_qkv.{kind}")
        names = [f"{base}attn_{p}.{kind}" for p in "qkv"]
        return Concatenated.of([self._plain(n) for n in names], names)

    def _experts(self, index: int, base: str) -> None:
        down = self._get(f"{base}ffn_down_exps.weight")
        if self._has(f"{base}ffn_gate_up_exps.weight"):
            fused = [self._get(f"{base}ffn_gate_up_exps.weight")]
            self.out[layer(index, "gate_up.bias")] = self._plain(f"{base}ffn_gate_up_exps.bias")
        else:
            fused = [self._get(f"{base}ffn_{p}_exps.weight") for p in ("gate", "up")]
            bias = [self._plain(f"{base}ffn_{p}_exps.bias") for p in ("gate", "up")]
            self.out[layer(index, "gate_up.bias")] = interleave_columns(bias[0], bias[1], base)
        for name, tensors in (("gate_up", fused), ("down", [down])):
            if all(t.kind in _MXFP4 for t in tensors):
                for part in ("blocks", "scales"):
                    self.out[layer(index, f"{name}.{part}")] = _joined([Mxfp4Part.of(t, part) for t in tensors], base)
            else:
                self.notes.append(f"{base}{name} experts are not MXFP4 in the source (ggml type {tensors[0].kind})")
                self.out[layer(index, f"{name}.weight")] = _joined([_rows(t) for t in tensors], base)


def _joined(parts: Sequence[Rows], where: str) -> Rows:
    return parts[0] if len(parts) == 1 else interleave_rows(parts[0], parts[1], where)
