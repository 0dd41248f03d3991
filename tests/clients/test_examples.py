"""The examples that need a server, as their reader runs them: with one, and without."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.clients

EXAMPLES = Path(__file__).parents[2] / "examples"
SAID = {"tools_server.py": "get_weather(", "ollama_client.py": "", "openai_client.py": "name='"}


def example(name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(EXAMPLES / name), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)


@pytest.mark.parametrize("name", SAID)
def test_an_example_runs_against_the_server_it_is_given(name: str, server: str) -> None:
    done = example(name, "demo", server)
    assert done.returncode == 0, done.stderr
    assert SAID[name] in done.stdout
    assert done.stdout.strip()


@pytest.mark.parametrize("name", SAID)
def test_without_a_server_an_example_says_so_in_one_line(name: str) -> None:
    done = example(name, "demo", "http://127.0.0.1:9")
    assert done.returncode == 1
    assert done.stderr.startswith("no server answers at http://127.0.0.1:9")
    assert done.stderr.count("\n") == 1
