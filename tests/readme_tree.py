"""Writes the folder tree of README.md from the files' own first lines: `python -m tests.readme_tree`."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
BEGIN, END = "<!-- tree -->\n```text\n", "```\n<!-- /tree -->"
FOLDERS = ("mlx_gptoss", "metal", "convert", "benchmarks", "examples", "training")
TEST_FOLDERS = {
    "tests/bench": "the shader bench: type-checks and executes Metal text on a CPU",
    "tests/cli": "the command line as a user meets it",
    "tests/clients": "third-party clients against a real server",
    "tests/convert": "every source, every fault, and hundreds of mutated inputs",
    "tests/golden": "logits of other implementations, and the scripts that made them",
    "tests/kernels": "every kernel on the bench, and the bench itself",
    "tests/server": "every wire format, security, sockets",
    "tests/unit": "everything else, one file a noun",
}


def first_line(path: Path) -> str:
    """What a file says it is: the first line of its docstring or opening comment."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".py":
        said = (ast.get_docstring(ast.parse(text)) or "").split("\n")[0]
    else:
        found = re.search(r"^//\s*(?:computes:?\s*)?(\S.*)$", text, re.MULTILINE | re.IGNORECASE)
        said = found[1] if found is not None else ""
    return said.rstrip(".:")


def rows() -> Iterator[tuple[str, str]]:
    """Each file or folder of the tree with its line."""
    for folder in FOLDERS:
        yield f"{folder}/", ""
        for path in sorted((ROOT / folder).rglob("*")):
            inside = path.relative_to(ROOT / folder)
            linked = any((ROOT / folder / part).is_symlink() for part in inside.parts[:1])
            if path.suffix not in {".py", ".metal", ".h"} or path.name == "__init__.py" or linked:
                continue
            yield "    " + str(inside), first_line(path)
    yield "tests/", ""
    for folder, line in TEST_FOLDERS.items():
        yield "    " + folder.removeprefix("tests/") + "/", line


def tree() -> str:
    """The tree as text."""
    lines = [f"{name:<40}{said}".rstrip() for name, said in rows()]
    return "\n".join(lines) + "\n"


def with_tree(text: str) -> str:
    """README text with the tree put between its marks."""
    head, rest = text.split(BEGIN, 1)
    return head + BEGIN + tree() + END + rest.split(END, 1)[1]


if __name__ == "__main__":
    README.write_text(with_tree(README.read_text(encoding="utf-8")), encoding="utf-8")
