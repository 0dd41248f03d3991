"""Programs that Apple's compiler rejects, each for its own reason, must not pass the bench's type check."""

from __future__ import annotations

import pytest

from tests.bench import check_text
from tests.kernels.corpus_files import programs

PROLOGUE = """#include <metal_stdlib>
using namespace metal;
"""

# name: (rule that must report it ("compiler" for clang itself), why it is ill-formed, program)
PROGRAMS = {name: (rule, why, program) for (name, rule, why), program in programs("illformed")}


@pytest.mark.parametrize("name", sorted(PROGRAMS))
def test_is_rejected(name: str) -> None:
    rule, why, program = PROGRAMS[name]
    found = check_text(PROLOGUE + program + "\n")
    assert found, f"accepted, although {why}"
    assert rule in {d.rule for d in found}, f"{why}: expected rule {rule}, got {[str(d) for d in found]}"
    assert all(d.line >= 3 for d in found), [str(d) for d in found]


def test_there_are_enough() -> None:
    assert len(PROGRAMS) >= 40


def test_a_clean_program_has_no_diagnostics() -> None:
    assert check_text(PROLOGUE + "float f(float x) { return metal::exp(x); }\n") == []
