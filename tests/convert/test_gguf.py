"""GGUF files written by the gguf package: expert bits exact, other types as that package decodes them."""

from __future__ import annotations

import hashlib
import json
import shutil
import struct
from pathlib import Path

import gguf
import numpy as np
import pytest

from mlx_gptoss.config import ModelConfig
from mlx_gptoss.convert import convert
from mlx_gptoss.convert.files import SourceFile
from mlx_gptoss.convert.gguf import Mxfp4Part
from mlx_gptoss.convert.gguf_file import GgufTensor
from mlx_gptoss.convert.ollama import find_ollama_model, store_folders
from mlx_gptoss.convert.tensors import read_all
from mlx_gptoss.errors import CheckpointError, GptOssError, InvalidRequestError, ModelNotFoundError
from mlx_gptoss.folder import LinearFormat, read_manifest
from tests.convert.gguf_files import ggml_blocks, write_gguf
from tests.convert.support import assert_same, read_folder
from tests.tiny import dequantize_mxfp4, folder_tensors, tiny_config

CONFIG = tiny_config(num_layers=2)


@pytest.mark.parametrize("ollama", [False, True])
def test_bf16_file_is_byte_equal(tmp_path: Path, ollama: bool) -> None:
    source = write_gguf(tmp_path / "model.gguf", CONFIG, 6, ollama=ollama)
    convert(source, tmp_path / "out")
    assert_same(read_folder(tmp_path / "out"), folder_tensors(CONFIG, 6))
    assert ModelConfig.from_file(tmp_path / "out") == CONFIG


