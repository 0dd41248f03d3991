"""Tests that need a GPU run where MLX has that GPU and are skipped elsewhere."""

from __future__ import annotations

import mlx.core as mx
import pytest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    there = {"metal": mx.metal.is_available(), "cuda": mx.cuda.is_available()}
    for item in items:
        for name, available in there.items():
            if item.get_closest_marker(name) is not None and not available:
                item.add_marker(pytest.mark.skip(reason=f"needs {name}"))
