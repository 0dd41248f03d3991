"""Every shader that ships, as one text with its headers, passes the type check and the lint."""

from __future__ import annotations

import re
from importlib import resources

import pytest

from mlx_gptoss.kernels.source import kernel_names
from tests.bench import check_text

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


@pytest.mark.parametrize("name", kernel_names())
def test_shader_is_legal_metal(name: str) -> None:
    assert [str(d) for d in check_text(flattened(f"{name}.metal", set()))] == []