def test_folder_with_one_gguf(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    write_gguf(tmp_path / "in" / "gpt-oss.gguf", CONFIG, 6)
    convert(tmp_path / "in", tmp_path / "out")
    assert_same(read_folder(tmp_path / "out"), folder_tensors(CONFIG, 6))
    write_gguf(tmp_path / "in" / "other.gguf", CONFIG, 6)
    with pytest.raises(CheckpointError, match="several GGUF"):
        convert(tmp_path / "in", tmp_path / "out2")


def test_nibbles_decode_to_the_same_numbers(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    raw = rng.integers(0, 256, (6, 3 * 17), dtype=np.uint8)
    raw.reshape(6, 3, 17)[:, :, 0] = rng.integers(1, 254, (6, 3))
    (tmp_path / "raw").write_bytes(raw.tobytes())
    tensor = GgufTensor("t", 39, (2, 3, 96), SourceFile(tmp_path / "raw"), 0, raw.nbytes)
    blocks = read_all(Mxfp4Part.of(tensor, "blocks")).reshape(6, 3, 16)
    scales = read_all(Mxfp4Part.of(tensor, "scales")).reshape(6, 3)
    tensor.file.close()
    oracle = gguf.quants.dequantize(raw, gguf.GGMLQuantizationType.MXFP4)
    assert np.array_equal(dequantize_mxfp4(blocks, scales), oracle)
    assert np.array_equal(ggml_blocks(blocks, scales), raw)


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0", "Q5_1", "F16", "F32"])
def test_other_types_are_dequantised(tmp_path: Path, kind: str) -> None:
    source = write_gguf(tmp_path / "model.gguf", CONFIG, 6, matrices=kind)
    convert(source, tmp_path / "out", head="q8")
    read, expected = read_folder(tmp_path / "out"), folder_tensors(CONFIG, 6)
    type_ = gguf.GGMLQuantizationType[kind]
    oracle = gguf.quants.dequantize(gguf.quants.quantize(expected["embed.weight"].to_float(), type_), type_)
    assert np.abs(read["embed.weight"].to_float() - oracle).max() <= np.abs(oracle).max() * 2.0**-8
    assert read["layers.1.down.blocks"].data.tobytes() == expected["layers.1.down.blocks"].data.tobytes()
    manifest = read_manifest(tmp_path / "out")
    assert manifest.format_of("head") == LinearFormat("q8", 32)
    assert any("bf16" in note for note in manifest.notes)


def test_dense_experts_are_quantised_again_without_loss_when_they_were_mxfp4(tmp_path: Path) -> None:
    convert(write_gguf(tmp_path / "model.gguf", CONFIG, 6, experts="BF16"), tmp_path / "out")
    read, expected = read_folder(tmp_path / "out"), folder_tensors(CONFIG, 6)
    for name in ("layers.0.gate_up", "layers.1.down"):
        actual = dequantize_mxfp4(read[f"{name}.blocks"].data, read[f"{name}.scales"].data)
        assert np.array_equal(
            actual, dequantize_mxfp4(expected[f"{name}.blocks"].data, expected[f"{name}.scales"].data)
        )


def test_ollama_type_4_is_in_released_order(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    raw = rng.integers(0, 256, (4, 2 * 17), dtype=np.uint8)
    (tmp_path / "raw").write_bytes(raw.tobytes())
    tensor = GgufTensor("t", 4, (2, 2, 64), SourceFile(tmp_path / "raw"), 0, raw.nbytes)
    blocks = read_all(Mxfp4Part.of(tensor, "blocks"))
    scales = read_all(Mxfp4Part.of(tensor, "scales"))
    tensor.file.close()
    assert np.array_equal(blocks.reshape(4, 2, 16), raw.reshape(4, 2, 17)[:, :, 1:])
    assert np.array_equal(scales, raw.reshape(4, 2, 17)[:, :, 0])


def test_split_files(tmp_path: Path) -> None:
    single = write_gguf(tmp_path / "single.gguf", CONFIG, 6)
    reader = gguf.GGUFReader(single)
    names = [t.name for t in reader.tensors]
    stem = tmp_path / "model"
    writers = [gguf.GGUFWriter(f"{stem}-{i:05d}-of-00002.gguf", "gpt-oss") for i in (1, 2)]
    from tests.convert.gguf_files import write_metadata

    write_metadata(writers[0], CONFIG, "gpt-oss")
    for number, writer in enumerate(writers):
        writer.add_uint16("split.no", number)
        writer.add_uint16("split.count", 2)
        for tensor in reader.tensors:
            if (names.index(tensor.name) < len(names) // 2) == (number == 0):
                writer.add_tensor(tensor.name, np.array(tensor.data), raw_dtype=tensor.tensor_type)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    convert(Path(f"{stem}-00001-of-00002.gguf"), tmp_path / "out")
    assert_same(read_folder(tmp_path / "out"), folder_tensors(CONFIG, 6))
    Path(f"{stem}-00002-of-00002.gguf").unlink()
    with pytest.raises(CheckpointError, match="00002"):
        convert(Path(f"{stem}-00001-of-00002.gguf"), tmp_path / "out2")


def test_another_architecture_is_refused(tmp_path: Path) -> None:
    source = write_gguf(tmp_path / "model.gguf", CONFIG, arch="llama")
    with pytest.raises(CheckpointError, match="not a gpt-oss model"):
        convert(source, tmp_path / "out")


def test_truncated_file(tmp_path: Path) -> None:
    source = write_gguf(tmp_path / "model.gguf", CONFIG)
    data = source.read_bytes()
    for length in (3, 20, 200, len(data) // 2, len(data) - 1):
        source.write_bytes(data[:length])
        with pytest.raises(GptOssError):
            convert(source, tmp_path / "out")
        assert not (tmp_path / "out").exists()


def test_claimed_sizes_cost_nothing(tmp_path: Path) -> None:
    path = tmp_path / "huge.gguf"
    path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 1 << 40, 1 << 40) + bytes(100))
    with pytest.raises(CheckpointError, match="impossible number"):
        convert(path, tmp_path / "out")
    array = struct.pack("<Q", 1) + b"k" + struct.pack("<IIQ", 9, 8, 1 << 60)
    path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + array + bytes(100))
    with pytest.raises(CheckpointError, match="does not end"):
        convert(path, tmp_path / "out")


def fill_store(store: Path, blob: bytes, name: str = "library/gpt-oss/20b") -> Path:
    digest = hashlib.sha256(blob).hexdigest()
    (store / "blobs").mkdir(parents=True)
    (store / "blobs" / f"sha256-{digest}").write_bytes(blob)
    manifest = store / "manifests" / "registry.ollama.ai" / name
    manifest.parent.mkdir(parents=True)
    layers = [
        {"mediaType": "application/vnd.ollama.image.license", "digest": "sha256:" + "0" * 64, "size": 1},
        {"mediaType": "application/vnd.ollama.image.model", "digest": f"sha256:{digest}", "size": len(blob)},
    ]
    manifest.write_text(json.dumps({"schemaVersion": 2, "layers": layers}))
    return manifest


def test_ollama_store(tmp_path: Path) -> None:
    source = write_gguf(tmp_path / "model.gguf", CONFIG, 6, ollama=True)
    fill_store(tmp_path / "store", source.read_bytes())
    blob = find_ollama_model("gpt-oss:20b", tmp_path / "store")
    convert(blob, tmp_path / "out")
    assert_same(read_folder(tmp_path / "out"), folder_tensors(CONFIG, 6))
    with pytest.raises(ModelNotFoundError, match="gpt-oss:20b"):
        find_ollama_model("gpt-oss:120b", tmp_path / "store")


@pytest.mark.parametrize("name", ["../x", "a/b/c/d", "gpt-oss:../../x", "", ":", "a b", "gpt-oss:20b/../.."])
def test_ollama_names_cannot_wander(tmp_path: Path, name: str) -> None:
    with pytest.raises(InvalidRequestError):
        find_ollama_model(name, tmp_path)


def test_damaged_ollama_store(tmp_path: Path) -> None:
    manifest = fill_store(tmp_path, b"GGUF")
    good = json.loads(manifest.read_text())
    for change in ({"digest": "sha256:../../../etc/passwd"}, {"digest": "sha256:" + "1" * 64}, {"size": 9}):
        manifest.write_text(json.dumps({"layers": [good["layers"][1] | change]}))
        with pytest.raises(CheckpointError):
            find_ollama_model("gpt-oss:20b", tmp_path)
    manifest.write_text("{")
    with pytest.raises(CheckpointError, match="JSON"):
        find_ollama_model("gpt-oss:20b", tmp_path)
    shutil.rmtree(tmp_path / "manifests")


def test_store_from_the_environment(tmp_path: Path) -> None:
    assert list(store_folders({"OLLAMA_MODELS": str(tmp_path)})) == [tmp_path]
    assert len(list(store_folders({}))) == 2
