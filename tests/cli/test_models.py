"""`list`, `show`, `rm` and `pull`, as processes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from mlx_gptoss.folder import read_manifest
from mlx_gptoss.registry import Registry
from tests.cli.conftest import Run
from tests.convert.gguf_files import write_gguf
from tests.convert.test_gguf import fill_store
from tests.tiny import tiny_config
from tests.unit.fake_hub import fake_hub

NAME = "someone/tiny-oss"


@pytest.fixture
def installed(home: Path, model_folder: Path) -> Path:
    folder = Registry(home).model_folder(NAME)
    folder.parent.mkdir(parents=True)
    shutil.copytree(model_folder, folder)
    return folder


def test_list_show_remove(run: Run, installed: Path) -> None:
    assert NAME.encode() in run("list", COLUMNS="200").stdout
    assert json.loads(run("list", "--json").stdout)[0]["path"] == str(installed)
    shown = json.loads(run("show", NAME, "--json").stdout)
    assert shown["manifest"]["tensors"] if "manifest" in shown else shown["tensors"]
    assert b"experts" in run("show", NAME).stdout
    assert b"layers.0.qkv.weight" in run("show", NAME, "--tensors").stdout
    assert run("verify", NAME).returncode == 0
    asked = run("rm", NAME, stdin=b"n\n")
    assert asked.returncode == 1
    assert b"was not deleted" in asked.stderr
    unasked = run("rm", NAME, stdin=b"")
    assert unasked.returncode == 1
    assert b"Add -y" in unasked.stderr
    assert b"interrupted" not in unasked.stderr
    assert installed.exists()
    assert run("rm", NAME, "--yes").returncode == 0
    assert not installed.exists()


def test_an_empty_machine_says_what_to_do(run: Run) -> None:
    done = run("list")
    assert done.returncode == 0
    assert b"pull 20b" in done.stderr
    assert json.loads(run("list", "--json").stdout) == []


def test_pull_from_a_hub_then_generate_without_a_name(run: Run, model_folder: Path) -> None:
    with fake_hub() as hub:
        hub.repositories[NAME] = model_folder.parent / "source"
        pulled = run("pull", NAME, HF_ENDPOINT=hub.endpoint)
    assert pulled.returncode == 0, pulled.stderr
    done = run("generate", "-n", "2", "--json", "hi")
    assert json.loads(done.stdout)["usage"]["completion_tokens"] == 2


def test_a_pull_says_when_another_precision_is_here_already(run: Run, model_folder: Path, home: Path) -> None:
    with fake_hub() as hub:
        hub.repositories[NAME] = model_folder.parent / "source"
        said = [
            run("pull", NAME, *arguments, HF_ENDPOINT=hub.endpoint)
            for arguments in ((), ("--for", "24gb"), (), ("--for", "max-quality"), ())
        ]
    assert [done.returncode for done in said] == [0] * 5
    assert [b"here already" in done.stderr for done in said] == [False, False, True, False, False]
    assert b"attention q8, embedding q8, head q8" in said[2].stderr
    assert f"mlx-gptoss pull {NAME} --for max-quality".encode() in said[2].stderr
    assert read_manifest(Registry(home).find(NAME).path).format_of("head").format == "bf16"


def test_pull_without_a_network_is_one_line(run: Run) -> None:
    done = run("pull", NAME, HF_ENDPOINT="http://127.0.0.1:9")
    assert done.returncode == 1
    assert done.stderr.decode().count("mlx-gptoss: ") == 1
    assert b"Traceback" not in done.stderr


def test_pull_from_ollama_names_what_is_missing(run: Run, tmp_path: Path) -> None:
    done = run("pull", "--from-ollama", "gpt-oss:20b", OLLAMA_MODELS=str(tmp_path))
    assert done.returncode == 1
    assert b"gpt-oss:20b" in done.stderr


def test_pull_from_ollama(run: Run, tmp_path: Path, home: Path) -> None:
    blob = write_gguf(tmp_path / "model.gguf", tiny_config(), ollama=True)
    fill_store(tmp_path / "store", blob.read_bytes())
    done = run("pull", "--from-ollama", "gpt-oss:20b", OLLAMA_MODELS=str(tmp_path / "store"))
    assert done.returncode == 0, done.stderr
    assert [model.name for model in Registry(home).models()] == ["openai/gpt-oss-20b"]


def test_pull_from_ollama_at_a_precision(run: Run, tmp_path: Path, home: Path) -> None:
    blob = write_gguf(tmp_path / "model.gguf", tiny_config(), ollama=True)
    fill_store(tmp_path / "store", blob.read_bytes())
    done = run("pull", "--from-ollama", "gpt-oss:20b", "--for", "24gb", OLLAMA_MODELS=str(tmp_path / "store"))
    assert done.returncode == 0, done.stderr
    assert read_manifest(Registry(home).find("20b").path).format_of("head").format == "q8"


@pytest.mark.parametrize(
    "arguments",
    [("demo", "--for", "16gb"), ("demo", "--revision", "x"), ("gpt-oss:20b", "--from-ollama", "--revision", "x"),
     ("gpt-oss:20b", "--from-ollama", "--keep-download")],
)  # fmt: skip
def test_pull_refuses_options_that_would_do_nothing(run: Run, arguments: tuple[str, ...]) -> None:
    assert run("pull", *arguments).returncode == 2
