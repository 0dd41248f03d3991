"""Back to the Hugging Face layout, verify, show, precisions and their commands."""

from __future__ import annotations

import json
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from click.testing import CliRunner

from mlx_gptoss.cli.convert_cmd import convert as convert_command
from mlx_gptoss.cli.convert_cmd import export as export_command
from mlx_gptoss.cli.convert_cmd import show_folder, show_tensors
from mlx_gptoss.cli.convert_cmd import verify as verify_command
from mlx_gptoss.convert import PRESETS, convert
from mlx_gptoss.convert.export import export
from mlx_gptoss.convert.summary import summarise
from mlx_gptoss.convert.verify import verify
from mlx_gptoss.errors import CheckpointError, ConversionError, InvalidRequestError
from mlx_gptoss.folder import LinearFormat, read_manifest
from tests.convert.support import assert_same, read_folder, read_safetensors
from tests.tiny import Tensor, folder_tensors, hf_tensors, tiny_config, write_hf_checkpoint

DENSE = Path(__file__).parent.parent / "golden" / "convert" / "dense"
CONFIG = tiny_config(num_layers=2, hidden_size=128)


def read_hf(folder: Path) -> dict[str, Tensor]:
    index = json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]
    tensors: dict[str, Tensor] = {}
    for file in sorted(set(index.values())):
        tensors |= read_safetensors(folder / file)
    assert set(tensors) == set(index)
    return tensors


@pytest.mark.parametrize("shard", [100_000, 5_000_000_000])
def test_round_trip_is_byte_equal(tmp_path: Path, shard: int) -> None:
    source = write_hf_checkpoint(tmp_path / "hf", CONFIG, 3)
    convert(source, tmp_path / "model")
    exported = export(tmp_path / "model", tmp_path / "back", shard_bytes=shard)
    assert_same(read_hf(tmp_path / "back"), hf_tensors(CONFIG, 3))
    assert (tmp_path / "back" / "config.json").read_bytes() == (source / "config.json").read_bytes()
    assert exported.dequantised == ()
    assert (len(exported.files) > 1) == (shard == 100_000)
    convert(tmp_path / "back", tmp_path / "again")
    assert_same(read_folder(tmp_path / "again"), folder_tensors(CONFIG, 3))


def test_dense_experts_round_trip(tmp_path: Path) -> None:
    convert(DENSE, tmp_path / "model", experts="bf16")
    export(tmp_path / "model", tmp_path / "back")
    assert_same(read_hf(tmp_path / "back"), read_safetensors(DENSE / "model.safetensors"))
    assert "quantization_config" not in json.loads((tmp_path / "back" / "config.json").read_text())


@pytest.mark.parametrize("choice", ["mxfp8", "q8", "q6", "q4"])
def test_precisions_are_mlxs_own_quantisation(tmp_path: Path, choice: str) -> None:
    convert(write_hf_checkpoint(tmp_path / "hf", CONFIG, 3), tmp_path / "model", attention=choice, head=choice)
    read, manifest = read_folder(tmp_path / "model"), read_manifest(tmp_path / "model")
    group = 32 if choice == "mxfp8" else 64
    assert manifest.format_of("layers.1.out") == LinearFormat(choice, group)  # type: ignore[arg-type]
    assert manifest.format_of("embed") == LinearFormat("bf16")
    for name in ("layers.0.qkv", "head"):
        dense = mx.array(folder_tensors(CONFIG, 3)[f"{name}.weight"].data).view(mx.bfloat16)
        mode = "mxfp8" if choice == "mxfp8" else "affine"
        parts = mx.quantize(dense, group_size=group, bits=8 if mode == "mxfp8" else int(choice[1:]), mode=mode)
        for part, array in zip(("weight", "scales", "biases"), parts, strict=False):
            array = array.view(mx.uint16) if array.dtype == mx.bfloat16 else array
            assert read[f"{name}.{part}"].data.tobytes() == np.array(array).tobytes(), (name, part)
    exported = export(tmp_path / "model", tmp_path / "back")
    assert set(exported.dequantised) == {"head", *(f"layers.{i}.{m}" for i in range(2) for m in ("qkv", "out"))}
    back, expected = read_hf(tmp_path / "back"), hf_tensors(CONFIG, 3)
    assert set(back) == set(expected)
    for name, tensor in expected.items():
        same = back[name].data.tobytes() == tensor.data.tobytes()
        assert same == (not name.endswith(("_proj.weight", "lm_head.weight"))), name


def test_a_model_folder_is_a_source_too(tmp_path: Path) -> None:
    source = write_hf_checkpoint(tmp_path / "hf", CONFIG, 3)
    convert(source, tmp_path / "plain")
    convert(source, tmp_path / "direct", head="q6", attention="mxfp8")
    convert(tmp_path / "plain", tmp_path / "again", head="q6", attention="mxfp8")
    assert_same(read_folder(tmp_path / "again"), read_folder(tmp_path / "direct"))
    convert(tmp_path / "direct", tmp_path / "carried")
    assert_same(read_folder(tmp_path / "carried"), read_folder(tmp_path / "direct"))
    convert(tmp_path / "direct", tmp_path / "back", head="bf16")
    assert read_manifest(tmp_path / "back").format_of("head") == LinearFormat("bf16")
    assert read_manifest(tmp_path / "back").format_of("layers.0.qkv") == LinearFormat("mxfp8", 32)


