"""Pulling from a hub: what is asked for, resuming, and each way it can fail."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from mlx_gptoss.errors import ConfigError, DownloadError, GptOssError, InsufficientDiskError
from mlx_gptoss.folder import read_manifest
from mlx_gptoss.hub import PullProgress, RemoteModel, look_up, pull
from mlx_gptoss.registry import Registry
from tests.tiny import tiny_config, write_hf_checkpoint
from tests.unit.fake_hub import FakeHub, fake_hub

NAME = "someone/tiny-oss"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hub") / "tiny"
    write_hf_checkpoint(folder, tiny_config(), seed=3)
    for extra in ("original/model.safetensors", "metal/model.bin"):
        (folder / extra).parent.mkdir(parents=True, exist_ok=True)
        (folder / extra).write_bytes(b"not wanted")
    return folder


@pytest.fixture
def hub(checkpoint: Path) -> Iterator[FakeHub]:
    with fake_hub() as server:
        server.repositories[NAME] = checkpoint
        yield server


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    return Registry(tmp_path / "home")


def test_pull_converts_and_becomes_the_default(hub: FakeHub, registry: Registry) -> None:
    seen: list[PullProgress] = []
    folder = pull(NAME, registry=registry, endpoint=hub.endpoint, progress=seen.append)
    assert json.loads((folder / "manifest.json").read_text())
    assert registry.default_name() == NAME
    assert not registry.download_folder(NAME).exists()
    assert {progress.phase for progress in seen} == {"download", "convert"}
    downloads = [progress for progress in seen if progress.phase == "download"]
    assert downloads[-1].completed == downloads[-1].total
    assert all(a.completed <= b.completed for a, b in itertools.pairwise(downloads))
    assert not any("original" in path or "metal" in path for _, path, _ in hub.requests if "resolve" in path)


def test_a_second_pull_of_one_precision_asks_nothing(hub: FakeHub, registry: Registry) -> None:
    eight = {"attention": "q8", "head": "q8"}
    first = pull(NAME, registry=registry, endpoint=hub.endpoint, precision=eight)
    asked = len(hub.requests)
    assert pull(NAME, registry=registry, endpoint=hub.endpoint, precision=eight) == first
    assert len(hub.requests) == asked


def test_a_pull_of_another_precision_replaces_the_folder(hub: FakeHub, registry: Registry) -> None:
    first = pull(NAME, registry=registry, endpoint=hub.endpoint)
    assert pull(NAME, registry=registry, endpoint=hub.endpoint, precision={"head": "q8"}) == first
    assert read_manifest(first).format_of("head").format == "q8"


def test_a_second_pull_asks_nothing(hub: FakeHub, registry: Registry) -> None:
    first = pull(NAME, registry=registry, endpoint=hub.endpoint)
    hub.requests.clear()
    assert pull(NAME, registry=registry, endpoint=hub.endpoint) == first
    assert hub.requests == []


def test_an_interrupted_download_resumes(hub: FakeHub, registry: Registry, tmp_path: Path) -> None:
    # The hub library writes 10 MiB at a time, so only what lies beyond the last whole piece is sent twice.
    folder = tmp_path / "large"
    write_hf_checkpoint(folder, tiny_config(vocab_size=201_088), seed=3)
    largest = max(folder.glob("*.safetensors"), key=lambda path: path.stat().st_size)
    size, piece = largest.stat().st_size, 10 << 20
    assert size > 12 << 20
    hub.repositories[NAME] = folder
    hub.cut_after[largest.name] = 12 << 20
    pull(NAME, registry=registry, endpoint=hub.endpoint)
    assert registry.find(NAME)
    assert f"bytes={piece}-" in {ranged for _, path, ranged in hub.requests if path.endswith(largest.name)}
    assert hub.bytes_sent[largest.name] == size + (2 << 20)


def test_unknown_model(hub: FakeHub, registry: Registry) -> None:
    with pytest.raises(DownloadError, match="no model someone/absent"):
        pull("someone/absent", registry=registry, endpoint=hub.endpoint)
    assert registry.models() == []


def test_gated_model_says_how_to_get_permission(hub: FakeHub, registry: Registry) -> None:
    hub.gated.add(NAME)
    with pytest.raises(DownloadError, match="permission"):
        pull(NAME, registry=registry, endpoint=hub.endpoint)


def test_not_a_checkpoint(hub: FakeHub, registry: Registry, tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("hello")
    hub.repositories["someone/notes"] = tmp_path
    with pytest.raises(ConfigError, match=r"README\.md"):
        look_up("someone/notes", endpoint=hub.endpoint)


def test_no_network(registry: Registry) -> None:
    with pytest.raises(DownloadError, match="network"):
        pull(NAME, registry=registry, endpoint="http://127.0.0.1:9")


def test_offline_is_said(hub: FakeHub, registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(DownloadError, match="HF_HUB_OFFLINE"):
        pull(NAME, registry=registry, endpoint=hub.endpoint)


def test_disk_is_checked_before_the_first_byte(
    hub: FakeHub, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage)
    with pytest.raises(InsufficientDiskError, match="GB free"):
        pull(NAME, registry=registry, endpoint=hub.endpoint)
    assert hub.bytes_sent == {}


def test_the_caller_may_refuse(hub: FakeHub, registry: Registry) -> None:
    def refuse(model: RemoteModel) -> None:
        raise GptOssError(f"too large: {model.size_bytes > 0}")

    with pytest.raises(GptOssError, match="too large: True"):
        pull(NAME, registry=registry, endpoint=hub.endpoint, accept=refuse)
    assert hub.bytes_sent == {}
