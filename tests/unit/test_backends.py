"""Choosing a back end: what is set up on the way."""

from __future__ import annotations

import os

import mlx.core as mx
import pytest

from mlx_gptoss.kernels import backends


@pytest.fixture
def nvidia(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mx.metal, "is_available", lambda: False)
    monkeypatch.setattr(backends, "cuda_available", lambda: True)
    monkeypatch.setattr(backends, "_device", lambda key: "sm_90" if key == "architecture" else "NVIDIA H100")


@pytest.mark.usefixtures("nvidia")
def test_a_step_is_a_few_graphs_on_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "environ", {})
    assert backends.default_backend().name == "cuda"
    assert os.environ == {"MLX_MAX_OPS_PER_BUFFER": "60", "MLX_MAX_MB_PER_BUFFER": "1000000000"}


@pytest.mark.usefixtures("nvidia")
def test_what_the_user_has_set_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "environ", {"MLX_MAX_OPS_PER_BUFFER": "64"})
    backends.default_backend()
    assert os.environ["MLX_MAX_OPS_PER_BUFFER"] == "64"
