"""The demo's model folder: made once, replaced when the package brings another checkpoint, by one process at a time."""

from __future__ import annotations

import fcntl
import logging
import multiprocessing
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from mlx_gptoss import demo_folder as module
from mlx_gptoss.demo import demo_revision
from mlx_gptoss.demo_folder import demo_folder
from mlx_gptoss.errors import GptOssError, InsufficientDiskError
from mlx_gptoss.folder import read_manifest
from mlx_gptoss.names import resolve_model
from mlx_gptoss.registry import Registry
from mlx_gptoss.turn_lock import turn_lock
from tests.tiny import tiny_config, write_hf_checkpoint


class Package:
    """A package whose demo checkpoint a test may change: `seed` makes the weights."""

    def __init__(self) -> None:
        self.seed = 1
        self.unpacked = 0

    def revision(self) -> str:
        return f"checkpoint-{self.seed}"

    def unpack(self, target: Path) -> Path:
        self.unpacked += 1
        return write_hf_checkpoint(target, tiny_config(), seed=self.seed)


@pytest.fixture
def package(monkeypatch: pytest.MonkeyPatch) -> Package:
    made = Package()
    monkeypatch.setattr(module, "demo_revision", made.revision)
    monkeypatch.setattr(module, "unpack_demo", made.unpack)
    return made


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    return Registry(tmp_path)


def weights_of(folder: Path) -> bytes:
    return b"".join(path.read_bytes() for path in sorted(folder.glob("*.safetensors")))


def leftovers(registry: Registry) -> list[str]:
    return [path.name for path in [*(registry.home / "models").iterdir(), *(registry.home / "downloads").iterdir()]]


def test_it_is_made_once(package: Package, registry: Registry) -> None:
    folder = resolve_model("demo", registry=registry)
    assert resolve_model("demo:latest", registry=registry) == folder
    assert package.unpacked == 1
    assert read_manifest(folder).source.revision == "checkpoint-1"
    assert leftovers(registry) == ["demo"]


def test_another_checkpoint_replaces_it_and_whoever_has_it_open_keeps_it(package: Package, registry: Registry) -> None:
    folder = demo_folder(registry)
    before = weights_of(folder)
    with next(folder.glob("*.safetensors")).open("rb") as opened:
        package.seed = 2
        assert demo_folder(registry) == folder
        assert weights_of(folder) != before
        assert opened.read() == before
    assert read_manifest(folder).source.revision == "checkpoint-2"
    assert leftovers(registry) == ["demo"]


@pytest.mark.parametrize("state", ["no_revision", "bad_manifest", "half_converted"])
def test_a_folder_of_unknown_origin_is_replaced(state: str, package: Package, registry: Registry) -> None:
    folder = demo_folder(registry)
    manifest = folder / "manifest.json"
    if state == "no_revision":
        manifest.write_text(manifest.read_text().replace('"checkpoint-1"', "null"))
    elif state == "bad_manifest":
        manifest.write_text("{")
    else:
        manifest.unlink()
    demo_folder(registry)
    assert read_manifest(folder).source.revision == "checkpoint-1"


def test_an_end_between_making_and_putting_in_place_is_mended(
    package: Package, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    demo_folder(registry)
    package.seed = 2
    swap = Path.rename

    def killed(self: Path, target: Path) -> Path:
        if self.name == ".demo.new":
            raise KeyboardInterrupt
        return swap(self, target)

    monkeypatch.setattr(Path, "rename", killed)
    with pytest.raises(KeyboardInterrupt):
        demo_folder(registry)
    monkeypatch.setattr(Path, "rename", swap)
    assert not registry.models()
    made = package.unpacked
    assert read_manifest(demo_folder(registry)).source.revision == "checkpoint-2"
    assert package.unpacked == made
    assert leftovers(registry) == ["demo"]


def test_where_it_cannot_be_replaced_the_older_one_answers(
    package: Package, registry: Registry, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    folder = demo_folder(registry)
    before = weights_of(folder)
    package.seed = 2

    def full(_: Path) -> Path:
        raise InsufficientDiskError("no space left to unpack the demo checkpoint")

    monkeypatch.setattr(module, "unpack_demo", full)
    assert demo_folder(registry) == folder
    assert weights_of(folder) == before
    assert ["cannot be brought up to date" in record.getMessage() for record in caplog.records] == [True]
    with pytest.raises(InsufficientDiskError):
        demo_folder(Registry(registry.home / "elsewhere"))


def test_the_disk_is_checked_before_the_first_byte(
    package: Package, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 300_000_000}))
    with pytest.raises(InsufficientDiskError, match="GB free"):
        demo_folder(registry)
    assert package.unpacked == 0
    assert not registry.models()


def test_a_home_that_cannot_be_written_is_one_clear_error(package: Package, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(GptOssError, match="MLX_GPTOSS_HOME"):
        demo_folder(Registry(tmp_path / "file"))


def hold(path: Path, held: object, done: object) -> None:
    with turn_lock(path, "holding"):
        held.set()  # type: ignore[attr-defined]  # an Event of multiprocessing
        done.wait(60)  # type: ignore[attr-defined]


@pytest.fixture
def holder(registry: Registry) -> Iterator[object]:
    """Another process that holds the demo's lock until the event is set."""
    context = multiprocessing.get_context("spawn")
    held, done = context.Event(), context.Event()
    process = context.Process(target=hold, args=(registry.lock_file("demo"), held, done))
    process.start()
    assert held.wait(60)
    yield done
    done.set()
    process.join(60)


def test_a_second_process_waits_and_says_so_once(
    holder: object, package: Package, registry: Registry, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    found: list[Path] = []
    waiter = threading.Thread(target=lambda: found.append(demo_folder(registry)))
    waiter.start()
    waiter.join(0.5)
    assert waiter.is_alive()
    holder.set()  # type: ignore[attr-defined]  # an Event of multiprocessing
    waiter.join(60)
    assert found == [registry.model_folder("demo")]
    lines = [record.getMessage() for record in caplog.records]
    assert lines == ["another process is preparing the demo checkpoint; waiting for it"]


def test_waiting_has_an_end(holder: object, registry: Registry) -> None:
    with (
        pytest.raises(GptOssError, match="still preparing after 0 s"),
        turn_lock(registry.lock_file("demo"), "preparing", wait_s=0.2),
    ):
        pass


def test_a_file_system_without_locks_does_not_stop_anybody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(_handle: int, _how: int) -> None:
        raise OSError(45, "Operation not supported")

    monkeypatch.setattr(fcntl, "flock", none)
    with turn_lock(tmp_path / "lock", "nothing"):
        pass


def test_two_commands_at_once_both_get_the_real_demo(tmp_path: Path) -> None:
    environment = {**os.environ, "MLX_GPTOSS_HOME": str(tmp_path / "home")}
    commands = [
        subprocess.Popen(
            [sys.executable, "-c", "from mlx_gptoss.cli import main; main()", "pull", "demo"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
        )
        for _ in range(2)
    ]
    ended = [(*command.communicate(timeout=120), command.returncode) for command in commands]
    folder = Registry(tmp_path / "home").model_folder("demo")
    assert [(out.strip(), code) for out, _, code in ended] == [(str(folder), 0)] * 2
    assert read_manifest(folder).source.revision == demo_revision()
