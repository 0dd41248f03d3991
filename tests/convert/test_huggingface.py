"""The ordinary path: Hugging Face safetensors into a model folder, byte for byte."""

from __future__ import annotations

import json
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mlx_gptoss.convert import convert
from mlx_gptoss.errors import CheckpointError, ConfigError, ConversionError
from mlx_gptoss.folder import PAGE_BYTES, read_manifest
from tests.convert.support import assert_same, read_folder, snapshot
from tests.tiny import Tensor, folder_tensors, hf_tensors, tiny_config, write_hf_checkpoint, write_hf_folder


@pytest.mark.parametrize("shards", [1, 2, 5])
def test_every_tensor_is_byte_equal(tmp_path: Path, shards: int) -> None:
    config = tiny_config()
    source = write_hf_checkpoint(tmp_path / "hf", config, 3, shards=shards)
    before = snapshot(source)
    manifest = convert(source, tmp_path / "out", revision="abc")
    assert_same(read_folder(tmp_path / "out"), folder_tensors(config, 3))
    assert snapshot(source) == before
    assert (tmp_path / "out" / "config.json").read_bytes() == (source / "config.json").read_bytes()
    assert manifest == read_manifest(tmp_path / "out")
    assert (manifest.source.kind, manifest.source.revision) == ("huggingface", "abc")


def test_single_file_without_index(tmp_path: Path) -> None:
    config = tiny_config(num_layers=1)
    source = write_hf_checkpoint(tmp_path / "hf", config, shards=1)
    (source / "model.safetensors.index.json").unlink()
    (source / "model-00001-of-00001.safetensors").rename(source / "model.safetensors")
    convert(source / "model.safetensors", tmp_path / "by_file")
    convert(source, tmp_path / "by_folder")
    assert_same(read_folder(tmp_path / "by_file"), folder_tensors(config))
    assert_same(read_folder(tmp_path / "by_folder"), folder_tensors(config))


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    experts=st.integers(1, 5), heads=st.sampled_from([(1, 1), (4, 2), (6, 3)]), head_dim=st.sampled_from([2, 32]),
    hidden=st.sampled_from([32, 96, 160]), inner=st.sampled_from([32, 64]), vocab=st.integers(2, 70),
    shard=st.sampled_from([1, 100_000, 1 << 30]), seed=st.integers(0, 99),
)  # fmt: skip
def test_any_shape(
    tmp_path_factory: pytest.TempPathFactory,
    experts: int, heads: tuple[int, int], head_dim: int, hidden: int, inner: int, vocab: int, shard: int, seed: int,
) -> None:  # fmt: skip
    folder = tmp_path_factory.mktemp("shape")
    config = tiny_config(
        num_layers=2, num_experts=experts, experts_per_token=1, num_heads=heads[0], num_kv_heads=heads[1],
        head_dim=head_dim, hidden_size=hidden, intermediate_size=inner, vocab_size=vocab,
    )  # fmt: skip
    convert(write_hf_checkpoint(folder / "hf", config, seed), folder / "out", shard_bytes=shard)
    assert_same(read_folder(folder / "out"), folder_tensors(config, seed))


def test_small_shards_make_many_page_aligned_files(tmp_path: Path) -> None:
    config = tiny_config()
    convert(write_hf_checkpoint(tmp_path / "hf", config), tmp_path / "out", shard_bytes=200_000)
    manifest = read_manifest(tmp_path / "out")
    assert len(manifest.files) > 3
    assert all(t.offset % PAGE_BYTES == 0 for t in manifest.tensors)


def test_mlx_reads_the_folder(tmp_path: Path) -> None:
    config = tiny_config(num_layers=1)
    convert(write_hf_checkpoint(tmp_path / "hf", config), tmp_path / "out")
    expected = folder_tensors(config)
    loaded = mx.load(str(tmp_path / "out" / "model-00001-of-00001.safetensors"))
    assert isinstance(loaded, dict)
    qkv = loaded["layers.0.qkv.weight"]
    assert qkv.dtype == mx.bfloat16
    assert np.array_equal(np.array(qkv.view(mx.uint16)), expected["layers.0.qkv.weight"].data)


