"""Loading model folders: right values, every format, and one clear error for each kind of damage."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from mlx_gptoss import folder
from mlx_gptoss.errors import CheckpointError, ConfigError, InvalidRequestError
from mlx_gptoss.loader import _read_header, load_model, load_weights, wrap_tensor
from mlx_gptoss.model import GptOssModel
from mlx_gptoss.weights import LinearFormat
from tests.tiny import random_weights, tiny_config, write_hf_checkpoint, write_model_folder

CONFIG = tiny_config(num_layers=2, num_experts=3, vocab_size=64)
IDS = [[5, 9, 63, 0, 17, 4]]


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model_folder(tmp_path_factory.mktemp("models") / "tiny", CONFIG, seed=3)


@pytest.fixture
def model_folder(pristine: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(pristine, tmp_path / "model"))


def _manifest(path: Path) -> folder.Manifest:
    return folder.read_manifest(path)


def _edit_json(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))


def _overwrite(path: Path, offset: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(data)


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_loads_the_very_weights(pristine: Path, dtype: Any) -> None:
    mlx_dtype = mx.bfloat16 if dtype == "bfloat16" else mx.float32
    model = load_model(pristine, dtype)
    direct = GptOssModel(CONFIG, random_weights(CONFIG, 3, dtype=mlx_dtype), mlx_dtype)
    assert mx.array_equal(model(IDS), direct(IDS)).item()
    assert model.dtype == mlx_dtype
    assert model.make_cache().dtype == mlx_dtype


def test_weights_are_bit_equal(pristine: Path) -> None:
    config, loaded = load_weights(pristine)
    expected = random_weights(CONFIG, 3)
    assert config == CONFIG
    assert loaded.nbytes == expected.nbytes
    for ours, theirs in zip(loaded.arrays(), expected.arrays(), strict=True):
        assert ours.dtype == theirs.dtype
        assert mx.array_equal(ours, theirs).item()


def test_dense_experts(tmp_path: Path) -> None:
    model = load_model(write_model_folder(tmp_path / "m", CONFIG, 3, dense_experts=True), "float32")
    packed = GptOssModel(CONFIG, random_weights(CONFIG, 3, dtype=mx.float32), mx.float32)
    np.testing.assert_allclose(np.array(model(IDS)), np.array(packed(IDS)), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("fmt", "worst"), [("mxfp8", 0.25), ("q8", 0.03), ("q6", 0.12), ("q4", 0.6)])
def test_quantised_formats(tmp_path: Path, fmt: LinearFormat, worst: float) -> None:
    formats: dict[str, LinearFormat] = dict.fromkeys(("embed", "head", "qkv", "out"), fmt)
    config, weights = load_weights(write_model_folder(tmp_path / "m", CONFIG, 3, formats=formats))
    assert {weights.embed.format, weights.head.format, weights.layers[1].qkv.format} == {fmt}
    assert (weights.head.rows, weights.head.columns) == (CONFIG.vocab_size, CONFIG.hidden_size)
    exact = np.array(GptOssModel(CONFIG, random_weights(CONFIG, 3, dtype=mx.float32), mx.float32)(IDS))
    for dtype in (mx.float32, mx.bfloat16):
        logits = np.array(GptOssModel(config, weights, dtype)(IDS))
        error = np.linalg.norm(logits - exact) / np.linalg.norm(exact)
        assert 0 < error < worst


def test_wrapping_reads_whole_pages_and_copies_small_or_cut_off_tensors(
    pristine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The Metal path, with `mx.asarray` standing for the wrap: same bytes, page-aligned start and length."""
    spans: list[tuple[int, int]] = []

    def asarray(pages: Any, copy: bool) -> mx.array:
        assert not copy
        spans.append((pages.ctypes.data, pages.nbytes))
        return mx.array(pages)

    monkeypatch.setattr(mx, "asarray", asarray)
    monkeypatch.setattr("mlx_gptoss.loader.WRAP_FROM_BYTES", 4096)
    monkeypatch.setattr("mlx_gptoss.loader.can_wrap", lambda: True)
    _, wrapped = load_weights(pristine)
    _, read = _unwrapped(pristine, monkeypatch)
    assert spans
    for address, length in spans:
        # The mapping itself starts on a page of this machine, 4 KiB or more.
        assert address % 4096 == 0
        assert length % folder.PAGE_BYTES == 0
    for ours, theirs in zip(wrapped.arrays(), read.arrays(), strict=True):
        assert mx.array_equal(ours, theirs).item()