def test_group_32_where_64_does_not_divide(tmp_path: Path) -> None:
    source = write_hf_checkpoint(tmp_path / "hf", tiny_config(num_layers=1))
    convert(source, tmp_path / "model", embedding="q6", attention="q4")
    manifest = read_manifest(tmp_path / "model")
    assert manifest.format_of("embed") == LinearFormat("q6", 32)
    assert manifest.format_of("layers.0.out") == LinearFormat("q4", 64)
    read_folder(tmp_path / "model")


def test_presets_are_valid_choices(tmp_path: Path) -> None:
    source = write_hf_checkpoint(tmp_path / "hf", CONFIG)
    for name, preset in PRESETS.items():
        manifest = convert(
            source, tmp_path / name, attention=preset.attention, embedding=preset.embedding, head=preset.head
        )
        assert manifest.precision == preset.to_dict()
    with pytest.raises(InvalidRequestError, match="q5"):
        convert(source, tmp_path / "bad", head="q5")


def test_verify_names_what_is_damaged(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    convert(write_hf_checkpoint(tmp_path / "hf", CONFIG), folder)
    assert verify(folder).tensors == len(folder_tensors(CONFIG))
    record = read_manifest(folder)["layers.1.down.blocks"]
    path = folder / record.file
    data = bytearray(path.read_bytes())
    data[record.offset + record.nbytes - 1] ^= 1
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match=r"layers\.1\.down\.blocks"):
        verify(folder)
    data[record.offset + record.nbytes - 1] ^= 1
    path.write_bytes(data)
    verify(folder)
    config = (folder / "config.json").read_text()
    (folder / "config.json").write_text(config + " ")
    with pytest.raises(CheckpointError, match=r"config\.json"):
        verify(folder)
    (folder / "config.json").write_text(config)
    path.write_bytes(data[:-1])
    with pytest.raises(CheckpointError, match="length"):
        verify(folder)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("format_version",), 2), (("format_version",), "1"), (("tensors", 0, "offset"), 5),
        (("tensors", 0, "nbytes"), 1),
        (("tensors", 0, "shape"), [-1]), (("tensors", 0, "dtype"), "I8"), (("tensors", 0, "file"), "../x"),
        (("tensors", 3, "name"), "embed.weight"), (("tensors", 1, "offset"), 1 << 50), (("files",), {"../a": 1}),
        (("tensors",), {}), (("formats", "embed", "format"), "q5"), (("source",), None), (("config_sha256",), 3),
        (("tensors", 0, "shape"), [1 << 45, 1 << 45]), (("tensors", 2, "offset"), 16384),
    ],
)  # fmt: skip
def test_bad_manifests(tmp_path: Path, path: tuple[str | int, ...], value: object) -> None:
    folder = tmp_path / "model"
    convert(write_hf_checkpoint(tmp_path / "hf", CONFIG), folder)
    data = json.loads((folder / "manifest.json").read_text())
    place = data
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    (folder / "manifest.json").write_text(json.dumps(data))
    with pytest.raises(CheckpointError):
        verify(folder)


def test_summary_counts_every_byte_and_only_the_chosen_experts(tmp_path: Path) -> None:
    convert(write_hf_checkpoint(tmp_path / "hf", CONFIG), tmp_path / "model", head="q8")
    summary = summarise(tmp_path / "model")
    assert summary.nbytes == summary.manifest.nbytes
    parts = {p.name: p for p in summary.parts}
    assert parts["experts"].per_token == pytest.approx(parts["experts"].nbytes * 2 / 5, rel=0.01)
    assert parts["embedding"].per_token == 2 * CONFIG.hidden_size
    assert parts["head"].format == "q8 (group 64)"
    assert sum(p.share for p in summary.parts) == pytest.approx(1)


def test_export_refuses_a_full_target(tmp_path: Path) -> None:
    convert(write_hf_checkpoint(tmp_path / "hf", CONFIG), tmp_path / "model")
    export(tmp_path / "model", tmp_path / "back")
    with pytest.raises(ConversionError, match="already"):
        export(tmp_path / "model", tmp_path / "back")
    export(tmp_path / "model", tmp_path / "back", overwrite=True)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").write_text("mine")
    with pytest.raises(ConversionError, match=r"thesis\.txt"):
        export(tmp_path / "model", tmp_path / "other")


def test_commands(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = write_hf_checkpoint(tmp_path / "hf", CONFIG)
    model, runner = str(tmp_path / "model"), CliRunner()
    made = runner.invoke(convert_command, [str(source), model, "--for", "24gb", "--attention", "bf16"])
    assert made.exit_code == 0, made.output
    assert read_manifest(model).precision == {"attention": "bf16", "embedding": "q8", "head": "q8", "experts": "mxfp4"}
    checked = runner.invoke(verify_command, [model])
    assert "all as written" in checked.output
    back = runner.invoke(export_command, [model, str(tmp_path / "back")])
    assert back.exit_code == 0
    assert "2 matrices were dequantised" in back.output
    show_folder(Path(model))
    assert "q8 (group 64)" in capsys.readouterr().out
    show_folder(Path(model), as_json=True)
    assert json.loads(capsys.readouterr().out)["precision"]["head"] == "q8"
    show_tensors(Path(model))
    assert "gate_up" in capsys.readouterr().out
