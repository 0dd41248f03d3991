"""The example that needs nothing but httpx, without a server; tests/clients runs all of them against one."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

EXAMPLE = Path(__file__).parents[2] / "examples" / "tools_server.py"


def test_without_a_server_the_example_says_so_in_one_line() -> None:
    command = [sys.executable, str(EXAMPLE), "demo", "http://127.0.0.1:9"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("no server answers at http://127.0.0.1:9")
    assert done.stderr.count("\n") == 1
