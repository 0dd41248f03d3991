"""A home folder of its own for every command, and one tiny model folder for all."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from mlx_gptoss.names import convert_source
from tests.tiny import tiny_config, write_hf_checkpoint

Run = Callable[..., subprocess.CompletedProcess[bytes]]


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder with the real vocabulary and random weights."""
    root = tmp_path_factory.mktemp("model")
    source = write_hf_checkpoint(root / "source", tiny_config(vocab_size=201_088), seed=1)
    return convert_source(source, root / "tiny")


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MLX_GPTOSS_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("MLX_GPTOSS_MODEL", raising=False)
    return tmp_path / "home"


@pytest.fixture
def run(home: Path) -> Run:
    """Runs `mlx-gptoss` as a process of its own."""

    def call(*arguments: str, stdin: bytes | None = b"", **environment: str) -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(
            [sys.executable, "-c", "from mlx_gptoss.cli import main; main()", *arguments],
            input=stdin,
            capture_output=True,
            timeout=120,
            check=False,
            env={**os.environ, **environment},
        )

    return call
