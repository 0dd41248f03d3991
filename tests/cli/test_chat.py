"""`mlx-gptoss chat` over a scripted model: turns, tools, commands, interruption."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from mlx_gptoss.cli import chat_cmd
from mlx_gptoss.cli.chat_session import ChatSession, Leave, read_conversation
from mlx_gptoss.errors import GptOssError, InvalidRequestError
from mlx_gptoss.llm import GptOss
from mlx_gptoss.messages import AssistantMessage, Message, ToolMessage, UserMessage
from mlx_gptoss.tools import FunctionTool, ToolBox
from tests.server.support import REPLIES, scripted_llm

CALLS: list[str] = []


def get_weather(city: str) -> str:
    """The weather in a city."""
    CALLS.append(city)
    return "18 C"


@pytest.fixture(scope="module")
def llm() -> Iterator[GptOss]:
    with scripted_llm() as found:
        yield found


@pytest.fixture
def session(llm: GptOss) -> ChatSession:
    CALLS.clear()
    box = ToolBox([FunctionTool.of(get_weather)])
    return ChatSession(llm.chat(tools=box.tools), box)


def test_answer_on_stdout_reasoning_on_stderr(session: ChatSession, capsys: pytest.CaptureFixture[str]) -> None:
    session.handle("hi")
    out, err = capsys.readouterr()
    assert out == "Hello there!\n"
    assert "They greet me." in err


def test_a_tool_is_run_and_its_result_used(session: ChatSession, capsys: pytest.CaptureFixture[str]) -> None:
    session.handle("weather?")
    out, err = capsys.readouterr()
    assert CALLS == ["Paris"]
    assert out == "It is sunny.\n"
    assert 'get_weather({"city": "Paris"})' in err
    kinds = [type(message) for message in session.chat.messages]
    assert kinds == [UserMessage, AssistantMessage, ToolMessage, AssistantMessage]


def test_endless_tool_calls_are_stopped(capsys: pytest.CaptureFixture[str]) -> None:
    with scripted_llm({**REPLIES, "18 C": REPLIES["weather?"]}) as looping:
        box = ToolBox([FunctionTool.of(get_weather)])
        with pytest.raises(GptOssError, match="without answering"):
            ChatSession(looping.chat(tools=box.tools), box).handle("weather?")


def test_the_second_turn_prefills_only_what_is_new(session: ChatSession) -> None:
    session.handle("hi")
    first = session.last
    session.handle("hi again")
    assert first is not None
    assert session.last is not None
    assert session.last.usage.cached_tokens >= first.usage.prompt_tokens - 1


def test_commands(session: ChatSession, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    session.handle("hi")
    session.handle("/effort high")
    assert session.effort == "high"
    path = tmp_path / "talk.json"
    session.handle(f"/save {path}")
    saved = session.chat.messages
    session.handle("/clear")
    assert session.chat.messages == ()
    session.handle(f"/open {path}")
    assert session.chat.messages == saved
    session.handle("/retry")
    assert len(session.chat.messages) == len(saved)
    session.handle("/undo")
    assert session.chat.messages == ()
    for name in ("/help", "/tools", "/stats", "/history", "/reasoning"):
        session.handle(name)
    session.handle("/system Be short.")
    restarted: tuple[Message, ...] = session.chat.messages
    assert len(restarted) == 1
    assert restarted[0].text == "Be short."
    assert "/effort LEVEL" in capsys.readouterr().err
    with pytest.raises(Leave):
        session.handle("/exit")


def test_two_slashes_send_a_slash(session: ChatSession) -> None:
    session.handle("//etc/hosts")
    assert session.chat.messages[0].text == "/etc/hosts"


@pytest.mark.parametrize(
    "line", ["/nothing", "/effort extreme", "/undo", "/retry", "/stats", "/save", "/open /no/file"]
)
def test_bad_commands_are_errors(llm: GptOss, line: str) -> None:
    with pytest.raises(InvalidRequestError):
        ChatSession(llm.chat(), ToolBox()).handle(line)


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"messages": [1]}', '{"messages": [{"role": "x"}]}', '{"messages": 3}']
)
def test_a_file_that_is_no_conversation(tmp_path: Path, text: str) -> None:
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(InvalidRequestError):
        read_conversation(tmp_path / "x.json")


def test_interrupting_an_answer_keeps_the_conversation(
    session: ChatSession, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from mlx_gptoss.cli import terminal

    shown = terminal.Printer.show
    count = 0

    def interrupt(printer: terminal.Printer, event: object) -> None:
        nonlocal count
        count += 1
        if count == 5:
            raise KeyboardInterrupt
        shown(printer, event)  # type: ignore[arg-type]  # events pass through

    monkeypatch.setattr(terminal.Printer, "show", interrupt)
    chat_cmd._loop(session, iter(["long", "hi"]), interactive=True)
    out, err = capsys.readouterr()
    assert "(stopped)" in err
    assert out.endswith("Hello there!\n")


def test_tools_by_name_and_by_file(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("def shout(text: str) -> str:\n    return text.upper()\n")
    box = chat_cmd.tool_box(("calculate", f"{tmp_path / 'mine.py'}:shout"))
    assert [tool.name for tool in box.tools] == ["calculate", "shout"]


def test_what_a_tool_says_cannot_drive_the_terminal(llm: GptOss, capsys: pytest.CaptureFixture[str]) -> None:
    def get_weather(city: str) -> str:
        """The weather in a city."""
        return f"{city}: \x1b[2J\x9b2J\r18 C"

    box = ToolBox([FunctionTool.of(get_weather)])
    session = ChatSession(llm.chat(tools=box.tools), box)
    session.handle("weather?")
    session.handle("/history")
    err = capsys.readouterr().err
    assert "18 C" in err
    assert not {"\x1b", "\x9b", "\r"} & set(err)


@pytest.mark.parametrize(
    "record", ['{"role": "user", "text": 3}', '{"role": "assistant", "tool_calls": "x"}', '"user"', "3"]
)
def test_a_saved_conversation_of_wrong_types_is_refused(record: str, session: ChatSession, tmp_path: Path) -> None:
    path = tmp_path / "talk.json"
    path.write_text(f'{{"messages": [{record}]}}')
    with pytest.raises(InvalidRequestError, match="not a saved conversation"):
        session.handle(f"/open {path}")


@pytest.mark.parametrize("line", ["/save /dev/null/x", "/save ~nobody-there/x", "/open /dev/null/x", "/open", "/save"])
def test_a_place_that_cannot_be_used_is_one_clear_error(line: str, session: ChatSession) -> None:
    with pytest.raises(GptOssError):
        session.handle(line)


def test_saving_replaces_neither_a_link_nor_what_is_no_file(session: ChatSession, tmp_path: Path) -> None:
    session.handle("hello")
    link, pipe = tmp_path / "link.json", tmp_path / "pipe"
    link.symlink_to(tmp_path / "real.json")
    os.mkfifo(pipe)
    session.handle(f"/save {link}")
    assert link.is_symlink()
    assert "hello" in (tmp_path / "real.json").read_text()
    with pytest.raises(InvalidRequestError, match="cannot save"):
        session.handle(f"/save {pipe}")
    assert pipe.is_fifo()


class Broken(ChatSession):
    """Fails at every line in the way it is told."""

    error: BaseException

    def handle(self, line: str) -> None:
        raise self.error


@pytest.mark.parametrize("error", [RuntimeError("a bug"), OSError(28, "No space left"), KeyboardInterrupt()])
def test_whatever_breaks_a_turn_leaves_the_conversation_open(
    error: BaseException, session: ChatSession, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = Broken(session.chat, session.tools)
    broken.error = error
    chat_cmd._loop(broken, iter(["a", "b"]), interactive=True)
    assert len(capsys.readouterr().err.strip().splitlines()) in (2, 3)
    with pytest.raises(type(error)):
        chat_cmd._loop(broken, iter(["a", "b"]), interactive=False)


def test_what_was_typed_is_remembered_for_its_writer_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLX_GPTOSS_HOME", str(tmp_path / "home"))
    path = chat_cmd._history_file()
    assert path is not None
    assert Path(path).stat().st_mode & 0o077 == 0
    monkeypatch.setenv("MLX_GPTOSS_HOME", "/dev/null/home")
    assert chat_cmd._history_file() is None
