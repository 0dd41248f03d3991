"""Fixtures of the server tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from mlx_gptoss.registry import Registry
from tests.server.support import scripted_registry


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Registry:
    """A registry for each file: some of them delete models."""
    home: Path = tmp_path_factory.mktemp("home")
    return scripted_registry(home)


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"
