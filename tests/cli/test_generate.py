"""`mlx-gptoss generate` as a process: streams, exit codes, and one line for every failure."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from mlx_gptoss.config import ModelConfig
from tests.cli.conftest import Run


def one_line(stderr: bytes, part: str) -> None:
    text = stderr.decode()
    assert "Traceback" not in text
    lines = [line for line in text.splitlines() if line.startswith("mlx-gptoss: ")]
    assert len(lines) == 1, text
    assert part in lines[0]


def test_json_is_one_object_on_stdout(run: Run, model_folder: Path) -> None:
    done = run("generate", "-m", str(model_folder), "--json", "-n", "5", "--seed", "1", "hello")
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert answer["finish_reason"] == "length"
    assert answer["usage"]["completion_tokens"] == 5
    assert set(answer) == {"text", "reasoning", "preamble", "tool_calls", "finish_reason", "usage", "timings"}


def test_same_seed_same_answer_from_argument_file_and_stdin(run: Run, model_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "prompt.txt").write_text("héllo")
    common = ("generate", "-m", str(model_folder), "-n", "8", "--seed", "7", "--json")
    answers = [
        run(*common, "héllo"),
        run(*common, "-f", str(tmp_path / "prompt.txt")),
        run(*common, stdin="héllo".encode()),
        run(*common, "-", stdin="héllo".encode()),
    ]
    texts = {(a["text"], a["reasoning"], a["usage"]["prompt_tokens"]) for a in (json.loads(d.stdout) for d in answers)}
    assert len(texts) == 1


def test_input_that_is_left_unread_is_said(run: Run, model_folder: Path, tmp_path: Path) -> None:
    common = ("generate", "-m", str(model_folder), "-n", "3", "--seed", "7", "Summarise")
    assert b"-f - adds it" in run(*common, stdin=b"a text").stderr
    for arguments, stdin in ((common, b""), ((*common, "-f", "-"), b"a text")):
        assert b"standard input" not in run(*arguments, stdin=stdin).stderr
    used = [json.loads(run(*common, "--json", *more, stdin=b"a text").stdout)["usage"] for more in ((), ("-f", "-"))]
    assert used[0]["prompt_tokens"] < used[1]["prompt_tokens"]


def test_stats_go_to_stderr(run: Run, model_folder: Path) -> None:
    done = run("generate", "-m", str(model_folder), "-n", "3", "--stats", "hi")
    assert b"tok/s" in done.stderr
    assert b"tok/s" not in done.stdout


def test_schema_holds_even_for_a_random_model(run: Run, model_folder: Path) -> None:
    schema = json.dumps({"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"]})
    done = run("generate", "-m", str(model_folder), "--schema", schema, "-n", "200", "--seed", "3", "--json", "x")
    answer = json.loads(done.stdout)
    if answer["finish_reason"] == "stop":
        assert isinstance(json.loads(answer["text"])["ok"], bool)
    else:
        assert answer["finish_reason"] in ("length", "repetition")


@pytest.mark.parametrize(
    ("arguments", "stdin", "part"),
    [
        (["generate"], b"", "prompt is empty"),
        (["generate", "  "], b"", "prompt is empty"),
        (["generate"], b"\xff\xfe", "not UTF-8"),
        (["generate", "-f", "/no/such/file"], b"", "/no/such/file"),
        (["generate", "hi"], b"", "--model demo"),
        (["generate", "-m", "20b", "hi"], b"", "pull 20b"),
        (["generate", "-m", "/no/folder", "hi"], b"", "no folder"),
        (["generate", "-m", "a/b/c", "hi"], b"", "not a model name"),
        (["generate", "-m", "20b", "-t", "-1", "hi"], b"", "temperature"),
        (["generate", "-m", "20b", "--schema", "{", "hi"], b"", "schema"),
        (["generate", "-m", "20b", "--schema", "", "hi"], b"", "--schema is empty; expected a file, a JSON Schema"),
        (["rm", "20b", "--yes"], b"", "not on this machine"),
    ],
)
def test_bad_input_is_one_line(run: Run, arguments: list[str], stdin: bytes, part: str) -> None:
    done = run(*arguments, stdin=stdin)
    assert done.returncode == 1
    assert done.stdout == b""
    one_line(done.stderr, part)


@pytest.mark.parametrize("command", [("generate", "hi"), ("chat",)])
def test_a_context_longer_than_the_models_is_refused(run: Run, model_folder: Path, command: tuple[str, ...]) -> None:
    most = ModelConfig.from_file(model_folder).max_position_embeddings
    done = run(command[0], "-m", str(model_folder), "-c", str(most + 1), *command[1:])
    assert done.returncode == 1
    one_line(done.stderr, f"--context is longer than the model's own; expected at most {most} tokens")
    at_most = run("generate", "-m", str(model_folder), "-c", str(most), "-n", "1", "--json", "hi")
    assert at_most.returncode == 0, at_most.stderr


def test_a_prompt_longer_than_the_context(run: Run, model_folder: Path) -> None:
    done = run("generate", "-m", str(model_folder), "-c", "100", "word " * 500)
    assert done.returncode == 1
    one_line(done.stderr, "longer than the context")


@pytest.mark.parametrize(
    ("break_it", "part"),
    [
        (lambda folder: (folder / "manifest.json").write_text("{"), "manifest.json"),
        (lambda folder: (folder / "config.json").unlink(), "config.json"),
        (lambda folder: (folder / "config.json").write_text('{"model_type": "llama"}'), "config.json"),
        (lambda folder: _truncate(next(folder.glob("*.safetensors"))), "safetensors"),
        (lambda folder: next(folder.glob("*.safetensors")).unlink(), "safetensors"),
    ],
)
def test_a_broken_model_folder_says_what_is_broken(
    run: Run, model_folder: Path, tmp_path: Path, break_it: object, part: str
) -> None:
    folder = tmp_path / "broken"
    shutil.copytree(model_folder, folder)
    assert callable(break_it)
    break_it(folder)
    done = run("generate", "-m", str(folder), "hi")
    assert done.returncode == 1
    one_line(done.stderr, part)


def _truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 4096)


def test_a_checkpoint_folder_is_converted_on_first_use(run: Run, model_folder: Path, home: Path) -> None:
    source = model_folder.parent / "source"
    before = {path.name: path.stat().st_mtime_ns for path in source.iterdir()}
    for _ in range(2):
        assert run("generate", "-m", str(source), "-n", "1", "hi").returncode == 0
    assert len(list((home / "models").iterdir())) == 1
    assert {path.name: path.stat().st_mtime_ns for path in source.iterdir()} == before


def test_a_folder_that_is_no_checkpoint(run: Run, tmp_path: Path) -> None:
    (tmp_path / "notes").mkdir()
    done = run("generate", "-m", str(tmp_path / "notes"), "hi")
    one_line(done.stderr, "not a model folder")


def test_a_broken_pipe_ends_quietly(model_folder: Path, home: Path) -> None:
    program = f"{sys.executable} -c 'from mlx_gptoss.cli import main; main()'"
    command = f"{program} generate -m {model_folder} --schema json -n 300 --seed 1 hi"
    script = f"{command} | head -c 1 >/dev/null; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", script], capture_output=True, timeout=120, check=True)
    assert b"Traceback" not in done.stderr
    assert b"mlx-gptoss:" not in done.stderr
    # 0 when the answer was shorter than what the pipe holds.
    assert done.stdout.split()[-1] in (b"0", b"1")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_no_space_left_on_the_output(model_folder: Path, home: Path) -> None:
    program = [sys.executable, "-c", "from mlx_gptoss.cli import main; main()"]
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(
            [*program, "generate", "-m", str(model_folder), "--json", "-n", "2", "hi"],
            stdout=full, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL, timeout=120, check=False,
        )  # fmt: skip
    assert done.returncode == 1
    one_line(done.stderr, "no space left")


def test_an_unknown_command_suggests_the_near_one(run: Run) -> None:
    done = run("genrate", "hi")
    assert done.returncode == 2
    assert b"generate" in done.stderr


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts(run: Run, shell: str) -> None:
    assert b"_MLX_GPTOSS_COMPLETE" in run("completion", shell).stdout


def test_every_command_has_help(run: Run) -> None:
    from mlx_gptoss.cli.main import COMMANDS

    top = run("--help").stdout.decode()
    for name in COMMANDS:
        assert f"  {name} " in top
