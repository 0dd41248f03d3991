"""Writes tiny gpt-oss GGUF files with the gguf package's own writer, in llama.cpp's layout and in Ollama's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt

from mlx_gptoss.config import ModelConfig
from tests.tiny import Tensor, folder_tensors

LLAMA_NAMES = {
    "attn_norm.weight": "attn_norm.weight",
    "sinks": "attn_sinks.weight",
    "out.weight": "attn_output.weight",
    "out.bias": "attn_output.bias",
    "mlp_norm.weight": "post_attention_norm.weight",
    "router.weight": "ffn_gate_inp.weight",
    "router.bias": "ffn_gate_inp.bias",
}
OLLAMA_NAMES = LLAMA_NAMES | {
    "sinks": "attn_sinks",
    "out.weight": "attn_out.weight",
    "out.bias": "attn_out.bias",
    "mlp_norm.weight": "ffn_norm.weight",
    "qkv.weight": "attn_qkv.weight",
    "qkv.bias": "attn_qkv.bias",
}


def ggml_blocks(blocks: npt.NDArray[np.uint8], scales: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Released MXFP4 [..., G, 16] and [..., G] as ggml's 17-byte blocks [..., G * 17]."""
    codes = np.stack([blocks & 15, blocks >> 4], axis=-1).reshape(*blocks.shape[:-1], 32)
    packed = codes[..., :16] | (codes[..., 16:] << 4)
    return np.concatenate([scales[..., None], packed], axis=-1).reshape(*scales.shape[:-1], -1).astype(np.uint8)


def write_metadata(writer: gguf.GGUFWriter, config: ModelConfig, arch: str) -> None:
    assert config.yarn is not None
    writer.add_block_count(config.num_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_expert_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_heads)
    writer.add_head_count_kv(config.num_kv_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_theta)
    writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
    writer.add_rope_scaling_factor(config.yarn.factor)
    writer.add_rope_scaling_orig_ctx_len(config.yarn.original_max_position_embeddings)
    writer.add_sliding_window(config.sliding_window)
    writer.add_expert_count(config.num_experts)
    writer.add_expert_used_count(config.experts_per_token)
    writer.add_token_list([f"token {i}" for i in range(config.vocab_size)])


def write_gguf(
    path: Path,
    config: ModelConfig,
    seed: int = 0,
    *,
    ollama: bool = False,
    matrices: str = "BF16",
    experts: str = "MXFP4",
    arch: str | None = None,
) -> Path:
    """A GGUF with MXFP4 experts; `matrices` is the ggml type of attention, embedding and head."""
    name = arch or ("gptoss" if ollama else "gpt-oss")
    writer = gguf.GGUFWriter(path, name)
    write_metadata(writer, config, name)
    tensors = folder_tensors(config, seed)

    def plain(target: str, tensor: Tensor) -> None:
        values = tensor.to_float()
        kind = gguf.GGMLQuantizationType[matrices if values.ndim == 2 and "bias" not in target else "F32"]
        if "ffn_gate_inp" in target:
            kind = gguf.GGMLQuantizationType.F32
        data: Any = gguf.quants.quantize(values, kind)
        writer.add_tensor(target, data, raw_dtype=kind)

    def mxfp4(target: str, blocks: npt.NDArray[np.uint8], scales: npt.NDArray[np.uint8]) -> None:
        if experts != "MXFP4":
            kind = gguf.GGMLQuantizationType[experts]
            raw = ggml_blocks(blocks, scales)
            values = gguf.quants.dequantize(raw, gguf.GGMLQuantizationType.MXFP4)
            writer.add_tensor(target, gguf.quants.quantize(values, kind), raw_dtype=kind)
            return
        writer.add_tensor(target, ggml_blocks(blocks, scales), raw_dtype=gguf.GGMLQuantizationType.MXFP4)

    plain("token_embd.weight", tensors["embed.weight"])
    plain("output_norm.weight", tensors["norm.weight"])
    plain("output.weight", tensors["head.weight"])
    names = OLLAMA_NAMES if ollama else LLAMA_NAMES
    sizes = np.cumsum([config.q_size, config.kv_size])
    for index in range(config.num_layers):
        ours, theirs = f"layers.{index}.", f"blk.{index}."
        for part, target in names.items():
            plain(theirs + target, tensors[ours + part])
        if not ollama:
            for kind in ("weight", "bias"):
                for letter, data in zip("qkv", np.split(tensors[f"{ours}qkv.{kind}"].data, sizes), strict=True):
                    plain(f"{theirs}attn_{letter}.{kind}", Tensor("BF16", data))
        gate_up = [tensors[f"{ours}gate_up.{p}"].data for p in ("blocks", "scales", "bias")]
        if ollama:
            mxfp4(f"{theirs}ffn_gate_up_exps.weight", gate_up[0], gate_up[1])
            plain(f"{theirs}ffn_gate_up_exps.bias", Tensor("BF16", gate_up[2]))
        else:
            for parity, side in enumerate(("gate", "up")):
                blocks, scales, bias = (np.ascontiguousarray(a[:, parity::2]) for a in gate_up)
                mxfp4(f"{theirs}ffn_{side}_exps.weight", blocks, scales)
                plain(f"{theirs}ffn_{side}_exps.bias", Tensor("BF16", bias))
        mxfp4(f"{theirs}ffn_down_exps.weight", tensors[f"{ours}down.blocks"].data, tensors[f"{ours}down.scales"].data)
        plain(f"{theirs}ffn_down_exps.bias", tensors[f"{ours}down.bias"])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
