"""Writes a full-shape gpt-oss checkpoint of random weights, in the released Hugging Face layout.

    python -m benchmarks.make_synthetic /data/synthetic-20b --shape 20b
    python -m benchmarks.make_synthetic /data/synthetic-120b-2 --shape 120b --layers 2

For measuring conversion, loading, memory and speed without a download. Values are drawn once into small pools that
tensors repeat at different phases: 13 GB take as long as the disk needs. Scales are those of a freshly initialised
model, so activations stay finite; what it says is noise.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from mlx_gptoss.config import ModelConfig, YarnConfig
from mlx_gptoss.errors import GptOssError, InsufficientDiskError

SHARD_BYTES: Final = 5_000_000_000
POOL_BYTES: Final = 2 * 16_777_213
"""Not a multiple of any row length, so that a pool's copies never line up."""

LAYERS: Final = {"20b": 24, "120b": 36}
EXPERTS: Final = {"20b": 32, "120b": 128}
FP4_RMS: Final = 2.93
E8M0_BIAS: Final = 127


@dataclass(frozen=True, slots=True)
class Plan:
    """One tensor to write: `std` and `mean` for BF16; U8 tensors are MXFP4 codes, or scales around `exponent`."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    std: float = 0.0
    mean: float = 0.0
    exponent: int | None = None

    @property
    def nbytes(self) -> int:
        """Bytes in the file."""
        size = 2 if self.dtype == "BF16" else 1
        for extent in self.shape:
            size *= extent
        return size


def released_config(shape: str, layers: int | None) -> ModelConfig:
    """The config of gpt-oss-20b or -120b, optionally with fewer (or more) layers."""
    count = LAYERS[shape] if layers is None else layers
    config = ModelConfig(
        num_layers=count,
        hidden_size=2880,
        intermediate_size=2880,
        num_experts=EXPERTS[shape],
        experts_per_token=4,
        num_heads=64,
        num_kv_heads=8,
        head_dim=64,
        sliding_window=128,
        layer_types=tuple("full_attention" if layer % 2 else "sliding_attention" for layer in range(count)),
        vocab_size=201_088,
        rope_theta=150_000.0,
        yarn=YarnConfig(32.0, 4096, 32.0, 1.0, truncate=False),
        max_position_embeddings=131_072,
    )
    return ModelConfig.from_dict(config.to_dict(), "make_synthetic")


def plan_tensors(config: ModelConfig) -> Iterator[Plan]:
    """Every tensor under its released name, in the order written."""
    hidden, inner, experts = config.hidden_size, config.intermediate_size, config.num_experts
    fan_in = hidden**-0.5

    def bf16(name: str, *shape: int, std: float, mean: float = 0.0) -> Plan:
        return Plan(name, "BF16", shape, std, mean)

    yield bf16("model.embed_tokens.weight", config.vocab_size, hidden, std=1.0)
    for layer in range(config.num_layers):
        prefix = f"model.layers.{layer}."
        yield bf16(f"{prefix}input_layernorm.weight", hidden, std=0.1, mean=1.0)
        for name, rows in (("q", config.q_size), ("k", config.kv_size), ("v", config.kv_size)):
            yield bf16(f"{prefix}self_attn.{name}_proj.weight", rows, hidden, std=fan_in)
            yield bf16(f"{prefix}self_attn.{name}_proj.bias", rows, std=0.1)
        yield bf16(f"{prefix}self_attn.sinks", config.num_heads, std=1.0, mean=1.0)
        yield bf16(f"{prefix}self_attn.o_proj.weight", hidden, config.q_size, std=config.q_size**-0.5)
        yield bf16(f"{prefix}self_attn.o_proj.bias", hidden, std=0.1)
        yield bf16(f"{prefix}post_attention_layernorm.weight", hidden, std=0.1, mean=1.0)
        yield bf16(f"{prefix}mlp.router.weight", experts, hidden, std=fan_in)
        yield bf16(f"{prefix}mlp.router.bias", experts, std=0.1)
        for name, rows, columns in (("gate_up_proj", 2 * inner, hidden), ("down_proj", hidden, inner)):
            base = f"{prefix}mlp.experts.{name}"
            exponent = round(float(np.log2(columns**-0.5 / FP4_RMS)))
            yield Plan(f"{base}_blocks", "U8", (experts, rows, columns // 32, 16))
            yield Plan(f"{base}_scales", "U8", (experts, rows, columns // 32), exponent=exponent)
            yield bf16(f"{base}_bias", experts, rows, std=0.1)
    yield bf16("model.norm.weight", hidden, std=0.1, mean=1.0)
    yield bf16("lm_head.weight", config.vocab_size, hidden, std=2.0 * fan_in)


class Pools:
    """Random bytes to cut tensors from, one pool for each distribution."""

    def __init__(self, seed: int) -> None:
        self._rng = np.random.default_rng(seed)
        self._pools: dict[tuple[str, float, float, int | None], npt.NDArray[np.uint8]] = {}
        self._normal = self._rng.standard_normal(POOL_BYTES // 2, dtype=np.float32)

    def chunks(self, plan: Plan) -> Iterator[memoryview]:
        """The bytes of one tensor, in pieces of at most a pool."""
        pool = self._pool(plan)
        item = 2 if plan.dtype == "BF16" else 1
        start = int(self._rng.integers(0, pool.size // item)) * item
        left = plan.nbytes
        while left:
            piece = pool[start : start + left]
            yield piece.data
            left -= piece.size
            start = 0

    def _pool(self, plan: Plan) -> npt.NDArray[np.uint8]:
        key = (plan.dtype, plan.std, plan.mean, plan.exponent)
        if key not in self._pools:
            self._pools[key] = self._draw(plan)
        return self._pools[key]

    def _draw(self, plan: Plan) -> npt.NDArray[np.uint8]:
        if plan.dtype == "BF16":
            bits = (self._normal * plan.std + plan.mean).astype(np.float32).view(np.uint32)
            return ((bits + 0x8000) >> 16).astype(np.uint16).view(np.uint8)
        if plan.exponent is None:
            return np.frombuffer(self._rng.bytes(POOL_BYTES), dtype=np.uint8)
        middle = E8M0_BIAS + plan.exponent
        return self._rng.integers(middle - 1, middle + 2, POOL_BYTES, dtype=np.uint8)


def write_checkpoint(target: Path, config: ModelConfig, seed: int) -> int:
    """Writes the whole checkpoint; returns its bytes. Raises InsufficientDiskError before writing anything."""
    plans = list(plan_tensors(config))
    total = sum(plan.nbytes for plan in plans)
    target.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(target).free
    if free < total * 1.01:
        raise InsufficientDiskError(
            "not enough disk", expected=f"{total / 1e9:.1f} GB", got=f"{free / 1e9:.1f} GB free", where=str(target)
        )
    shards: list[list[Plan]] = [[]]
    for plan in plans:
        if sum(other.nbytes for other in shards[-1]) + plan.nbytes > SHARD_BYTES and shards[-1]:
            shards.append([])
        shards[-1].append(plan)
    pools = Pools(seed)
    weight_map: dict[str, str] = {}
    for number, shard in enumerate(shards, start=1):
        name = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        _write_shard(target / name, shard, pools)
        weight_map |= {plan.name: name for plan in shard}
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (target / "model.safetensors.index.json").write_text(json.dumps(index, indent=2))
    data = config.to_dict() | {"quantization_config": {"quant_method": "mxfp4"}}
    (target / "config.json").write_text(json.dumps(data, indent=2))
    return total


def _write_shard(path: Path, plans: list[Plan], pools: Pools) -> None:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for plan in plans:
        end = offset + plan.nbytes
        header[plan.name] = {"dtype": plan.dtype, "shape": list(plan.shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb", buffering=0) as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for plan in plans:
            for chunk in pools.chunks(plan):
                while chunk:
                    chunk = chunk[file.write(chunk) or 0 :]


def main(argv: list[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("target", type=Path, help="folder to write")
    parser.add_argument("--shape", choices=sorted(LAYERS), default="20b")
    parser.add_argument("--layers", type=int, default=None, help="number of layers (default: the released one's)")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(argv)
    started = time.perf_counter()
    try:
        total = write_checkpoint(options.target, released_config(options.shape, options.layers), options.seed)
    except GptOssError as error:
        print(f"make_synthetic: {error}", file=sys.stderr)
        return 1
    seconds = time.perf_counter() - started
    print(f"{total / 1e9:.2f} GB in {seconds:.1f} s ({total / 1e9 / seconds:.2f} GB/s) at {options.target}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
