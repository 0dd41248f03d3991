"""What the README says about the repository is so."""

from __future__ import annotations

import re
import subprocess
import sys

from tests.readme_tree import README, ROOT, with_tree


def test_the_tree_is_true() -> None:
    text = README.read_text(encoding="utf-8")
    assert with_tree(text) == text, "run `python -m tests.readme_tree`"


def test_links_lead_somewhere() -> None:
    for page in [README, *(ROOT / "docs").glob("*.md"), *(ROOT / "benchmarks").rglob("*.md")]:
        for target in re.findall(r"\]\(([^)#\s]+)", page.read_text(encoding="utf-8")):
            if "://" not in target:
                assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_the_python_example_is_python() -> None:
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    assert blocks
    for block in blocks:
        compile(block, "README.md", "exec")


def test_every_command_of_the_readme_exists() -> None:
    named = set(re.findall(r"(?:^|`)mlx-gptoss ([a-z]+)", README.read_text(encoding="utf-8"), re.MULTILINE))
    listed = subprocess.run(
        [sys.executable, "-c", "from mlx_gptoss.cli.main import COMMANDS; print(*COMMANDS)"],
        capture_output=True, text=True, check=True,
    ).stdout.split()  # fmt: skip
    assert named <= set(listed)
