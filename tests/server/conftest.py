"""Fixtures of the server tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from mlx_gptoss.registry import Registry
from tests.server.support import scripted_registry


@pytest.fixture(scope="session")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Registry:
    home: Path = tmp_path_factory.mktemp("home")
    return scripted_registry(home)


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"
