"""Makes tests/golden/convert/: a tiny fine-tune as transformers saves it, LoRA adapters as PEFT saves them, and what
PEFT's own merge_and_unload makes of them.

    python tests/golden/make_convert_fixtures.py      needs torch, transformers and peft

The outcome was made with transformers 5.23.0, peft 0.21.2 and torch 2.13.0.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import save_file
from transformers import GptOssConfig, GptOssForCausalLM

OUT = Path(__file__).parent / "convert"

CONFIG = GptOssConfig(
    num_hidden_layers=2, hidden_size=32, intermediate_size=32, num_local_experts=3, num_experts_per_tok=2,
    num_attention_heads=4, num_key_value_heads=2, head_dim=8, sliding_window=8, vocab_size=48,
    pad_token_id=0, eos_token_id=1, bos_token_id=2,
    rope_parameters={"rope_type": "yarn", "rope_theta": 150000.0, "factor": 32.0, "beta_fast": 32.0, "beta_slow": 1.0,
                     "truncate": False, "original_max_position_embeddings": 4096},
    max_position_embeddings=131072,
)  # fmt: skip


def build() -> GptOssForCausalLM:
    torch.manual_seed(0)
    model = GptOssForCausalLM(CONFIG)
    for name, parameter in model.named_parameters():
        torch.nn.init.normal_(parameter, std=0.3, mean=1.0 if "norm" in name else 0.0)
    return model.to(torch.bfloat16)


def adapt(name: str, **options: object) -> None:
    torch.manual_seed(len(name))
    model = get_peft_model(build(), LoraConfig(task_type="CAUSAL_LM", **options))
    for parameter_name, parameter in model.named_parameters():
        if "lora_" in parameter_name:
            torch.nn.init.normal_(parameter, std=0.2)
    model.save_pretrained(OUT / name)
    (OUT / name / "README.md").unlink(missing_ok=True)
    # The truth is computed in float32, so that the reference has no rounding of its own before the last one.
    exact = PeftModel.from_pretrained(build().to(torch.float32), OUT / name).merge_and_unload()
    weights = {
        k: v for k, v in exact.state_dict().items() if "self_attn" in k and k.endswith(".weight") or "lm_head" in k
    }
    save_file({k: v.contiguous() for k, v in weights.items()}, OUT / f"{name}-merged.safetensors")


def main() -> None:
    shutil.rmtree(OUT, ignore_errors=True)
    OUT.mkdir()
    build().save_pretrained(OUT / "dense")
    targets = ["q_proj", "k_proj", "v_proj", "o_proj"]
    adapt("lora", r=4, lora_alpha=16, target_modules=targets)
    adapt("rslora", r=4, lora_alpha=8, target_modules=["q_proj", "lm_head"], use_rslora=True,
          rank_pattern={"q_proj": 2}, alpha_pattern={"q_proj": 6})  # fmt: skip
    adapt("experts", r=2, lora_alpha=4, target_modules=["q_proj"],
          target_parameters=["mlp.experts.gate_up_proj"])  # fmt: skip
    (OUT / "experts-merged.safetensors").unlink()


if __name__ == "__main__":
    main()
