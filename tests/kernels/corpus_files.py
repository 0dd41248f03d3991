"""Reads the corpus of small Metal programs in tests/kernels/corpus."""

from __future__ import annotations

from pathlib import Path


def programs(name: str) -> list[tuple[list[str], str]]:
    """(fields of the header line, program) of every program in `corpus/<name>.metal`."""
    text = (Path(__file__).parent / "corpus" / f"{name}.metal").read_text(encoding="utf-8")
    found = []
    for section in text.split("\n//// ")[1:]:
        header, _, program = section.partition("\n")
        found.append(([field.strip() for field in header.split("|")], program.strip() + "\n"))
    return found