def _unwrapped(path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr("mlx_gptoss.loader.can_wrap", lambda: False)
    return load_weights(path)


def test_a_tensor_cut_off_by_the_end_of_the_file_is_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mlx_gptoss.loader.WRAP_FROM_BYTES", 1)
    record = folder.TensorRecord("x", "U32", (5,), "f", folder.PAGE_BYTES, 20, "")
    pages = np.arange(folder.PAGE_BYTES + 20, dtype=np.int64).astype(np.uint8)
    expected = pages[folder.PAGE_BYTES :].view(np.uint32)
    assert np.array_equal(np.array(wrap_tensor(pages, record)), expected)


def test_unknown_dtype(pristine: Path) -> None:
    with pytest.raises(InvalidRequestError, match="float16"):
        load_model(pristine, "float16")  # type: ignore[arg-type]  # the mistake under test


def test_no_such_folder(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such model folder"):
        load_model(tmp_path / "absent")


def test_a_file_is_not_a_folder(pristine: Path) -> None:
    with pytest.raises(CheckpointError, match="folder"):
        load_model(pristine / "config.json")


def test_empty_folder(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"manifest\.json"):
        load_model(tmp_path)


def test_hugging_face_folder_asks_for_conversion(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="mlx-gptoss convert"):
        load_model(write_hf_checkpoint(tmp_path / "hf", CONFIG))


def test_missing_config(model_folder: Path) -> None:
    (model_folder / "config.json").unlink()
    with pytest.raises(ConfigError, match="missing"):
        load_model(model_folder)


def test_missing_shard(model_folder: Path) -> None:
    (model_folder / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(CheckpointError, match="model-00002-of-00002"):
        load_model(model_folder)


def test_truncated_shard(model_folder: Path) -> None:
    shard = model_folder / "model-00001-of-00002.safetensors"
    with shard.open("r+b") as file:
        file.truncate(shard.stat().st_size - 1)
    with pytest.raises(CheckpointError, match="model-00001-of-00002"):
        load_model(model_folder)


def test_missing_tensor(model_folder: Path) -> None:
    def drop(data: dict[str, Any]) -> None:
        data["tensors"] = [tensor for tensor in data["tensors"] if tensor["name"] != "layers.1.sinks"]

    _edit_json(model_folder / "manifest.json", drop)
    with pytest.raises(CheckpointError, match=r"layers\.1\.sinks"):
        load_model(model_folder)


def test_wrong_shape(model_folder: Path) -> None:
    def widen(data: dict[str, Any]) -> None:
        data["num_local_experts"] = 4

    _edit_json(model_folder / "config.json", widen)
    with pytest.raises(CheckpointError, match=r"router\.weight.*shape.*4, 96.*3, 96"):
        load_model(model_folder)


def test_wrong_dtype(model_folder: Path) -> None:
    def retype(data: dict[str, Any]) -> None:
        for tensor in data["tensors"]:
            if tensor["name"] == "head.weight":
                tensor["dtype"] = "F16"

    _edit_json(model_folder / "manifest.json", retype)
    with pytest.raises(CheckpointError, match=r"head\.weight.*dtype.*F16"):
        load_model(model_folder)


def test_file_that_disagrees_with_the_manifest(model_folder: Path) -> None:
    shard = model_folder / "model-00001-of-00002.safetensors"
    text = shard.read_bytes()
    shard.write_bytes(text.replace(b"embed.weight", b"embed.wEight", 1))
    with pytest.raises(CheckpointError, match=r"embed\.weight is missing.*model-00001"):
        load_model(model_folder)
    shard.write_bytes(text.replace(b'"embed.weight": {"dtype": "BF16"', b'"embed.weight": {"dtype": "F16" ', 1))
    with pytest.raises(CheckpointError, match=r"embed\.weight.*disagree about dtype.*F16"):
        load_model(model_folder)


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (b"\xff" * 8, "not safetensors"),
        (b"\0" * 8, "not safetensors"),
        ((20).to_bytes(8, "little") + b"not json at all.....", "corrupt"),
        ((4).to_bytes(8, "little") + b"[1 ]", "corrupt"),
        (b"", "not safetensors"),
    ],
)
def test_garbage_header(tmp_path: Path, header: bytes, message: str) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(header)
    with pytest.raises(CheckpointError, match=message):
        _read_header(path)


@pytest.mark.parametrize("name", ["layers.0.gate_up.scales", "layers.1.down.scales"])
def test_nan_expert_scale(model_folder: Path, name: str) -> None:
    record = _manifest(model_folder)[name]
    _overwrite(model_folder / record.file, record.offset + record.nbytes - 1, b"\xff")
    with pytest.raises(CheckpointError, match=rf"{name}.*NaN.*{record.file}"):
        load_model(model_folder)


@pytest.mark.parametrize("matrix", ["embed", "head", "layers.0.qkv", "layers.1.out"])
def test_nan_mxfp8_scale(tmp_path: Path, matrix: str) -> None:
    formats: dict[str, LinearFormat] = {matrix.rpartition(".")[2]: "mxfp8"}
    path = write_model_folder(tmp_path / "m", CONFIG, 3, formats=formats)
    record = _manifest(path)[f"{matrix}.scales"]
    _overwrite(path / record.file, record.offset, b"\xff")
    with pytest.raises(CheckpointError, match=rf"{matrix}\.scales.*NaN"):
        load_model(path)
