"""Tests that need a GPU run where MLX has that GPU; those of client libraries where the libraries are."""

from __future__ import annotations

import importlib.util

import pytest

# The clients' environment has neither MLX nor this package, the ordinary one no client library.
collect_ignore = [] if importlib.util.find_spec("anthropic") is not None else ["clients"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if importlib.util.find_spec("mlx") is None:
        return
    import mlx.core as mx

    there = {"metal": mx.metal.is_available(), "cuda": mx.cuda.is_available()}
    for item in items:
        for name, available in there.items():
            if item.get_closest_marker(name) is not None and not available:
                item.add_marker(pytest.mark.skip(reason=f"needs {name}"))
