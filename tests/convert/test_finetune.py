"""Fine-tunes as transformers saves them, and LoRA adapters as PEFT saves them, against PEFT's own merge."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from mlx_gptoss.convert import convert
from mlx_gptoss.errors import CheckpointError, ConversionError, GptOssError
from mlx_gptoss.folder import LinearFormat, read_manifest
from tests.convert.support import read_folder, read_safetensors
from tests.tiny import (
    Tensor,
    dequantize_mxfp4,
    folder_tensors,
    from_bf16_bits,
    hf_tensors,
    tiny_config,
    to_bf16_bits,
    write_hf_checkpoint,
    write_hf_folder,
)

GOLDEN = Path(__file__).parent.parent / "golden" / "convert"
DENSE = GOLDEN / "dense"


def test_dense_experts_become_mxfp4_with_their_error_reported(tmp_path: Path) -> None:
    convert(DENSE, tmp_path / "out")
    read, source = read_folder(tmp_path / "out"), read_safetensors(DENSE / "model.safetensors")
    manifest = read_manifest(tmp_path / "out")
    assert manifest.source.kind == "huggingface-dense"
    assert json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]["quant_method"] == "mxfp4"
    for name, theirs in (("layers.0.gate_up", "gate_up_proj"), ("layers.0.down", "down_proj")):
        truth = source[f"model.layers.0.mlp.experts.{theirs}"].to_float().swapaxes(1, 2)
        actual = dequantize_mxfp4(read[f"{name}.blocks"].data, read[f"{name}.scales"].data)
        error = np.sqrt(((actual - truth) ** 2).sum() / (truth**2).sum())
        assert error < 0.12  # normally distributed weights in MXFP4
        note = next(n for n in manifest.notes if n.startswith(f"{name} "))
        assert abs(float(note.split()[-1]) - error) < 1e-4


def test_dense_experts_kept_in_bf16_are_exact(tmp_path: Path) -> None:
    convert(DENSE, tmp_path / "out", experts="bf16")
    read, source = read_folder(tmp_path / "out"), read_safetensors(DENSE / "model.safetensors")
    truth = source["model.layers.1.mlp.experts.gate_up_proj"].data.swapaxes(1, 2)
    assert np.array_equal(read["layers.1.gate_up.weight"].data, truth)
    assert read_manifest(tmp_path / "out").format_of("layers.1.down") == LinearFormat("bf16")


@pytest.mark.parametrize("dtype", ["BF16", "F16", "F32"])
def test_values_that_are_mxfp4_already_come_back_exactly(tmp_path: Path, dtype: str) -> None:
    config = tiny_config(num_layers=1)
    tensors = hf_tensors(config, 2, dense_experts=True)
    kind = {"F16": np.float16, "F32": np.float32}
    if dtype != "BF16":
        tensors = {k: Tensor(dtype, t.to_float().astype(kind[dtype])) for k, t in tensors.items()}
    write_hf_folder(tmp_path / "hf", config, tensors, quantized=False)
    convert(tmp_path / "hf", tmp_path / "out")
    read, expected = read_folder(tmp_path / "out"), folder_tensors(config, 2)
    for name in ("layers.0.gate_up", "layers.0.down"):
        truth = dequantize_mxfp4(expected[f"{name}.blocks"].data, expected[f"{name}.scales"].data)
        assert np.array_equal(dequantize_mxfp4(read[f"{name}.blocks"].data, read[f"{name}.scales"].data), truth)
    assert all("0.00000" in n for n in read_manifest(tmp_path / "out").notes if "mxfp4" in n)


@pytest.mark.parametrize(("name", "modules"), [("lora", "qkvo"), ("rslora", "q")])
def test_adapter_matches_pefts_own_merge(tmp_path: Path, name: str, modules: str) -> None:
    convert(DENSE, tmp_path / "plain")
    convert(DENSE, tmp_path / "out", adapters=[GOLDEN / name])
    read, plain = read_folder(tmp_path / "out"), read_folder(tmp_path / "plain")
    merged = read_safetensors(GOLDEN / f"{name}-merged.safetensors")
    for layer in range(2):
        parts = [merged[f"model.layers.{layer}.self_attn.{m}_proj.weight"].data for m in "qkvo"]
        for ours, truth in (("qkv", np.concatenate(parts[:3])), ("out", parts[3])):
            actual = from_bf16_bits(read[f"layers.{layer}.{ours}.weight"].data)
            assert np.abs(actual - truth).max() <= np.abs(truth).max() * 2.0**-8
            exact = from_bf16_bits(to_bf16_bits(truth))
            assert (actual == exact).mean() > 0.995  # the rest are ties seen from either side of float32 rounding
            changed = not np.array_equal(
                read[f"layers.{layer}.{ours}.weight"].data, plain[f"layers.{layer}.{ours}.weight"].data
            )
            assert changed == (ours == "qkv" or "o" in modules)
    untouched = [n for n in read if "qkv" not in n and "out" not in n and n != "head.weight"]
    assert all(read[n].data.tobytes() == plain[n].data.tobytes() for n in untouched)
    assert any("merged into" in note for note in read_manifest(tmp_path / "out").notes)


def test_two_adapters_add_up(tmp_path: Path) -> None:
    convert(DENSE, tmp_path / "out", adapters=[GOLDEN / "lora", GOLDEN / "rslora"])
    base = read_safetensors(DENSE / "model.safetensors")["model.layers.0.self_attn.q_proj.weight"].to_float()
    name = "model.layers.0.self_attn.q_proj.weight"
    deltas = [read_safetensors(GOLDEN / f"{a}-merged.safetensors")[name].data - base for a in ("lora", "rslora")]
    actual = from_bf16_bits(read_folder(tmp_path / "out")["layers.0.qkv.weight"].data)[: len(base)]
    truth = base + deltas[0] + deltas[1]
    assert np.abs(actual - truth).max() <= np.abs(truth).max() * 2.0**-7


def test_adapter_on_a_released_checkpoint_leaves_experts_alone(tmp_path: Path) -> None:
    config = tiny_config(
        num_layers=2, hidden_size=32, intermediate_size=32, num_experts=3, num_heads=4, num_kv_heads=2, head_dim=8,
        vocab_size=48,
    )  # fmt: skip
    convert(write_hf_checkpoint(tmp_path / "hf", config, 1), tmp_path / "out", adapters=[GOLDEN / "lora"])
    read, expected = read_folder(tmp_path / "out"), folder_tensors(config, 1)
    for name, tensor in expected.items():
        same = read[name].data.tobytes() == tensor.data.tobytes()
        assert same == (not name.endswith(("qkv.weight", "out.weight"))), name


def test_expert_adapter_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConversionError, match="expert"):
        convert(DENSE, tmp_path / "out", adapters=[GOLDEN / "experts"])
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "change",
    [
        {"peft_type": "IA3"}, {"use_dora": True}, {"r": 0}, {"r": "x"}, {"lora_alpha": None}, {"r": 8}, {"bias": "all"},
        {"modules_to_save": ["lm_head"]}, {"lora_alpha": float("nan")}, {"fan_in_fan_out": True}, {"lora_bias": True},
        {"rank_pattern": {"q_proj": 3}},
    ],
)  # fmt: skip
def test_adapter_configs_that_cannot_be_merged(tmp_path: Path, change: dict[str, object]) -> None:
    shutil.copytree(GOLDEN / "lora", tmp_path / "adapter")
    path = tmp_path / "adapter" / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(GptOssError):
        convert(DENSE, tmp_path / "out", adapters=[tmp_path / "adapter"])
    assert not (tmp_path / "out").exists()


def test_adapter_of_another_shape(tmp_path: Path) -> None:
    source = write_hf_checkpoint(tmp_path / "hf", tiny_config(num_layers=2))
    with pytest.raises(CheckpointError, match="does not fit"):
        convert(source, tmp_path / "out", adapters=[GOLDEN / "lora"])


def test_adapter_given_as_source(tmp_path: Path) -> None:
    with pytest.raises(ConversionError, match="--adapter"):
        convert(GOLDEN / "lora", tmp_path / "out")
    with pytest.raises(CheckpointError, match="not an adapter"):
        convert(DENSE, tmp_path / "out", adapters=[DENSE])
