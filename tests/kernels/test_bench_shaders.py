"""Every shader that ships, as one text with its headers, passes the type check and the lint."""

from __future__ import annotations

import re
from importlib import resources

import numpy as np
import pytest

from mlx_gptoss.kernels.layout import permute_activation
from mlx_gptoss.kernels.moe import moe_gate_up, moe_gate_up_twin
from mlx_gptoss.kernels.source import text_names
from tests.bench import check_text
from tests.bench.backend import BenchBackend
from tests.kernels.decode_data import PARAMS, close, experts, floats

_INCLUDE = re.compile(r'^\s*#\s*include\s*"([^"]+)"\s*$')


def flattened(name: str, seen: set[str]) -> str:
    """The file with its `#include "..."` lines replaced by the files, each once."""
    if name in seen:
        return ""
    seen.add(name)
    text = (resources.files("mlx_gptoss.metal") / name).read_text(encoding="utf-8")
    lines = []
    for line in text.replace("#pragma once", "").splitlines():
        match = _INCLUDE.match(line)
        lines.append(flattened(match[1], seen) if match else line)
    return "\n".join(lines) + "\n"


@pytest.mark.parametrize("name", text_names())
def test_shader_is_legal_metal(name: str) -> None:
    assert [str(d) for d in check_text(flattened(f"{name}.metal", set()))] == []


def test_strict_and_checked_back_end() -> None:
    rng = np.random.default_rng(0)
    t, logits, gate_up = permute_activation(floats(rng, 2, 96)), floats(rng, 2, 8), experts(rng, 8, 128, 96)
    backend = BenchBackend(strict=True, checked=True, guard="end", schedule="random", keep_records=True)
    h, _, _ = moe_gate_up(t, logits, gate_up, PARAMS, top_k=4, backend=backend)
    close(h, moe_gate_up_twin(t, logits, gate_up, PARAMS, top_k=4)[0])
    assert [record.kernel for record in backend.records] == ["moe_gate_up"]
