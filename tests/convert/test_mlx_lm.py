"""Folders made by mlx-lm itself: experts exact, quantised matrices carried over or dequantised."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from mlx_gptoss.convert import convert
from mlx_gptoss.folder import LinearFormat, read_manifest
from tests.convert.support import assert_same, read_folder
from tests.tiny import folder_tensors, tiny_config, write_hf_checkpoint

CONFIG = tiny_config(num_layers=2, hidden_size=128, head_dim=32, vocab_size=128)


def write_mlx_lm(folder: Path, seed: int = 0, **quantization: Any) -> Path:
    """mlx-lm loads a Hugging Face checkpoint and saves it its own way, quantised or not."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from mlx_lm.utils import load_model, quantize_model, save_config, save_model

        source = write_hf_checkpoint(folder / "hf", CONFIG, seed)
        model, config = load_model(source)
        if quantization:
            model, config = quantize_model(model, config, **quantization)
        target = folder / "mlx"
        target.mkdir()
        save_model(target, model, donate_model=True)
        save_config(config, target / "config.json")
    return target


def test_unquantised_is_byte_equal(tmp_path: Path) -> None:
    convert(write_mlx_lm(tmp_path, 4), tmp_path / "out")
    assert_same(read_folder(tmp_path / "out"), folder_tensors(CONFIG, 4))


@pytest.mark.parametrize("bits", [4, 6, 8])
def test_affine_matrices_are_carried_over(tmp_path: Path, bits: int) -> None:
    convert(write_mlx_lm(tmp_path, 4, group_size=64, bits=bits), tmp_path / "out")
    expected = folder_tensors(CONFIG, 4)
    read = read_folder(tmp_path / "out")
    manifest = read_manifest(tmp_path / "out")
    for name in ("layers.0.gate_up", "layers.1.down"):
        for part in ("blocks", "scales", "bias"):
            assert read[f"{name}.{part}"].data.tobytes() == expected[f"{name}.{part}"].data.tobytes()
    for name in ("embed", "head", "layers.0.qkv", "layers.1.out"):
        assert manifest.format_of(name) == LinearFormat(f"q{bits}", 64)  # type: ignore[arg-type]  # bits is 4, 6 or 8
        dense = mx.array(expected[f"{name}.weight"].data).view(mx.bfloat16)
        parts = mx.quantize(dense, group_size=64, bits=bits)
        for part, array in zip(("weight", "scales", "biases"), parts, strict=True):
            array = array.view(mx.uint16) if array.dtype == mx.bfloat16 else array
            assert read[f"{name}.{part}"].data.tobytes() == np.array(array).tobytes(), (name, part)


def test_asking_for_bf16_dequantises(tmp_path: Path) -> None:
    source = write_mlx_lm(tmp_path, 4, group_size=64, bits=4)
    convert(source, tmp_path / "out", attention="bf16", embedding="bf16", head="q8")
    manifest, read = read_manifest(tmp_path / "out"), read_folder(tmp_path / "out")
    assert manifest.format_of("embed") == LinearFormat("bf16")
    assert manifest.format_of("head") == LinearFormat("q8", 64)
    weight = folder_tensors(CONFIG, 4)["layers.0.qkv.weight"]
    dense = mx.array(weight.data).view(mx.bfloat16)
    oracle = mx.dequantize(*mx.quantize(dense, group_size=64, bits=4), group_size=64, bits=4)
    assert np.array_equal(read["layers.0.qkv.weight"].data, np.array(oracle.view(mx.uint16)))


@pytest.mark.parametrize(("group_size", "bits"), [(32, 5), (128, 4)])
def test_formats_that_are_not_ours_become_bf16(tmp_path: Path, group_size: int, bits: int) -> None:
    convert(write_mlx_lm(tmp_path, 4, group_size=group_size, bits=bits), tmp_path / "out")
    manifest, read = read_manifest(tmp_path / "out"), read_folder(tmp_path / "out")
    assert manifest.format_of("layers.0.qkv") == LinearFormat("bf16")
    dense = mx.array(folder_tensors(CONFIG, 4)["head.weight"].data).view(mx.bfloat16)
    weight, scales, biases = mx.quantize(dense, group_size=group_size, bits=bits)
    oracle = mx.dequantize(weight, scales, biases, group_size=group_size, bits=bits)
    assert np.array_equal(read["head.weight"].data, np.array(oracle.view(mx.uint16)))
    assert any("bits in the source" in note for note in manifest.notes)
