"""Hostile inputs: every mutation gives one clear error, quickly, in little memory, and leaves nothing behind."""

from __future__ import annotations

import json
import resource
import shutil
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mlx_gptoss.convert import convert
from mlx_gptoss.convert.verify import verify
from mlx_gptoss.errors import GptOssError
from tests.convert.gguf_files import write_gguf
from tests.convert.support import snapshot
from tests.tiny import tiny_config, write_hf_checkpoint

CONFIG = tiny_config(num_layers=1, num_experts=2, vocab_size=32)
SHARD = "model-00001-of-00002.safetensors"
INDEX = "model.safetensors.index.json"
TENSOR = "model.embed_tokens.weight"
HUGE = 1 << 62
LIMIT_S = 5.0
LIMIT_KB = 300_000

Change = Callable[[dict[str, Any]], None]


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_hf_checkpoint(tmp_path_factory.mktemp("pristine") / "hf", CONFIG, 1)


@pytest.fixture(scope="module")
def pristine_gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_gguf(tmp_path_factory.mktemp("gguf") / "model.gguf", CONFIG, 1)


def refuses(source: Path, target: Path) -> str:
    """The error's text; checks time, memory, one line, and that nothing is left."""
    before = snapshot(source) if source.is_dir() else {}
    memory, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
    with pytest.raises(GptOssError) as caught:
        convert(source, target)
    assert time.monotonic() - start < LIMIT_S
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory < LIMIT_KB
    assert not target.exists()
    assert before == (snapshot(source) if source.is_dir() else {})
    text = str(caught.value)
    assert "\n" not in text
    assert len(text) < 1500
    return text


def set_at(*path: Any, value: Any) -> Change:
    def change(data: dict[str, Any]) -> None:
        place: Any = data
        for key in path[:-1]:
            place = place[key]
        place[path[-1]] = value

    return change


def drop(*path: Any) -> Change:
    def change(data: dict[str, Any]) -> None:
        place: Any = data
        for key in path[:-1]:
            place = place[key]
        del place[path[-1]]

    return change


WRONG_VALUES: list[Any] = [
    None, True, -1, 0, 1, 3.5, 1e300, float("nan"), float("inf"), HUGE, 10**400, "", "x", "../../x", [], [[]], {},
    [-1, 4], [HUGE, HUGE], ["a", "b"], [0], [1, 2, 3], [4, 0], {"a": 1},
]  # fmt: skip
HEADER_FIELDS = ["dtype", "shape", "data_offsets"]
CONFIG_FIELDS = [
    "model_type", "num_hidden_layers", "hidden_size", "intermediate_size", "num_local_experts", "num_experts_per_tok",
    "num_attention_heads", "num_key_value_heads", "head_dim", "vocab_size", "rope_scaling",
]  # fmt: skip


def rewrite_header(path: Path, change: Change) -> None:
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    change(header)
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + length :])


@pytest.mark.parametrize("value", WRONG_VALUES, ids=repr)
@pytest.mark.parametrize("field", HEADER_FIELDS)
def test_header_fields(tmp_path: Path, pristine: Path, field: str, value: Any) -> None:
    source = shutil.copytree(pristine, tmp_path / "hf")
    rewrite_header(source / SHARD, set_at(TENSOR, field, value=value))
    refuses(source, tmp_path / "out")


def overlap(header: dict[str, Any]) -> None:
    names = [n for n in header if n != "__metadata__" and len(header[n]["shape"]) == 2]
    header[names[1]] = dict(header[names[0]])


def swap(header: dict[str, Any]) -> None:
    names = [n for n in header if n != "__metadata__"]
    header[names[0]], header[names[-1]] = header[names[-1]], header[names[0]]


