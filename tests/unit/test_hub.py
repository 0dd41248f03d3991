"""Pulling from a hub: what is asked for, resuming, and each way it can fail."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from mlx_gptoss.errors import ConfigError, DownloadError, GptOssError, InsufficientDiskError
from mlx_gptoss.folder import read_manifest
from mlx_gptoss.hub import PullProgress, RemoteModel, look_up, pull
from mlx_gptoss.names import convert_source
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


def test_a_revision_that_is_here_is_not_downloaded_again(hub: FakeHub, registry: Registry) -> None:
    first = pull(NAME, registry=registry, endpoint=hub.endpoint)
    hub.bytes_sent.clear()
    assert pull(NAME, registry=registry, endpoint=hub.endpoint, revision="main") == first
    assert hub.bytes_sent == {}
    pull(NAME, registry=registry, endpoint=hub.endpoint, revision="main", precision={"head": "q8"})
    assert hub.bytes_sent != {}


def test_an_interrupted_download_resumes(hub: FakeHub, registry: Registry, tmp_path: Path) -> None:
    # Pieces of 1 MiB are written, so that what lies beyond the last whole one is sent twice.
    folder = tmp_path / "large"
    write_hf_checkpoint(folder, tiny_config(vocab_size=201_088), seed=3)
    largest = max(folder.glob("*.safetensors"), key=lambda path: path.stat().st_size)
    size, cut = largest.stat().st_size, (12 << 20) + 1000
    assert size > cut
    hub.repositories[NAME] = folder
    hub.cut_after[largest.name] = cut
    pull(NAME, registry=registry, endpoint=hub.endpoint)
    assert registry.find(NAME)
    assert f"bytes={12 << 20}-" in {ranged for _, path, ranged in hub.requests if path.endswith(largest.name)}
    assert hub.bytes_sent[largest.name] == size + 1000


@pytest.fixture
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mlx_gptoss.download.FIRST_PAUSE_S", 0.0)


@pytest.mark.usefixtures("no_pauses")
def test_what_has_arrived_is_kept_for_the_next_command(hub: FakeHub, registry: Registry) -> None:
    """Also when the program is killed: a part stays a part until it is whole."""
    largest = max(hub.repositories[NAME].glob("*.safetensors"), key=lambda path: path.stat().st_size)
    part = registry.download_folder(NAME) / f"{largest.name}.part"
    part.parent.mkdir(parents=True)
    part.write_bytes(largest.read_bytes()[:1234])
    hub.refusals[largest.name] = [503] * 5
    with pytest.raises(DownloadError, match=r"503.*resumes"):
        pull(NAME, registry=registry, endpoint=hub.endpoint)
    assert part.stat().st_size == 1234
    pull(NAME, registry=registry, endpoint=hub.endpoint)
    assert hub.bytes_sent[largest.name] == largest.stat().st_size - 1234


@pytest.mark.usefixtures("no_pauses")
@pytest.mark.parametrize("trouble", ["busy", "no_ranges", "longer_part"])
def test_trouble_that_passes_costs_nothing(trouble: str, hub: FakeHub, registry: Registry) -> None:
    largest = max(hub.repositories[NAME].glob("*.safetensors"), key=lambda path: path.stat().st_size)
    part = registry.download_folder(NAME) / f"{largest.name}.part"
    part.parent.mkdir(parents=True)
    part.write_bytes(b"x" * (largest.stat().st_size + 1) if trouble == "longer_part" else largest.read_bytes()[:100])
    hub.refusals[largest.name] = [500, 429, 503] if trouble == "busy" else []
    hub.no_ranges = trouble == "no_ranges"
    assert (pull(NAME, registry=registry, endpoint=hub.endpoint) / "manifest.json").is_file()


@pytest.mark.usefixtures("no_pauses")
@pytest.mark.parametrize(
    ("trouble", "said"),
    [("damaged", "arrived damaged"), ("damaged_part", "arrived damaged"), ("wrong_ranges", "another part")],
)
def test_wrong_bytes_never_become_a_file(trouble: str, said: str, hub: FakeHub, registry: Registry) -> None:
    largest = max(hub.repositories[NAME].glob("*.safetensors"), key=lambda path: path.stat().st_size)
    part = registry.download_folder(NAME) / f"{largest.name}.part"
    if trouble == "damaged":
        hub.damaged.add(largest.name)
    else:
        part.parent.mkdir(parents=True)
        part.write_bytes(b"x" * 100)
        hub.wrong_ranges = trouble == "wrong_ranges"
    with pytest.raises(DownloadError, match=said):
        pull(NAME, registry=registry, endpoint=hub.endpoint)
    assert not part.with_suffix("").exists()
    hub.damaged.clear()
    hub.wrong_ranges = False
    if trouble == "wrong_ranges":
        part.unlink()
    assert (pull(NAME, registry=registry, endpoint=hub.endpoint) / "manifest.json").is_file()


def test_a_token_stays_with_the_host_it_is_for(
    hub: FakeHub, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    hub.elsewhere = True
    pull(NAME, registry=registry, endpoint=hub.endpoint)
    assert {token for host, token in hub.tokens if host == "127.0.0.1"} == {"Bearer hf_secret"}
    assert {token for host, token in hub.tokens if host == "localhost"} == {None}


def test_a_file_that_is_refused_says_so(hub: FakeHub, registry: Registry) -> None:
    hub.refusals["config.json"] = [410]
    with pytest.raises(DownloadError, match="410"):
        pull(NAME, registry=registry, endpoint=hub.endpoint)
    hub.refusals["config.json"] = [401]
    with pytest.raises(DownloadError, match="permission"):
        pull(NAME, registry=registry, endpoint=hub.endpoint)


def test_a_disk_that_fills_up_says_so_and_resumes(
    hub: FakeHub, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("mlx_gptoss.download.Downloader._receive", full)
        with pytest.raises(InsufficientDiskError, match="resumes"):
            pull(NAME, registry=registry, endpoint=hub.endpoint)
    assert (pull(NAME, registry=registry, endpoint=hub.endpoint) / "manifest.json").is_file()


def test_two_pulls_of_one_model_take_turns(hub: FakeHub, registry: Registry) -> None:
    pulled: list[Path] = []
    both = [
        threading.Thread(target=lambda: pulled.append(pull(NAME, registry=registry, endpoint=hub.endpoint)))
        for _ in range(2)
    ]
    for one in both:
        one.start()
    for one in both:
        one.join(60)
    assert pulled == [registry.model_folder(NAME)] * 2
    asked = [path for method, path, _ in hub.requests if method == "GET" and path.endswith("config.json")]
    assert len(asked) == 1


KILLED = """
import sys
from pathlib import Path
import mlx_gptoss.download as download
from mlx_gptoss.hub import pull
from mlx_gptoss.names import convert_source
from mlx_gptoss.registry import Registry
download.PIECE_BYTES = 1000
def stop(progress):
    if progress.file.endswith(".safetensors") and progress.completed > 20_000:
        import os
        os.kill(os.getpid(), 9)
