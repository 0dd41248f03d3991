"""The wheel and the source distribution hold everything that runs: code, shaders, vocabulary, demo checkpoint."""

from __future__ import annotations

import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROGRAM = """
import importlib.resources, mlx_gptoss
from mlx_gptoss.convert import convert
from mlx_gptoss.cli.main import COMMANDS, cli
shaders = [entry.name for entry in importlib.resources.files("mlx_gptoss.metal").iterdir()]
assert "mxfp4.h" in shaders and any(name.endswith(".metal") for name in shaders), shaders
for name in COMMANDS:
    assert cli.get_command(None, name) is not None, name
from mlx_gptoss.harmony.vocabulary import load_vocabulary
assert load_vocabulary().decode(load_vocabulary().encode("hello")) == "hello"
print(mlx_gptoss.__file__)
"""


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both distributions, built from a copy so that the checkout stays clean."""
    root = tmp_path_factory.mktemp("build")
    files = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=ROOT,
        capture_output=True,
        check=False,
    )
    if files.returncode:
        pytest.skip("not a git checkout")
    for name in files.stdout.decode().split("\0"):
        source = ROOT / name
        if name and not name.startswith("tests/") and source.is_file():
            target = root / "source" / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(source.read_bytes())
    subprocess.run(
        [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(root / "dist"), str(root / "source")],
        capture_output=True, check=True, timeout=240,
    )  # fmt: skip
    return root / "dist"


def test_the_wheel_runs_without_the_checkout(built: Path, tmp_path: Path) -> None:
    wheel = next(built.glob("*.whl"))
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        archive.extractall(tmp_path)
    assert {"mlx_gptoss/py.typed", "mlx_gptoss/convert/__init__.py", "mlx_gptoss/metal/mxfp4.h"} <= names
    assert any(name.startswith("mlx_gptoss/data/demo") for name in names)
    assert not any(name.startswith(("tests/", "training/", "benchmarks/", "convert/", "metal/")) for name in names)
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], cwd=tmp_path,
        env={"PYTHONPATH": str(tmp_path), "PATH": "", "HOME": str(tmp_path)},
        capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert str(tmp_path) in done.stdout


def test_the_source_distribution_holds_what_the_wheel_is_built_from(built: Path) -> None:
    with tarfile.open(next(built.glob("*.tar.gz"))) as archive:
        names = {name.split("/", 1)[1] for name in archive.getnames() if "/" in name}
    assert {"pyproject.toml", "README.md", "LICENSE", "convert/__init__.py", "metal/mxfp4.h"} <= names


def test_importing_the_package_loads_nothing_heavy() -> None:
    program = "import sys, mlx_gptoss; print(sorted({'mlx', 'numpy', 'fastapi', 'rich'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "[]"


def test_the_module_runs_like_the_command() -> None:
    ran = subprocess.run([sys.executable, "-m", "mlx_gptoss", "--version"], capture_output=True, text=True, check=True)
    assert ran.stdout.startswith("mlx-gptoss, version ")