@pytest.mark.parametrize(
    "change",
    [
        overlap, swap, drop(TENSOR), drop(TENSOR, "dtype"), drop(TENSOR, "shape"), drop(TENSOR, "data_offsets"),
        set_at(TENSOR, value=7), set_at(TENSOR, value=[]), set_at("__metadata__", value=3), dict.clear,
        set_at("ghost", value={"dtype": "F32", "shape": [HUGE], "data_offsets": [0, 0]}),
        set_at("ghost", value={"dtype": "F32", "shape": [1 << 31, 1 << 31, 1 << 31], "data_offsets": [0, 8]}),
        set_at("ghost", value={"dtype": "U8", "shape": [1], "data_offsets": [5, 6]}),
        set_at(TENSOR, "dtype", value="F64"), set_at(TENSOR, "dtype", value="U16"),
        set_at(TENSOR, "dtype", value="F16 "),
    ],
)  # fmt: skip
def test_header_structure(tmp_path: Path, pristine: Path, change: Change) -> None:
    source = shutil.copytree(pristine, tmp_path / "hf")
    rewrite_header(source / SHARD, change)
    refuses(source, tmp_path / "out")


@pytest.mark.parametrize(
    "raw",
    [
        b"", b"\0" * 7, b"\0" * 8, b"\xff" * 8, b"\xff" * 64, struct.pack("<Q", 1 << 40) + b"{}",
        struct.pack("<Q", 2) + b"{",
        struct.pack("<Q", 2) + b"[]", struct.pack("<Q", 2) + b"{}" + b"x", struct.pack("<Q", 4) + b'{"a"',
        struct.pack("<Q", 200_000) + b"[" * 200_000, struct.pack("<Q", 100_000) + b'{"a":' * 20_000,
        struct.pack("<Q", 3) + b"\xff\xfe{", struct.pack("<Q", 20_000) + b"9" * 20_000,
        b"PK\x03\x04" + bytes(100), b"<!DOCTYPE html><html>not found</html>" * 4,
        b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
    ],
    ids=lambda raw: repr(raw[:12]),
)  # fmt: skip
def test_raw_shards(tmp_path: Path, pristine: Path, raw: bytes) -> None:
    source = shutil.copytree(pristine, tmp_path / "hf")
    (source / SHARD).write_bytes(raw)
    refuses(source, tmp_path / "out")


def test_duplicate_names(tmp_path: Path, pristine: Path) -> None:
    source = shutil.copytree(pristine, tmp_path / "hf")
    data = (source / SHARD).read_bytes()
    length = int.from_bytes(data[:8], "little")
    text = data[8 : 8 + length].rstrip()
    entry = json.dumps(json.loads(text)[TENSOR])
    text = text[:-1] + f', "{TENSOR}": {entry}}}'.encode()
    (source / SHARD).write_bytes(len(text).to_bytes(8, "little") + text + data[8 + length :])
    assert "twice" in refuses(source, tmp_path / "out")


@pytest.mark.parametrize("length", [0, 1, 8, 100, 0.5, -1, -100])
def test_truncated_shards(tmp_path: Path, pristine: Path, length: float) -> None:
    source = shutil.copytree(pristine, tmp_path / "hf")
    data = (source / SHARD).read_bytes()
    (source / SHARD).write_bytes(data[: int(len(data) * length) if isinstance(length, float) else length])
    refuses(source, tmp_path / "out")


PATH_TRICKS = [
    "../../x", "../hf/" + SHARD, "/etc/passwd", "/etc/passwd.safetensors", "sub/x.safetensors", "..", ".", "",
    "a\0b.safetensors",
    "..\\x.safetensors", ".hidden.safetensors", "x.safetensors", "config.json", "~/x.safetensors",
    "x" * 5000 + ".safetensors",
    "model\n.safetensors",
]  # fmt: skip


@pytest.mark.parametrize("name", PATH_TRICKS, ids=lambda n: repr(n[:30]))
def test_index_paths(tmp_path: Path, pristine: Path, name: str) -> None:
    source = shutil.copytree(pristine, tmp_path / "hf")
    index = json.loads((source / INDEX).read_text())
    index["weight_map"][TENSOR] = name
    (source / INDEX).write_text(json.dumps(index))
    refuses(source, tmp_path / "out")


@pytest.mark.parametrize("value", [None, 3, [], {}, {"a": 1}, {"a": None}, {"a": {}}, {"a": ["x"]}, "x"], ids=repr)
def test_index_structure(tmp_path: Path, pristine: Path, value: Any) -> None:
    source = shutil.copytree(pristine, tmp_path / "hf")
    (source / INDEX).write_text(json.dumps({"weight_map": value}))
    refuses(source, tmp_path / "out")


