"""Tiny random gpt-oss models from a seed, for every test: tensors, weights, Hugging Face checkpoints.

Everything derives from `hf_tensors`, numpy alone, so that a seed gives the same numbers on every machine.
bfloat16 is held as its bits (uint16); see `to_bf16_bits` and `from_bf16_bits`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import numpy.typing as npt

from mlx_gptoss import folder
from mlx_gptoss.config import ModelConfig, YarnConfig
from mlx_gptoss.weights import Experts, LayerWeights, Linear, LinearFormat, ModelWeights

FP4_VALUES = np.array(
    [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0], dtype=np.float32
)
E8M0_BIAS = 127
GROUP = 32


@dataclass(frozen=True, slots=True)
class Tensor:
    """A tensor as a safetensors file holds it: `dtype` BF16 (uint16 bits), U8 or F32."""

    dtype: str
    data: npt.NDArray[Any]

    def to_float(self) -> npt.NDArray[np.float32]:
        """The values of a BF16 or F32 tensor as float32."""
        return from_bf16_bits(self.data) if self.dtype == "BF16" else self.data.astype(np.float32)


def to_bf16_bits(values: npt.NDArray[np.float32]) -> npt.NDArray[np.uint16]:
    """float32 to bfloat16 bits, round to nearest even (finite values)."""
    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def from_bf16_bits(bits: npt.NDArray[np.uint16]) -> npt.NDArray[np.float32]:
    """bfloat16 bits to float32, exact."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def dequantize_mxfp4(blocks: npt.NDArray[np.uint8], scales: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """MXFP4 blocks [..., K/32, 16] and scales [..., K/32] to float32 [..., K], by table."""
    codes = np.stack([blocks & 15, blocks >> 4], axis=-1).reshape(*blocks.shape[:-1], GROUP)
    values = FP4_VALUES[codes] * np.exp2(scales.astype(np.float32) - E8M0_BIAS)[..., None]
    return np.asarray(values.reshape(*blocks.shape[:-2], -1), dtype=np.float32)


def tiny_config(**overrides: Any) -> ModelConfig:
    """A valid config small enough for tests: 4 layers, window 16, 5 experts, top-2. `overrides` are field names."""
    fields: dict[str, Any] = {
        "num_layers": 4,
        "hidden_size": 96,
        "intermediate_size": 64,
        "num_experts": 5,
        "experts_per_token": 2,
        "num_heads": 4,
        "num_kv_heads": 2,
        "head_dim": 32,
        "sliding_window": 16,
        "vocab_size": 320,
        "rope_theta": 150_000.0,
        "yarn": YarnConfig(32.0, 4096, 32.0, 1.0, truncate=False),
        "max_position_embeddings": 131_072,
    }
    fields |= overrides
    if "layer_types" not in fields:
        kinds = ("sliding_attention", "full_attention")
        fields["layer_types"] = tuple(kinds[layer % 2] for layer in range(fields["num_layers"]))
    return ModelConfig.from_dict(ModelConfig(**fields).to_dict(), "tiny_config")


def hf_tensors(config: ModelConfig, seed: int = 0, *, dense_experts: bool = False) -> dict[str, Tensor]:
    """All tensors of a random checkpoint under the released Hugging Face names.

    Scales are chosen so that activations stay near 1, attention is peaked and logits spread over several nats.
    `dense_experts` gives `gate_up_proj` [E, H, 2I] and `down_proj` [E, I, H] in BF16, as transformers saves an
    unquantised fine-tune, holding the very values of the MXFP4 ones.
    """
    rng = np.random.default_rng(seed)
    hidden, inner = config.hidden_size, config.intermediate_size

    def normal(*shape: int, std: float, mean: float = 0.0) -> Tensor:
        return Tensor("BF16", to_bf16_bits(rng.standard_normal(shape, dtype=np.float32) * std + mean))

    tensors = {"model.embed_tokens.weight": normal(config.vocab_size, hidden, std=1.0)}
    for layer in range(config.num_layers):
        prefix = f"model.layers.{layer}."
        for name, rows in (("q", config.q_size), ("k", config.kv_size), ("v", config.kv_size)):
            gain = 1.0
            tensors[f"{prefix}self_attn.{name}_proj.weight"] = normal(rows, hidden, std=gain * hidden**-0.5)
            tensors[f"{prefix}self_attn.{name}_proj.bias"] = normal(rows, std=0.3)
        tensors[f"{prefix}self_attn.o_proj.weight"] = normal(hidden, config.q_size, std=0.5 * config.q_size**-0.5)
        tensors[f"{prefix}self_attn.o_proj.bias"] = normal(hidden, std=0.1)
        tensors[f"{prefix}self_attn.sinks"] = normal(config.num_heads, std=1.0, mean=1.0)
        tensors[f"{prefix}input_layernorm.weight"] = normal(hidden, std=0.2, mean=1.0)
        tensors[f"{prefix}post_attention_layernorm.weight"] = normal(hidden, std=0.2, mean=1.0)
        tensors[f"{prefix}mlp.router.weight"] = normal(config.num_experts, hidden, std=2.0 * hidden**-0.5)
        tensors[f"{prefix}mlp.router.bias"] = normal(config.num_experts, std=0.3)
        for name, rows, columns in (("gate_up_proj", 2 * inner, hidden), ("down_proj", hidden, inner)):
            blocks, scales = _mxfp4(rng, config.num_experts, rows, columns)
            if dense_experts:
                values = dequantize_mxfp4(blocks, scales).swapaxes(1, 2)
                tensors[f"{prefix}mlp.experts.{name}"] = Tensor("BF16", to_bf16_bits(values))
            else:
                tensors[f"{prefix}mlp.experts.{name}_blocks"] = Tensor("U8", blocks)
                tensors[f"{prefix}mlp.experts.{name}_scales"] = Tensor("U8", scales)
            tensors[f"{prefix}mlp.experts.{name}_bias"] = normal(config.num_experts, rows, std=0.3)
    tensors["model.norm.weight"] = normal(hidden, std=0.2, mean=1.0)
    tensors["lm_head.weight"] = normal(config.vocab_size, hidden, std=2.0 * hidden**-0.5)
    return tensors


def _mxfp4(
    rng: np.random.Generator, experts: int, rows: int, columns: int
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
    blocks = rng.integers(0, 256, (experts, rows, columns // GROUP, GROUP // 2), dtype=np.uint8)
    middle = E8M0_BIAS + round(float(np.log2(0.5 * columns**-0.5 / 2.93)))
    scales = (middle + rng.integers(-1, 2, (experts, rows, columns // GROUP))).astype(np.uint8)
    return blocks, scales


def folder_tensors(config: ModelConfig, seed: int = 0, *, dense_experts: bool = False) -> dict[str, Tensor]:
    """The same model under the names and layouts of a model folder: fused QKV, dense experts as [E, N, K]."""
    hf = hf_tensors(config, seed, dense_experts=dense_experts)
    tensors = {
        "embed.weight": hf["model.embed_tokens.weight"],
        "norm.weight": hf["model.norm.weight"],
        "head.weight": hf["lm_head.weight"],
    }
    for layer in range(config.num_layers):
        source, target = f"model.layers.{layer}.", f"layers.{layer}."
        for kind in ("weight", "bias"):
            parts = [hf[f"{source}self_attn.{name}_proj.{kind}"].data for name in "qkv"]
            tensors[f"{target}qkv.{kind}"] = Tensor("BF16", np.concatenate(parts))
            tensors[f"{target}out.{kind}"] = hf[f"{source}self_attn.o_proj.{kind}"]
            tensors[f"{target}router.{kind}"] = hf[f"{source}mlp.router.{kind}"]
        tensors[f"{target}sinks"] = hf[f"{source}self_attn.sinks"]
        tensors[f"{target}attn_norm.weight"] = hf[f"{source}input_layernorm.weight"]
        tensors[f"{target}mlp_norm.weight"] = hf[f"{source}post_attention_layernorm.weight"]
        for ours, theirs in (("gate_up", "gate_up_proj"), ("down", "down_proj")):
            prefix = f"{source}mlp.experts.{theirs}"
            tensors[f"{target}{ours}.bias"] = hf[f"{prefix}_bias"]
            if dense_experts:
                dense = np.ascontiguousarray(hf[prefix].data.swapaxes(1, 2))
                tensors[f"{target}{ours}.weight"] = Tensor("BF16", dense)
            else:
                tensors[f"{target}{ours}.blocks"] = hf[f"{prefix}_blocks"]
                tensors[f"{target}{ours}.scales"] = hf[f"{prefix}_scales"]
    return tensors


def random_weights(
    config: ModelConfig, seed: int = 0, *, dtype: mx.Dtype = mx.bfloat16, dense_experts: bool = False
) -> ModelWeights:
    """The same model as the records that GptOssModel takes, dense arrays in `dtype`."""
    tensors = folder_tensors(config, seed, dense_experts=dense_experts)

    def dense(name: str) -> mx.array:
        return mx.array(tensors[name].data).view(mx.bfloat16).astype(dtype)

    def linear(name: str, *, bias: bool = True) -> Linear:
        return Linear(
            dense(f"{name}.weight"),
            dense(f"{name}.bias") if bias else None,
            format="bf16" if dtype == mx.bfloat16 else "f32",
        )

    def experts(name: str) -> Experts:
        bias = dense(f"{name}.bias")
        if dense_experts:
            return Experts(bias, weight=dense(f"{name}.weight"))
        blocks = tensors[f"{name}.blocks"].data
        words = mx.array(blocks.reshape(*blocks.shape[:2], -1)).view(mx.uint32)
        return Experts(bias, blocks=words, scales=mx.array(tensors[f"{name}.scales"].data))

    layers = tuple(
        LayerWeights(
            attn_norm=dense(f"{prefix}.attn_norm.weight"),
            qkv=linear(f"{prefix}.qkv"),
            sinks=dense(f"{prefix}.sinks"),
            out=linear(f"{prefix}.out"),
            mlp_norm=dense(f"{prefix}.mlp_norm.weight"),
            router=linear(f"{prefix}.router"),
            gate_up=experts(f"{prefix}.gate_up"),
            down=experts(f"{prefix}.down"),
        )
        for prefix in (f"layers.{layer}" for layer in range(config.num_layers))
    )
    return ModelWeights(linear("embed", bias=False), layers, dense("norm.weight"), linear("head", bias=False))


def quantize_linear(linear: Linear, fmt: LinearFormat, group_size: int = 64) -> Linear:
    """A dense matrix in a quantised format, by mx.quantize (`fmt` mxfp8, q8, q6 or q4)."""
    eight = fmt == "mxfp8"
    group_size = GROUP if eight else group_size
    bits = 8 if eight else int(fmt[1:])
    parts: list[mx.array] = list(
        mx.quantize(linear.weight, group_size=group_size, bits=bits, mode="mxfp8" if eight else "affine")
    )
    biases = None if eight else parts[2]
    return Linear(parts[0], linear.bias, parts[1], biases, fmt, group_size)


def write_safetensors(path: Path, tensors: Mapping[str, Tensor], *, align: int = 8) -> None:
    """Writes a safetensors file, tensors in the given order, data starting at a multiple of `align` bytes."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, tensor in tensors.items():
        end = offset + tensor.data.nbytes
        header[name] = {"dtype": tensor.dtype, "shape": list(tensor.data.shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header).encode()
    text += b" " * (-(len(text) + 8) % align)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little"))
        file.write(text)
        for tensor in tensors.values():
            file.write(np.ascontiguousarray(tensor.data).tobytes())


def write_hf_checkpoint(
    path: Path, config: ModelConfig, seed: int = 0, *, shards: int = 2, dense_experts: bool = False
) -> Path:
    """Writes a checkpoint in the released Hugging Face layout (config, shards, index) and returns its folder."""
    tensors = hf_tensors(config, seed, dense_experts=dense_experts)
    write_hf_folder(path, config, tensors, shards=shards, quantized=not dense_experts)
    return path


def write_hf_folder(
    path: Path, config: ModelConfig, tensors: Mapping[str, Tensor], *, shards: int = 2, quantized: bool = True
) -> None:
    """Writes given tensors as a sharded Hugging Face folder."""
    path.mkdir(parents=True, exist_ok=True)
    data = config.to_dict()
    if quantized:
        data["quantization_config"] = {"quant_method": "mxfp4"}
    (path / "config.json").write_text(json.dumps(data, indent=2))
    names = list(tensors)
    weight_map: dict[str, str] = {}
    for shard, group in enumerate(_split(names, shards), start=1):
        file = f"model-{shard:05d}-of-{shards:05d}.safetensors"
        write_safetensors(path / file, {name: tensors[name] for name in group})
        weight_map |= dict.fromkeys(group, file)
    total = sum(tensor.data.nbytes for tensor in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (path / "model.safetensors.index.json").write_text(json.dumps(index, indent=2))


def _split(names: list[str], parts: int) -> Iterable[list[str]]:
    for part in range(parts):
        yield names[len(names) * part // parts : len(names) * (part + 1) // parts]


def write_model_folder(
    path: Path,
    config: ModelConfig,
    seed: int = 0,
    *,
    shards: int = 2,
    dense_experts: bool = False,
    formats: Mapping[str, LinearFormat] | None = None,
) -> Path:
    """Writes a model folder as the converter would, and returns it.

    `formats` gives the precision of embed, head, qkv and out (the latter two in every layer).
    """
    stored: dict[str, folder.LinearFormat] = {}
    tensors: dict[str, Tensor] = {}
    for name, tensor in folder_tensors(config, seed, dense_experts=dense_experts).items():
        matrix, _, part = name.rpartition(".")
        fmt = (formats or {}).get(matrix.rpartition(".")[2], "bf16")
        if part == "weight" and fmt not in ("bf16", "f32"):
            linear = quantize_linear(Linear(mx.array(tensor.data).view(mx.bfloat16)), fmt, GROUP)
            stored[matrix] = folder.LinearFormat(fmt, linear.group_size)
            for field in ("weight", "scales", "biases"):
                array = getattr(linear, field)
                if array is not None:
                    tensors[f"{matrix}.{field}"] = _from_mlx(array)
        else:
            tensors[name] = tensor
        if part == "blocks":
            stored[matrix] = folder.LinearFormat("mxfp4", GROUP)
        elif dense_experts and part == "weight" and matrix.endswith((".gate_up", ".down")):
            stored[matrix] = folder.LinearFormat("bf16")
    path.mkdir(parents=True, exist_ok=True)
    text = json.dumps(config.to_dict(), indent=2)
    (path / folder.CONFIG_NAME).write_text(text)
    records: list[folder.TensorRecord] = []
    files: dict[str, int] = {}
    for shard, group in enumerate(_split(list(tensors), shards)):
        file = folder.shard_name(shard, shards)
        records += _write_paged(path / file, {name: tensors[name] for name in group}, pads=len(files) * 10_000)
        files[file] = (path / file).stat().st_size
    manifest = folder.Manifest(
        version=folder.FORMAT_VERSION,
        source=folder.SourceRecord("test", "tests.tiny", None, str(seed)),
        precision={},
        formats=stored,
        files=files,
        tensors=tuple(records),
        config_sha256=hashlib.sha256(text.encode()).hexdigest(),
    )
    (path / folder.MANIFEST_NAME).write_text(manifest.to_json())
    return path


def _from_mlx(array: mx.array) -> Tensor:
    if array.dtype == mx.bfloat16:
        return Tensor("BF16", np.array(array.view(mx.uint16)))
    return Tensor({mx.uint8: "U8", mx.uint32: "U32", mx.float32: "F32"}[array.dtype], np.array(array))


def _write_paged(path: Path, tensors: Mapping[str, Tensor], pads: int) -> list[folder.TensorRecord]:
    """A safetensors file whose tensors start on pages, `__pad__` tensors in between."""
    padded: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        padded[name] = tensor
        gap = folder.align(tensor.data.nbytes) - tensor.data.nbytes
        if gap:
            padded[f"{folder.PAD_PREFIX}{pads + len(padded)}"] = Tensor("U8", np.zeros(gap, np.uint8))
    write_safetensors(path, padded, align=folder.PAGE_BYTES)
    length = int.from_bytes(path.read_bytes()[:8], "little")
    offset, records = 8 + length, []
    for name, tensor in padded.items():
        if name in tensors:
            digest = hashlib.sha256(tensor.data.tobytes()).hexdigest()
            record = (name, tensor.dtype, tensor.data.shape, path.name, offset, tensor.data.nbytes, digest)
            records.append(folder.TensorRecord(*record))
        offset += tensor.data.nbytes
    return records