pull(sys.argv[1], registry=Registry(Path(sys.argv[2])), endpoint=sys.argv[3], progress=stop)
"""


def test_a_killed_download_resumes(hub: FakeHub, registry: Registry) -> None:
    command = [sys.executable, "-c", KILLED, NAME, str(registry.home), hub.endpoint]
    assert subprocess.run(command, check=False, timeout=60).returncode == -9
    parts = [path.stat().st_size for path in registry.download_folder(NAME).glob("*.part")]
    assert len(parts) == 1
    assert parts[0] > 0
    pull(NAME, registry=registry, endpoint=hub.endpoint)
    assert f"bytes={parts[0]}-" in {ranged for _, _, ranged in hub.requests}


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


def test_another_revision_takes_nothing_from_what_was_kept(
    hub: FakeHub, registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two revisions of a fine-tune have files of equal sizes and other weights."""
    folder = pull(NAME, registry=registry, endpoint=hub.endpoint, keep_download=True)
    fresh = tmp_path / "fresh"
    write_hf_checkpoint(fresh, tiny_config(), seed=4)
    hub.repositories[NAME] = fresh
    monkeypatch.setattr("tests.unit.fake_hub.COMMIT", "f" * 40)
    pull(NAME, registry=registry, endpoint=hub.endpoint, revision="v2", keep_download=True)
    direct = convert_source(fresh, tmp_path / "direct")
    assert _hashes(folder) == _hashes(direct)
    kept = registry.download_folder(NAME)
    assert all((kept / path.name).read_bytes() == path.read_bytes() for path in fresh.glob("*.safetensors"))


def test_an_unfinished_download_of_another_revision_is_not_gone_on_with(
    hub: FakeHub, registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    largest = max(hub.repositories[NAME].glob("*.safetensors"), key=lambda path: path.stat().st_size)
    hub.refusals[largest.name] = [404]
    with pytest.raises(DownloadError):
        pull(NAME, registry=registry, endpoint=hub.endpoint)
    fresh = tmp_path / "fresh"
    write_hf_checkpoint(fresh, tiny_config(), seed=4)
    hub.repositories[NAME] = fresh
    monkeypatch.setattr("tests.unit.fake_hub.COMMIT", "f" * 40)
    folder = pull(NAME, registry=registry, endpoint=hub.endpoint)
    assert _hashes(folder) == _hashes(convert_source(fresh, tmp_path / "direct"))


def _hashes(folder: Path) -> dict[str, str]:
    return {tensor.name: tensor.sha256 for tensor in read_manifest(folder).tensors}


def test_what_is_no_gpt_oss_is_refused_before_its_weights_are_sent(
    hub: FakeHub, registry: Registry, tmp_path: Path
) -> None:
    llama = tmp_path / "llama"
    llama.mkdir()
    (llama / "config.json").write_text('{"model_type": "llama"}')
    (llama / "model.safetensors").write_bytes(b"0" * 5000)
    hub.repositories["someone/llama"] = llama
    with pytest.raises(ConfigError, match=r"not a gpt-oss model.*llama"):
        pull("someone/llama", registry=registry, endpoint=hub.endpoint)
    assert set(hub.bytes_sent) == {"config.json"}
    assert not registry.download_folder("someone/llama").exists()
