"""OpenAI's original layout, written here under the names of the released `original/` folders."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mlx_gptoss.config import ModelConfig
from mlx_gptoss.convert import convert
from mlx_gptoss.errors import CheckpointError
from mlx_gptoss.folder import read_manifest
from tests.convert.support import assert_same, read_folder
from tests.tiny import Tensor, folder_tensors, tiny_config, write_safetensors

LAYER_NAMES = {
    "attn_norm.weight": "attn.norm.scale",
    "qkv.weight": "attn.qkv.weight",
    "qkv.bias": "attn.qkv.bias",
    "sinks": "attn.sinks",
    "out.weight": "attn.out.weight",
    "out.bias": "attn.out.bias",
    "mlp_norm.weight": "mlp.norm.scale",
    "router.weight": "mlp.gate.weight",
    "router.bias": "mlp.gate.bias",
    "gate_up.blocks": "mlp.mlp1_weight.blocks",
    "gate_up.scales": "mlp.mlp1_weight.scales",
    "gate_up.bias": "mlp.mlp1_bias",
    "down.blocks": "mlp.mlp2_weight.blocks",
    "down.scales": "mlp.mlp2_weight.scales",
    "down.bias": "mlp.mlp2_bias",
}
TOP_NAMES = {"embed.weight": "embedding.weight", "norm.weight": "norm.scale", "head.weight": "unembedding.weight"}


def write_original(path: Path, config: ModelConfig, seed: int = 0) -> Path:
    path.mkdir(parents=True)
    tensors: dict[str, Tensor] = {}
    for name, tensor in folder_tensors(config, seed).items():
        if name in TOP_NAMES:
            tensors[TOP_NAMES[name]] = tensor
        else:
            _, index, part = name.split(".", 2)
            tensors[f"block.{index}.{LAYER_NAMES[part]}"] = tensor
    write_safetensors(path / "model.safetensors", tensors)
    assert config.yarn is not None
    original = {
        "num_hidden_layers": config.num_layers,
        "num_experts": config.num_experts,
        "experts_per_token": config.experts_per_token,
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "swiglu_limit": 7.0,
        "head_dim": config.head_dim,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "sliding_window": config.sliding_window,
        "initial_context_length": config.yarn.original_max_position_embeddings,
        "rope_theta": config.rope_theta,
        "rope_scaling_factor": config.yarn.factor,
        "rope_ntk_alpha": config.yarn.beta_slow,
        "rope_ntk_beta": config.yarn.beta_fast,
    }
    (path / "config.json").write_text(json.dumps(original))
    (path / "dtypes.json").write_text("{}")
    return path


def test_every_tensor_is_byte_equal(tmp_path: Path) -> None:
    config = tiny_config()
    convert(write_original(tmp_path / "original", config, 5), tmp_path / "out")
    assert_same(read_folder(tmp_path / "out"), folder_tensors(config, 5))
    assert ModelConfig.from_file(tmp_path / "out") == config
    assert read_manifest(tmp_path / "out").source.kind == "openai"
    assert json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]["quant_method"] == "mxfp4"


def test_missing_config_is_named(tmp_path: Path) -> None:
    source = write_original(tmp_path / "original", tiny_config(num_layers=1))
    (source / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"config\.json"):
        convert(source, tmp_path / "out")