def test_index_names_an_absent_tensor(tmp_path: Path, pristine: Path) -> None:
    source = shutil.copytree(pristine, tmp_path / "hf")
    index = json.loads((source / INDEX).read_text())
    index["weight_map"]["model.layers.0.extra"] = SHARD
    (source / INDEX).write_text(json.dumps(index))
    assert "model.layers.0.extra" in refuses(source, tmp_path / "out")


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "3", "null", "{" * 5000, '{"weight_map": ' * 5000, "\udcff"], ids=lambda t: t[:6]
)
@pytest.mark.parametrize("name", [INDEX, "config.json"])
def test_broken_json(tmp_path: Path, pristine: Path, name: str, text: str) -> None:
    source = shutil.copytree(pristine, tmp_path / "hf")
    (source / name).write_bytes(text.encode("utf-8", "surrogateescape"))
    refuses(source, tmp_path / "out")


def test_overlong_json(tmp_path: Path, pristine: Path) -> None:
    for name in ("config.json", INDEX):
        source = shutil.copytree(pristine, tmp_path / f"hf {name}")
        with (source / name).open("wb") as f:
            f.truncate(1 << 34)  # sparse
        with pytest.raises(GptOssError, match="too long"):
            convert(source, tmp_path / "out")


@pytest.mark.parametrize(
    "value", [None, True, -1, 0, 1, 7, 10**9, HUGE, 10**400, 2.5, float("nan"), "x", [], {}], ids=repr
)
@pytest.mark.parametrize("field", CONFIG_FIELDS)
def test_config_fields(tmp_path: Path, pristine: Path, field: str, value: Any) -> None:
    source = shutil.copytree(pristine, tmp_path / "hf")
    config = json.loads((source / "config.json").read_text())
    if config[field] == value or (field in ("num_experts_per_tok",) and value in (1,)):
        pytest.skip("this is a valid value")
    if (field, value) == ("num_hidden_layers", 1) or (value is True and config[field] == 1):
        pytest.skip("this is a valid value")
    config[field] = value
    (source / "config.json").write_text(json.dumps(config))
    refuses(source, tmp_path / "out")


def gguf_positions(data: bytes) -> list[int]:
    """Places of every length, count, type and offset in a GGUF header's first part and its tensor table."""
    table = data.index(b"token_embd.weight") - 8
    return [0, 4, 8, 16, 24, *range(60, 400, 23), *range(table, table + 300, 4)]


def test_gguf_headers(tmp_path: Path, pristine_gguf: Path) -> None:
    data = pristine_gguf.read_bytes()
    refused = 0
    for position in gguf_positions(data):
        for value in (b"\xff" * 8, struct.pack("<Q", 1 << 62), struct.pack("<Q", 0), b"\x00\x00\x00\x80"):
            path = tmp_path / "model.gguf"
            path.write_bytes(data[:position] + value + data[position + len(value) :])
            start, text = time.monotonic(), ""
            try:
                convert(path, tmp_path / "out")
                verify(tmp_path / "out")  # the bytes hit something that does not matter
                shutil.rmtree(tmp_path / "out")
            except GptOssError as error:
                refused += 1
                text = str(error)
            assert "\n" not in text
            assert not (tmp_path / "out").exists()
            assert time.monotonic() - start < LIMIT_S
    assert refused >= 200


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_random_damage_is_refused_or_harmless(
    tmp_path_factory: pytest.TempPathFactory, pristine: Path, pristine_gguf: Path, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("damage")
    if data.draw(st.booleans()):
        source = folder / "model.gguf"
        shutil.copy(pristine_gguf, source)
        victim, header = source, 12_000
    else:
        source = shutil.copytree(pristine, folder / "hf")
        victim = source / data.draw(st.sampled_from([SHARD, INDEX, "config.json"]))
        header = 3_000
    content = bytearray(victim.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        start = data.draw(st.integers(0, min(header, len(content) - 1)))
        patch = data.draw(st.binary(min_size=0, max_size=9))
        content[start : start + data.draw(st.integers(0, 9))] = patch
    victim.write_bytes(content)
    began, text = time.monotonic(), None
    try:
        convert(source, folder / "out")
    except GptOssError as error:
        text = str(error)
    if text is None:
        verify(folder / "out")
    else:
        assert "\n" not in text
        assert not (folder / "out").exists()
    assert time.monotonic() - began < LIMIT_S
