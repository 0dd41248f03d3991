"""Killed, full, changed, shared: the target is absent, resumable or complete, and the source is never touched."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mlx_gptoss.convert import convert
from mlx_gptoss.convert.export import export
from mlx_gptoss.convert.journal import JOURNAL_NAME
from mlx_gptoss.convert.target import open_target
from mlx_gptoss.convert.tensors import Stored
from mlx_gptoss.errors import CheckpointError, ConversionError, GptOssError, InsufficientDiskError
from mlx_gptoss.folder import MANIFEST_NAME, is_model_folder, read_manifest
from mlx_gptoss.names import resolve_model
from mlx_gptoss.registry import Registry
from tests.convert.support import assert_same, read_folder, snapshot
from tests.tiny import folder_tensors, tiny_config, write_hf_checkpoint

CONFIG = tiny_config()


class StopError(Exception):
    """Stands for a crash in the middle of a conversion."""


def stop_after(fraction: float) -> Any:
    def progress(done: int, total: int) -> None:
        if done > total * fraction:
            raise StopError

    return progress


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_hf_checkpoint(tmp_path / "hf", CONFIG, 1)


def kill_loop(tmp_path: Path, kills: int, seed: int) -> None:
    config = tiny_config(num_layers=8, num_experts=16, vocab_size=2000)
    source = write_hf_checkpoint(tmp_path / "hf", config, 1)
    before = snapshot(source)
    target = tmp_path / "out"
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "tests.convert.kill_loop", source, target, str(kills), str(seed)],
        capture_output=True, text=True, timeout=280, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["final"] == "complete"
    assert sum(report["counts"].values()) == kills
    assert report["counts"]["resumable"] > 0
    assert report["resumed"] > 0
    assert_same(read_folder(target), folder_tensors(config, 1))
    assert snapshot(source) == before


def test_killed_25_times(tmp_path: Path) -> None:
    kill_loop(tmp_path, 25, 1)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_killed_200_times(tmp_path: Path, seed: int) -> None:
    kill_loop(tmp_path, 200, seed)


@pytest.mark.parametrize("fraction", [0.0, 0.3, 0.7, 0.99])
def test_resuming_does_not_read_finished_tensors_again(
    tmp_path: Path, source: Path, fraction: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(StopError):
        convert(source, tmp_path / "out", progress=stop_after(fraction), sync_bytes=0, shard_bytes=300_000)
    assert not is_model_folder(tmp_path / "out")
    with pytest.raises(CheckpointError, match="not a complete model folder"):
        read_manifest(tmp_path / "out")
    lines = (tmp_path / "out" / JOURNAL_NAME).read_text().splitlines()[1:]
    finished = {json.loads(line)["job"] for line in lines}
    read: set[str] = set()
    fill = Stored.fill

    def spy(self: Stored, start: int, out: Any) -> None:
        read.add(self.entry.name)
        fill(self, start, out)

    monkeypatch.setattr(Stored, "fill", spy)
    convert(source, tmp_path / "out", shard_bytes=300_000)
    plain = {"embed.weight": "model.embed_tokens.weight", "head.weight": "lm_head.weight"}
    for ours, theirs in plain.items():
        assert (theirs in read) == (ours not in finished)
    assert (fraction < 0.3) or finished
    assert_same(read_folder(tmp_path / "out"), folder_tensors(CONFIG, 1))
    assert not (tmp_path / "out" / JOURNAL_NAME).exists()


def test_a_torn_journal_line_is_ignored(tmp_path: Path, source: Path) -> None:
    with pytest.raises(StopError):
        convert(source, tmp_path / "out", progress=stop_after(0.6), sync_bytes=0)
    journal = tmp_path / "out" / JOURNAL_NAME
    data = journal.read_bytes()
    for damaged in (data[:-7], data + b'{"job": "embed', data[:5], b"", b"\xff\x00\n" + data):
        journal.write_bytes(damaged)
        convert(source, tmp_path / "out")
        assert_same(read_folder(tmp_path / "out"), folder_tensors(CONFIG, 1))
        (tmp_path / "out" / MANIFEST_NAME).unlink()


def test_a_shard_lost_between_runs_is_made_again(tmp_path: Path, source: Path) -> None:
    with pytest.raises(StopError):
        convert(source, tmp_path / "out", progress=stop_after(0.8), sync_bytes=0, shard_bytes=200_000)
    next((tmp_path / "out").glob("model-00001-*")).unlink()
    convert(source, tmp_path / "out", shard_bytes=200_000)
    assert_same(read_folder(tmp_path / "out"), folder_tensors(CONFIG, 1))


def test_another_source_or_choice_starts_over(tmp_path: Path, source: Path) -> None:
    with pytest.raises(StopError):
        convert(source, tmp_path / "out", progress=stop_after(0.7), sync_bytes=0)
    other = write_hf_checkpoint(tmp_path / "other", CONFIG, 9)
    convert(other, tmp_path / "out")
    assert_same(read_folder(tmp_path / "out"), folder_tensors(CONFIG, 9))


def test_source_replaced_between_runs(tmp_path: Path, source: Path) -> None:
    with pytest.raises(StopError):
        convert(source, tmp_path / "out", progress=stop_after(0.7), sync_bytes=0)
    shutil.rmtree(source)
    write_hf_checkpoint(source, CONFIG, 5)
    convert(source, tmp_path / "out")
    assert_same(read_folder(tmp_path / "out"), folder_tensors(CONFIG, 5))


@pytest.mark.parametrize("change", ["truncate", "append", "rewrite", "delete"])
def test_source_changed_midway_leaves_nothing(tmp_path: Path, source: Path, change: str) -> None:
    victim = source / "model-00002-of-00002.safetensors"
    changed = False

    def progress(done: int, total: int) -> None:
        nonlocal changed
        if changed:
            return
        changed = True
        if change == "truncate":
            os.truncate(victim, victim.stat().st_size // 2)
        elif change == "append":
            with victim.open("ab") as f:
                f.write(b"x")
        elif change == "rewrite":
            with victim.open("r+b") as f:
                f.seek(-1, os.SEEK_END)
                f.write(b"x")
        else:
            victim.unlink()

    with pytest.raises(CheckpointError, match=r"changed|ended"):
        convert(source, tmp_path / "out", progress=progress)
    assert not (tmp_path / "out").exists()


def test_two_at_once(tmp_path: Path, source: Path) -> None:
    with open_target(tmp_path / "out", MANIFEST_NAME), pytest.raises(ConversionError, match="another conversion"):
        convert(source, tmp_path / "out")
    convert(source, tmp_path / "out")
    assert_same(read_folder(tmp_path / "out"), folder_tensors(CONFIG, 1))


def test_two_processes_at_once(tmp_path: Path, source: Path) -> None:
    code = (
        "import sys; from mlx_gptoss.convert import convert; from mlx_gptoss.errors import GptOssError\n"
        "try: convert(sys.argv[1], sys.argv[2], sync_bytes=0)\n"
        "except GptOssError as e: print(e); sys.exit(3)\n"
    )
    command = [sys.executable, "-c", code, str(source), str(tmp_path / "out")]
    runs = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    results = [(r.communicate(timeout=60)[0], r.returncode) for r in runs]
    assert any(code == 0 for _, code in results)
    assert all(code == 0 or "another conversion" in out for out, code in results)
    assert_same(read_folder(tmp_path / "out"), folder_tensors(CONFIG, 1))


def full_disk(*_: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("call", ["posix_fallocate", "pwrite", "fdatasync", "fsync"])
def test_disk_full(tmp_path: Path, source: Path, call: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if not hasattr(os, call):
        pytest.skip(f"no {call} here")
    with monkeypatch.context() as patch:
        patch.setattr(os, call, full_disk)
        with pytest.raises(InsufficientDiskError, match="full"):
            convert(source, tmp_path / "out")
    assert not is_model_folder(tmp_path / "out")
    convert(source, tmp_path / "out")
    assert_same(read_folder(tmp_path / "out"), folder_tensors(CONFIG, 1))


def test_disk_full_later_is_resumable(tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pwrite, left = os.pwrite, [30]

    def sometimes(fd: int, data: Any, offset: int) -> int:
        left[0] -= 1
        if left[0] < 0:
            full_disk()
        return pwrite(fd, data, offset)

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", sometimes)
        with pytest.raises(InsufficientDiskError, match="resumes"):
            convert(source, tmp_path / "out", sync_bytes=0)
    seen: list[int] = []
    convert(source, tmp_path / "out", progress=lambda done, total: seen.append(done))
    assert seen[0] > 0
    assert_same(read_folder(tmp_path / "out"), folder_tensors(CONFIG, 1))


def test_not_enough_room_is_said_before_anything_is_written(
    tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.statvfs(tmp_path)
    small = os.statvfs_result([*real[:4], 1, *real[5:]])
    monkeypatch.setattr(os, "statvfs", lambda path: small)
    with pytest.raises(InsufficientDiskError, match="GB free"):
        convert(source, tmp_path / "new" / "out")
    assert not (tmp_path / "new").exists()
    (tmp_path / "out").mkdir()
    with pytest.raises(InsufficientDiskError):
        convert(source, tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=700k", "tmpfs", disk], capture_output=True, check=False
    )
    if mounted.returncode != 0:
        pytest.skip("mounting a small disk needs root")
    yield disk
    subprocess.run(["umount", disk], check=True)


def test_a_disk_that_really_is_too_small(tiny_disk: Path, source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InsufficientDiskError, match="not enough room"):
        convert(source, tiny_disk / "out")
    monkeypatch.setattr("mlx_gptoss.convert.writing.check_space", lambda *a: None)
    monkeypatch.setattr("mlx_gptoss.convert.converter.check_space", lambda *a: None)
    with pytest.raises(InsufficientDiskError, match="full"):
        convert(source, tiny_disk / "out")
    assert list(tiny_disk.iterdir()) == []


def test_target_on_another_filesystem(source: Path) -> None:
    memory = Path("/dev/shm")
    if not memory.is_dir() or memory.stat().st_dev == source.stat().st_dev:
        pytest.skip("there is no second filesystem")
    target = memory / f"mlx-gptoss-test-{os.getpid()}"
    try:
        convert(source, target)
        assert_same(read_folder(target), folder_tensors(CONFIG, 1))
    finally:
        shutil.rmtree(target, ignore_errors=True)


def test_permissions_follow_the_umask(tmp_path: Path, source: Path) -> None:
    for mask in (0o022, 0o077, 0o002):
        old = os.umask(mask)
        try:
            convert(source, tmp_path / f"out{mask}")
            export(tmp_path / f"out{mask}", tmp_path / f"back{mask}")
        finally:
            os.umask(old)
        for folder in (tmp_path / f"out{mask}", tmp_path / f"back{mask}"):
            assert folder.stat().st_mode & 0o777 == 0o777 & ~mask
            assert {p.stat().st_mode & 0o777 for p in folder.iterdir()} == {0o666 & ~mask}


def test_symlinks_in_the_source_are_followed(tmp_path: Path, source: Path) -> None:
    linked = tmp_path / "linked"
    linked.mkdir()
    for file in source.iterdir():
        (linked / file.name).symlink_to(file)
    (tmp_path / "folder").symlink_to(linked)
    convert(tmp_path / "folder", tmp_path / "out")
    assert_same(read_folder(tmp_path / "out"), folder_tensors(CONFIG, 1))


def test_symlinks_in_the_target_are_not(tmp_path: Path, source: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "out").symlink_to(tmp_path / "real")
    with pytest.raises(ConversionError, match="symlink"):
        convert(source, tmp_path / "out")
    assert list((tmp_path / "real").iterdir()) == []
    victim = tmp_path / "victim"
    victim.write_text("precious")
    with pytest.raises(StopError):
        convert(source, tmp_path / "half", progress=stop_after(0.5), sync_bytes=0)
    for name in ("model-00001-of-00001.safetensors", "config.json", ".config.json.part", ".manifest.json.part"):
        (tmp_path / "half" / name).unlink(missing_ok=True)
        (tmp_path / "half" / name).symlink_to(victim)
    convert(source, tmp_path / "half")
    assert victim.read_text() == "precious"
    assert_same(read_folder(tmp_path / "half"), folder_tensors(CONFIG, 1))


def test_a_hard_link_to_the_source_is_not_written_through(tmp_path: Path, source: Path) -> None:
    with pytest.raises(StopError):
        convert(source, tmp_path / "out", progress=stop_after(0.5), sync_bytes=0)
    before = snapshot(source)
    shard = tmp_path / "out" / "model-00001-of-00001.safetensors"
    shard.unlink()
    os.link(source / "model-00001-of-00002.safetensors", shard)
    convert(source, tmp_path / "out")
    assert snapshot(source) == before
    assert_same(read_folder(tmp_path / "out"), folder_tensors(CONFIG, 1))


def test_a_folder_with_other_things_is_left_alone(tmp_path: Path, source: Path) -> None:
    target = tmp_path / "out"
    target.mkdir()
    (target / "notes.txt").write_text("mine")
    with pytest.raises(ConversionError, match=r"notes\.txt"):
        convert(source, target)
    with pytest.raises(ConversionError, match="not empty"):
        convert(source, source)
    assert [p.name for p in target.iterdir()] == ["notes.txt"]
    (tmp_path / "file").write_text("")
    with pytest.raises(ConversionError):
        convert(source, tmp_path / "file")
    with pytest.raises(ConversionError):
        convert(source, tmp_path / "file" / "below")


def test_missing_things(tmp_path: Path, source: Path) -> None:
    with pytest.raises(CheckpointError, match="no such source"):
        convert(tmp_path / "nowhere", tmp_path / "out")
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match=r"GGUF.*got nothing"):
        convert(tmp_path / "empty", tmp_path / "out")
    (tmp_path / "empty" / "weights.bin").write_text("x")
    with pytest.raises(CheckpointError, match=r"weights\.bin"):
        convert(tmp_path / "empty", tmp_path / "out")
    (source / "model-00001-of-00002.safetensors").unlink()
    with pytest.raises(CheckpointError, match="model-00001-of-00002"):
        convert(source, tmp_path / "out")
    with pytest.raises(GptOssError):
        convert(source / "config.json", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_unfinished_folder_is_no_source_and_says_so(source: Path, tmp_path: Path) -> None:
    for name, write in (("model", convert), ("checkpoint", export)):
        whole = source if name == "model" else tmp_path / "whole"
        if name == "checkpoint":
            convert(source, whole)
        with pytest.raises(StopError):
            write(whole, tmp_path / name, progress=stop_after(0.5))
        with pytest.raises(CheckpointError, match="not finished"):
            convert(tmp_path / name, tmp_path / f"{name}-again")
        with pytest.raises(CheckpointError, match="not finished"):
            resolve_model(tmp_path / name, registry=Registry(tmp_path / "home"))
