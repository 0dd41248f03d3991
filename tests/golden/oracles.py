"""Logits of other people's implementations, in float32, for the same random weights.

Needs what the tests themselves do not: torch with transformers, and for OpenAI's reference the extracted `gpt-oss`
wheel on sys.path.
"""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import numpy as np
import numpy.typing as npt

from mlx_gptoss.config import ModelConfig
from tests.tiny import Tensor, folder_tensors, hf_tensors

Logits = npt.NDArray[np.float32]


def _torch(tensor: Tensor) -> Any:
    import torch

    return torch.from_numpy(np.ascontiguousarray(tensor.to_float()))


def transformers_logits(
    config: ModelConfig, seed: int, ids: npt.NDArray[np.int64], *, bfloat16: bool = False
) -> Logits:
    """Hugging Face's GptOssForCausalLM, eager, float32 unless asked otherwise: ids [L] to [L, vocab]."""
    import torch
    from transformers import GptOssConfig, GptOssForCausalLM

    settings = GptOssConfig(**(config.to_dict() | {"eos_token_id": None}))
    settings._attn_implementation = "eager"
    settings._experts_implementation = "eager"
    model = GptOssForCausalLM(settings).to(torch.bfloat16 if bfloat16 else torch.float32).eval()
    state = {name: _torch(tensor) for name, tensor in hf_tensors(config, seed, dense_experts=True).items()}
    model.load_state_dict(state, strict=True)
    with torch.no_grad():
        logits = model(input_ids=torch.from_numpy(ids)[None], use_cache=False).logits[0].float()
    return np.asarray(logits.numpy(), dtype=np.float32)


def openai_logits(config: ModelConfig, seed: int, ids: npt.NDArray[np.int64]) -> Logits:
    """OpenAI's torch reference cast to float32: ids [L] to [L, vocab]."""
    import torch
    from gpt_oss.torch import model as reference

    yarn = config.yarn
    if yarn is None:
        raise ValueError("OpenAI's reference is compared with YaRN only")
    settings = reference.ModelConfig(
        num_hidden_layers=config.num_layers,
        num_experts=config.num_experts,
        experts_per_token=config.experts_per_token,
        vocab_size=config.vocab_size,
        hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size,
        swiglu_limit=config.swiglu_limit,
        head_dim=config.head_dim,
        num_attention_heads=config.num_heads,
        num_key_value_heads=config.num_kv_heads,
        sliding_window=config.sliding_window,
        initial_context_length=yarn.original_max_position_embeddings,
        rope_theta=config.rope_theta,
        rope_scaling_factor=yarn.factor,
        rope_ntk_alpha=yarn.beta_slow,
        rope_ntk_beta=yarn.beta_fast,
    )
    model = reference.Transformer(settings).to(torch.float32).eval()
    ours = folder_tensors(config, seed, dense_experts=True)
    names = {"embedding.weight": "embed.weight", "norm.scale": "norm.weight", "unembedding.weight": "head.weight"}
    for layer in range(config.num_layers):
        theirs, mine = f"block.{layer}.", f"layers.{layer}."
        names |= {
            f"{theirs}attn.sinks": f"{mine}sinks",
            f"{theirs}attn.norm.scale": f"{mine}attn_norm.weight",
            f"{theirs}attn.qkv.weight": f"{mine}qkv.weight",
            f"{theirs}attn.qkv.bias": f"{mine}qkv.bias",
            f"{theirs}attn.out.weight": f"{mine}out.weight",
            f"{theirs}attn.out.bias": f"{mine}out.bias",
            f"{theirs}mlp.norm.scale": f"{mine}mlp_norm.weight",
            f"{theirs}mlp.gate.weight": f"{mine}router.weight",
            f"{theirs}mlp.gate.bias": f"{mine}router.bias",
            f"{theirs}mlp.mlp1_weight": f"{mine}gate_up.weight",
            f"{theirs}mlp.mlp1_bias": f"{mine}gate_up.bias",
            f"{theirs}mlp.mlp2_weight": f"{mine}down.weight",
            f"{theirs}mlp.mlp2_bias": f"{mine}down.bias",
        }
    model.load_state_dict({theirs: _torch(ours[mine]) for theirs, mine in names.items()}, strict=True)
    with torch.no_grad():
        logits = model(torch.from_numpy(ids))
    return np.asarray(logits.numpy(), dtype=np.float32)


def mlx_lm_logits(config: ModelConfig, seed: int, ids: npt.NDArray[np.int64], dtype: mx.Dtype) -> Logits:
    """mlx-lm's gpt_oss, whole prompt at once, MXFP4 experts as it loads them: ids [L] to [L, vocab]."""
    from mlx.nn.layers.base import Module
    from mlx.nn.layers.quantized import quantize
    from mlx_lm.models.gpt_oss import Model, ModelArgs

    settings = config.to_dict()
    fields = {key: settings[key] for key in ModelArgs.__dataclass_fields__ if key in settings}
    model = Model(ModelArgs(**fields))

    def is_expert_matrix(path: str, module: Module) -> bool:
        return "experts" in path and hasattr(module, "to_quantized")

    quantize(model, group_size=32, bits=4, mode="mxfp4", class_predicate=is_expert_matrix)
    weights = model.sanitize({name: _mlx(tensor, dtype) for name, tensor in hf_tensors(config, seed).items()})
    model.load_weights(list(weights.items()), strict=True)
    return np.array(model(mx.array(ids)[None])[0].astype(mx.float32))


def _mlx(tensor: Tensor, dtype: mx.Dtype) -> mx.array:
    return mx.array(tensor.data) if tensor.dtype == "U8" else mx.array(tensor.to_float()).astype(dtype)
