"""The soak test, short and long."""

from __future__ import annotations

import pytest

from mlx_gptoss.registry import Registry
from tests.server.soak import soak


def test_soak_short(registry: Registry) -> None:
    report = soak(registry, 300, seed=1)
    assert report["complete"] > 150
    assert report["cancelled"] > 20


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_soak_long(registry: Registry) -> None:
    assert soak(registry, 10_000)["complete"] > 5000
