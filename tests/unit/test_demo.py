"""Unpacking the demo checkpoint: whole, reused, repaired, and a clear error when the package is damaged."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from safetensors import safe_open

from mlx_gptoss import demo
from mlx_gptoss.config import ModelConfig
from mlx_gptoss.errors import CheckpointError, InsufficientDiskError

VOCABULARY = 201_088


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return demo.unpack_demo(tmp_path_factory.mktemp("demo") / "checkpoint")


@pytest.fixture
def own_archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the packed checkpoint that a test may damage."""
    copy = tmp_path / "data" / "demo.tar.xz"
    copy.parent.mkdir()
    for name in ("demo.tar.xz", "demo.json"):
        shutil.copy(demo.demo_archive().with_name(name), copy.with_name(name))
    monkeypatch.setattr(demo, "demo_archive", lambda: copy)
    return copy


def test_config_is_a_valid_gpt_oss(folder: Path) -> None:
    config = ModelConfig.from_file(folder / "config.json")
    assert config.vocab_size == VOCABULARY
    assert config.layer_types[:2] == ("sliding_attention", "full_attention")
    assert config.sliding_window == 128
    assert config.yarn is not None
    assert config.yarn.factor == 32
    assert not config.yarn.truncate


def test_tensors_have_released_names_and_types(folder: Path) -> None:
    config = ModelConfig.from_file(folder / "config.json")
    with safe_open(folder / "model.safetensors", framework="numpy") as tensors:
        names = set(tensors.keys())
        assert len(names) == 3 + config.num_layers * 19
        for layer in range(config.num_layers):
            prefix = f"model.layers.{layer}.mlp.experts"
            blocks = tensors.get_slice(f"{prefix}.gate_up_proj_blocks")
            expected = [config.num_experts, 2 * config.intermediate_size, config.hidden_size // 32, 16]
            assert (blocks.get_dtype(), blocks.get_shape()) == ("U8", expected)
            assert tensors.get_slice(f"{prefix}.down_proj_scales").get_dtype() == "U8"
            assert tensors.get_slice(f"model.layers.{layer}.self_attn.sinks").get_dtype() == "BF16"
        assert tensors.get_slice("lm_head.weight").get_shape() == [VOCABULARY, config.hidden_size]


def test_the_package_stays_small() -> None:
    assert demo.demo_archive().stat().st_size < 9_000_000


def test_a_whole_folder_is_reused(folder: Path) -> None:
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert demo.unpack_demo(folder) == folder
    assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir()} == before


@pytest.mark.parametrize("damage", ["cut", "changed", "gone"])
def test_a_damaged_file_is_replaced(folder: Path, damage: str) -> None:
    path = folder / "config.json"
    whole = path.read_bytes()
    if damage == "cut":
        path.write_bytes(whole[:-5])
    elif damage == "changed":
        path.write_bytes(whole.replace(b"gpt_oss", b"gpt_osx"))
    else:
        path.unlink()
    demo.unpack_demo(folder)
    assert path.read_bytes() == whole
    assert not list(folder.glob("*.partial"))
    assert not list(folder.glob(".*.partial"))


@pytest.mark.parametrize("where", ["start", "middle", "cut", "gone", "described"])
def test_a_damaged_package_is_one_clear_error(own_archive: Path, tmp_path: Path, where: str) -> None:
    content = bytearray(own_archive.read_bytes())
    if where == "start":
        content[:6] = b"nonsen"
    elif where == "middle":
        content[len(content) // 2] ^= 0xFF
    elif where == "cut":
        del content[len(content) // 2 :]
    own_archive.write_bytes(content)
    if where == "gone":
        own_archive.unlink()
    if where == "described":
        own_archive.with_name("demo.json").write_text("{}")
    target = tmp_path / "target"
    with pytest.raises(CheckpointError, match="demo checkpoint"):
        demo.unpack_demo(target)
    assert not target.is_dir() or not list(target.iterdir())


def test_an_unexpected_hash_is_refused(own_archive: Path, tmp_path: Path) -> None:
    path = own_archive.with_name("demo.json")
    described = json.loads(path.read_text())
    described["files"]["model.safetensors"]["sha256"] = "0" * 64
    path.write_text(json.dumps(described))
    with pytest.raises(CheckpointError, match="SHA-256"):
        demo.unpack_demo(tmp_path / "target")
    assert not list((tmp_path / "target").iterdir())


def test_a_full_disk_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(demo, "_extract", full)
    with pytest.raises(InsufficientDiskError, match="250 MB"):
        demo.unpack_demo(tmp_path / "target")
