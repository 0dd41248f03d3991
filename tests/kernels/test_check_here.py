"""The self-check inside an application that is no Python interpreter: nothing is started, and a crash is met once."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mlx_gptoss.kernels import check_process
from mlx_gptoss.kernels.check_here import check_here
from mlx_gptoss.kernels.check_process import PYTHON_VARIABLE, NoProcessError, checking_python
from mlx_gptoss.kernels.selfcheck import self_check
from tests.kernels.faulty_backend import VICTIM, FaultyBackend
from tests.kernels.test_selfcheck import PAIR, SMALL

BACKENDS = "tests.kernels.faulty_backend"


@pytest.fixture
def frozen(monkeypatch: pytest.MonkeyPatch) -> None:
    """This process as a frozen application that would be harmed by being started again."""

    def refuse(*_: object) -> None:
        raise AssertionError("the application was started again")

    monkeypatch.delenv(PYTHON_VARIABLE, raising=False)
    monkeypatch.setattr(sys, "frozen", "macosx_app", raising=False)
    monkeypatch.setattr(check_process, "_one_process", refuse)


@pytest.mark.usefixtures("frozen")
@pytest.mark.parametrize(("spec", "off"), [("good", set()), ("missing", set(PAIR))])
def test_a_frozen_application_checks_in_itself_and_keeps_the_result(spec: str, off: set[str], tmp_path: Path) -> None:
    for _ in range(2):
        check = self_check(FaultyBackend("none"), SMALL, kernels=PAIR, spec=f"{BACKENDS}:{spec}", folder=tmp_path)
        assert check.disabled == off
    assert [path.suffix for path in tmp_path.iterdir()] == [".json"]


@pytest.mark.usefixtures("frozen")
def test_a_kernel_that_hangs_is_off_and_the_others_get_another_chance(tmp_path: Path) -> None:
    def check(spec: str) -> dict[str, str]:
        backend = FaultyBackend("none")
        found = self_check(backend, SMALL, kernels=PAIR, spec=f"{BACKENDS}:{spec}", folder=tmp_path, time_limit_s=4.0)
        return {report.kernel: report.reason for report in found.reports}

    assert check("hanging") == {VICTIM: "no result after 4 s", PAIR[1]: f"not checked, since {VICTIM} hangs"}
    (note,) = tmp_path.iterdir()
    assert note.suffix == ".checking"
    # The next start is another process: the one of the note is gone.
    with subprocess.Popen([sys.executable, "-c", ""]) as ended:
        ended.wait()
    note.write_text(json.dumps({**json.loads(note.read_text()), "process": ended.pid}))
    assert check("hanging") == {VICTIM: "the program ended while the kernel was being checked", PAIR[1]: ""}
    assert [path.suffix for path in tmp_path.iterdir()] == [".json"]


@pytest.mark.parametrize("note", ["", "{", "[]", '{"process": "x"}', '{"process": 1, "kernels": 3}'])
def test_a_damaged_note_says_nothing(note: str, tmp_path: Path) -> None:
    path = tmp_path / "note"
    path.write_text(note)
    reports = check_here(f"{BACKENDS}:good", SMALL, PAIR, time_limit_s=60, measure=False, note=path)
    assert [report.status for report in reports] == ["ok", "ok"]
    assert not path.exists()


def test_a_note_of_a_program_that_is_still_at_it_says_nothing(tmp_path: Path) -> None:
    path = tmp_path / "note"
    path.write_text(json.dumps({"process": os.getppid(), "kernels": [VICTIM]}))
    (report,) = check_here(f"{BACKENDS}:good", SMALL, [VICTIM], time_limit_s=60, measure=False, note=path)
    assert report.status == "ok"


def test_where_nothing_can_be_written_the_check_goes_on(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    note = tmp_path / "file" / "note"
    (report,) = check_here(f"{BACKENDS}:good", SMALL, [VICTIM], time_limit_s=60, measure=False, note=note)
    assert report.status == "ok"


def test_which_python_is_started(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(PYTHON_VARIABLE, raising=False)
    for own in ("/usr/bin/python3", "/opt/pypy3", "/Library/Python.app/Contents/MacOS/Python", "C:/python.exe"):
        monkeypatch.setattr(sys, "executable", own)
        assert checking_python() == own
    for other in ("/Applications/Answers.app/Contents/MacOS/Answers", "", None):
        monkeypatch.setattr(sys, "executable", other)
        with pytest.raises(NoProcessError, match=PYTHON_VARIABLE):
            checking_python()
    monkeypatch.setenv(PYTHON_VARIABLE, "/bundle/python3")
    monkeypatch.setattr(sys, "frozen", True, raising=False)
    assert checking_python() == "/bundle/python3"


@pytest.mark.parametrize("python", ["/there/is/no/such/python", "/bin/false", "/bin/true"])
def test_a_python_that_cannot_check_is_no_kernels_fault(
    python: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(PYTHON_VARIABLE, python)
    check = self_check(FaultyBackend("none"), SMALL, kernels=PAIR, spec=f"{BACKENDS}:good", folder=tmp_path)
    assert not check.disabled


PROGRAM = f"""
import os
import sys
from pathlib import Path
from mlx_gptoss.kernels.selfcheck import self_check
from tests.kernels.faulty_backend import FaultyBackend
from tests.kernels.test_selfcheck import PAIR, SMALL
check = self_check(
    FaultyBackend("none"), SMALL, kernels=PAIR, spec="{BACKENDS}:crashing", folder=Path(sys.argv[1])
)
print(Path(sys.executable).name, *sorted(check.disabled), flush=True)
os._exit(0)  # MLX's threads now and then end a process by an abort of their own (0.32)
"""


def test_an_embedding_program_crashes_once_at_most(tmp_path: Path) -> None:
    """A program of another name, as an application with an interpreter inside is."""
    program = tmp_path / "Answers"
    program.symlink_to(sys.executable)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(entry for entry in sys.path if entry)}
    environment.pop(PYTHON_VARIABLE, None)
    ended = [
        subprocess.run(
            [program, "-c", PROGRAM, tmp_path / "cache"], capture_output=True, text=True, check=False, env=environment
        )
        for _ in range(3)
    ]
    assert [run.returncode for run in ended] == [-6, 0, 0], ended[1].stderr
    assert [run.stdout.strip() for run in ended[1:]] == [f"Answers {VICTIM}"] * 2