def test_progress_reaches_the_total(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    source = write_hf_checkpoint(tmp_path / "hf", tiny_config())
    convert(source, tmp_path / "out", progress=lambda done, total: seen.append((done, total)))
    assert seen[-1][0] == seen[-1][1] == read_manifest(tmp_path / "out").nbytes
    assert [d for d, _ in seen] == sorted(d for d, _ in seen)


def test_again_is_a_no_op_and_another_source_is_refused(tmp_path: Path) -> None:
    first = write_hf_checkpoint(tmp_path / "a", tiny_config(), 1)
    other = write_hf_checkpoint(tmp_path / "b", tiny_config(), 2)
    made = convert(first, tmp_path / "out")
    before = snapshot(tmp_path / "out")
    assert convert(first, tmp_path / "out") == made
    assert snapshot(tmp_path / "out") == before
    with pytest.raises(ConversionError, match="another model"):
        convert(other, tmp_path / "out")
    assert snapshot(tmp_path / "out") == before
    convert(other, tmp_path / "out", overwrite=True)
    assert_same(read_folder(tmp_path / "out"), folder_tensors(tiny_config(), 2))


def test_float32_values_that_bf16_cannot_hold_are_kept(tmp_path: Path) -> None:
    config = tiny_config(num_layers=1)
    tensors = hf_tensors(config)
    exact = tensors["model.norm.weight"].to_float()
    inexact = np.float32(1) + np.arange(config.num_heads, dtype=np.float32) * np.float32(2**-20)
    tensors["model.norm.weight"] = Tensor("F32", exact)
    tensors["model.layers.0.self_attn.sinks"] = Tensor("F32", inexact)
    tensors["lm_head.weight"] = Tensor("F32", tensors["lm_head.weight"].to_float())
    write_hf_folder(tmp_path / "hf", config, tensors)
    convert(tmp_path / "hf", tmp_path / "out")
    read = read_folder(tmp_path / "out")
    assert read["norm.weight"].dtype == "BF16"
    assert np.array_equal(read["norm.weight"].to_float(), exact)
    assert read["layers.0.sinks"].dtype == "F32"
    assert np.array_equal(read["layers.0.sinks"].data, inexact)
    assert read["head.weight"].dtype == "BF16"
    assert any("rounded to bf16" in note for note in read_manifest(tmp_path / "out").notes)


def test_missing_tensor_is_named(tmp_path: Path) -> None:
    tensors = hf_tensors(tiny_config())
    del tensors["model.layers.2.mlp.router.bias"]
    write_hf_folder(tmp_path / "hf", tiny_config(), tensors)
    with pytest.raises(CheckpointError, match=r"model\.layers\.2\.mlp\.router\.bias"):
        convert(tmp_path / "hf", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_wrong_shape_and_dtype_are_named(tmp_path: Path) -> None:
    tensors = hf_tensors(tiny_config())
    tensors["model.layers.0.self_attn.sinks"] = Tensor("BF16", np.zeros(3, np.uint16))
    write_hf_folder(tmp_path / "shape", tiny_config(), tensors)
    with pytest.raises(CheckpointError, match=r"layers\.0\.sinks has the wrong shape"):
        convert(tmp_path / "shape", tmp_path / "out")
    tensors["model.layers.0.self_attn.sinks"] = Tensor("U8", np.zeros(4, np.uint8))
    write_hf_folder(tmp_path / "dtype", tiny_config(), tensors)
    with pytest.raises(CheckpointError, match=r"layers\.0\.sinks has the wrong dtype"):
        convert(tmp_path / "dtype", tmp_path / "out")


@pytest.mark.parametrize(
    "name", ["model.layers.1.mlp.experts.down_proj_scales", "model.layers.3.self_attn.k_proj.bias"]
)
def test_nan_is_refused_and_nothing_is_left(tmp_path: Path, name: str) -> None:
    tensors = hf_tensors(tiny_config())
    data = tensors[name].data.copy()
    data.reshape(-1)[-1] = 0xFF if data.dtype == np.uint8 else 0x7FC0
    tensors[name] = Tensor(tensors[name].dtype, data)
    write_hf_folder(tmp_path / "hf", tiny_config(), tensors)
    with pytest.raises(ConversionError, match="NaN"):
        convert(tmp_path / "hf", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_config_of_another_model(tmp_path: Path) -> None:
    source = write_hf_checkpoint(tmp_path / "hf", tiny_config())
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps(config | {"model_type": "llama"}))
    with pytest.raises(ConfigError, match="not a gpt-oss model"):
        convert(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()
