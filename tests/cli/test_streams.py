"""The standard streams in every state that a shell can hand them over in."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mlx_gptoss.cli.options import argument_text
from mlx_gptoss.cli.terminal import LONG_PROMPT, Printer, show_all
from mlx_gptoss.errors import InvalidRequestError
from mlx_gptoss.events import Done, Event, TextDelta, Timings, Usage
from tests.cli.conftest import Run

COMMAND = f"{sys.executable} -c 'from mlx_gptoss.cli import main; main()'"
PLAIN_C = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_a_closed_stream_is_no_error(closed: str, model_folder: Path, home: Path) -> None:
    command = f"{COMMAND} generate -m {model_folder} -n 2 --json hi {closed}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert b"mlx-gptoss:" not in done.stderr
    if ">&-" not in closed.replace("2>&-", ""):
        assert json.loads(done.stdout)["usage"]["completion_tokens"] == 2


def test_a_locale_without_letters_changes_nothing(run: Run, model_folder: Path) -> None:
    common = ("generate", "-m", str(model_folder), "-n", "8", "--seed", "7", "--json", "-s", "naïve", "Grüße 日本")
    plain, ordinary = (json.loads(run(*common, **environment).stdout) for environment in (PLAIN_C, {}))
    for answer in (plain, ordinary):
        del answer["timings"]
    assert plain == ordinary


def test_an_encoding_without_letters_gets_question_marks(run: Run, model_folder: Path) -> None:
    done = run("show", str(model_folder / ".." / "tiny"), "--json", **PLAIN_C, PYTHONIOENCODING="ascii")
    assert done.returncode == 0, done.stderr
    done = run("generate", "-m", "modèle-日本", "hi", **PLAIN_C, PYTHONIOENCODING="ascii")
    assert done.returncode == 1
    assert b"unexpected" not in done.stderr


def test_an_argument_that_is_not_utf8() -> None:
    assert argument_text("Grüße") == "Grüße"
    assert argument_text(os.fsdecode("日本".encode())) == "日本"
    if sys.getfilesystemencoding().lower() == "utf-8":
        with pytest.raises(InvalidRequestError, match="0xff"):
            argument_text(os.fsdecode(b"a\xff"))


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def done_with(reason: str) -> Done:
    return Done(reason, Usage(), Timings())  # type: ignore[arg-type]  # one of the reasons


def test_a_long_prompt_shows_its_progress_and_wipes_it() -> None:
    out, err = Terminal(), Terminal()
    printer = Printer(out=out, err=err)
    printer.prompt_read(LONG_PROMPT // 4, LONG_PROMPT)
    assert "prompt 25%" in err.getvalue()
    show_all([TextDelta("Yes."), done_with("stop")], printer)
    printer.prompt_read(LONG_PROMPT // 2, LONG_PROMPT)
    assert "50%" not in err.getvalue()
    assert err.getvalue().rindex("\x1b[2K") > err.getvalue().rindex("25%")
    assert out.getvalue() == "Yes.\n"


@pytest.mark.parametrize(("total", "err"), [(LONG_PROMPT - 1, Terminal()), (LONG_PROMPT, io.StringIO())])
def test_a_short_prompt_or_a_pipe_shows_none(total: int, err: io.StringIO) -> None:
    printer = Printer(out=Terminal(), err=err)
    printer.prompt_read(total // 2, total)
    printer.finish()
    assert err.getvalue() == ""


@pytest.mark.parametrize(("reason", "said"), [("length", "cut off"), ("repetition", "repeating"), ("stop", "")])
def test_an_answer_that_was_cut_off_says_so(reason: str, said: str) -> None:
    out, err = io.StringIO(), io.StringIO()
    show_all([TextDelta("Yes"), done_with(reason)], Printer(out=out, err=err))
    assert out.getvalue() == "Yes\n"
    assert said in err.getvalue()
    assert bool(err.getvalue()) == bool(said)


def test_an_interrupted_answer_ends_its_line() -> None:
    def interrupted() -> object:
        yield TextDelta("Ye")
        raise KeyboardInterrupt

    out = io.StringIO()
    events: list[Event] = interrupted()  # type: ignore[assignment]  # any iterable
    with pytest.raises(KeyboardInterrupt):
        show_all(events, Printer(out=out, err=io.StringIO()))
    assert out.getvalue() == "Ye\n"


def test_tables_are_never_cut(run: Run, model_folder: Path) -> None:
    run("generate", "-m", str(model_folder.parent / "source"), "-n", "1", "hi")
    for command in (("list",), ("show", str(model_folder)), ("doctor", str(model_folder))):
        done = run(*command, COLUMNS="20")
        assert done.returncode == 0
        assert "…" not in done.stdout.decode()
        assert not [line for line in done.stdout.decode().splitlines() if line != line.rstrip()]
    assert "/models/local-source-" in run("list", COLUMNS="20").stdout.decode()
