"""Python functions as tools: schemas from signatures, and calls that never raise."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlx_gptoss.errors import InvalidRequestError
from mlx_gptoss.messages import ToolCall
from mlx_gptoss.tools import FunctionTool, ToolBox
from mlx_gptoss.tools.builtin import calculate, current_time


def weather(city: str, unit: Literal["c", "f"] = "c", days: int | None = None) -> dict[str, str]:
    """The weather in a city."""
    return {"city": city, "unit": unit}


def failing(reason: str) -> str:
    raise RuntimeError(reason)


BOX = ToolBox([FunctionTool.of(weather), FunctionTool.of(failing), FunctionTool.of(current_time)])


def test_schema_follows_the_signature() -> None:
    tool = FunctionTool.of(weather).tool
    assert tool.name == "weather"
    assert tool.description == "The weather in a city."
    assert tool.parameters == {
        "type": "object",
        "properties": {
            "city": {"type": "string"},
            "unit": {"enum": ["c", "f"], "type": "string", "default": "c"},
            "days": {"type": "integer"},
        },
        "required": ["city"],
    }
    assert FunctionTool.of(current_time).tool.parameters is None


def test_call_returns_json() -> None:
    result = BOX.run(ToolCall("c1", "weather", '{"city": "Zürich"}'))
    assert json.loads(result.text) == {"city": "Zürich", "unit": "c"}
    assert (result.call_id, result.name) == ("c1", "weather")


@pytest.mark.parametrize(
    ("name", "arguments", "part"),
    [
        ("nothing", "{}", "unknown tool"),
        ("weather", "{", "not JSON"),
        ("weather", "[1]", "not a JSON object"),
        ("weather", "{}", "city"),
        ("weather", '{"city": "x", "planet": "y"}', "planet"),
        ("failing", '{"reason": "boom"}', "RuntimeError: boom"),
    ],
)
def test_a_bad_call_is_an_answer(name: str, arguments: str, part: str) -> None:
    assert part in json.loads(BOX.run(ToolCall("c", name, arguments)).text)["error"]


@given(st.text(max_size=60))
def test_run_never_raises(arguments: str) -> None:
    assert BOX.run(ToolCall("c", "weather", arguments)).call_id == "c"


def test_load_from_file_and_module(tmp_path: Path) -> None:
    path = tmp_path / "my_tools.py"
    path.write_text("def double(x: int) -> int:\n    return 2 * x\n")
    box = ToolBox([FunctionTool.load(f"{path}:double")])
    assert box.run(ToolCall("c", "double", '{"x": 4}')).text == "8"
    assert FunctionTool.load("mlx_gptoss.tools.builtin:calculate").tool.name == "calculate"


@pytest.mark.parametrize(
    "target",
    [
        "nothing",
        "no_such_module_x:f",
        ".relative:f",
        "mlx_gptoss.tools.builtin:absent",
        "/no/file.py:f",
        "builtins:dict",
    ],
)
def test_load_names_what_is_missing(target: str) -> None:
    with pytest.raises(InvalidRequestError):
        FunctionTool.load(target)


@pytest.mark.parametrize(
    ("expression", "value"), [("2 + 3 * 4", "14"), ("-(2 ** 3)", "-8"), ("sqrt(16) + abs(-1)", "5.0"), ("7 // 2", "3")]
)
def test_calculate(expression: str, value: str) -> None:
    assert calculate(expression) == value


@pytest.mark.parametrize(
    "expression", ["__import__('os')", "a.b", "9 ** 99999", "(9 ** 999) ** 999", "'x' * 3", "[1]", "1" * 2000]
)
def test_calculate_refuses_what_is_not_arithmetic(expression: str) -> None:
    with pytest.raises((ValueError, SyntaxError)):
        calculate(expression)


def test_a_function_that_leaves_the_program_is_an_answer_to_the_model() -> None:
    def leave() -> None:
        raise SystemExit(3)

    box = ToolBox([FunctionTool.of(leave)])
    assert "SystemExit" in box.run(ToolCall("1", "leave", "")).text
    assert "error" in box.run(ToolCall("1", "leave", "[" * 100_000)).text


def test_a_default_that_is_no_json_is_left_out() -> None:
    def draw(shape: str = "circle", pen: object = object(), width: float = float("nan")) -> None: ...

    parameters = FunctionTool.of(draw).tool.parameters
    assert parameters is not None
    assert [name for name, schema in parameters["properties"].items() if "default" in schema] == ["shape"]
    json.dumps(parameters)


def test_two_tools_of_one_name_are_refused() -> None:
    def twice() -> None: ...

    with pytest.raises(InvalidRequestError, match="same name"):
        ToolBox([FunctionTool.of(twice), FunctionTool.of(twice)])


def test_a_tool_file_that_leaves_the_program_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "tool.py").write_text("raise SystemExit(0)")
    with pytest.raises(InvalidRequestError, match="does not run"):
        FunctionTool.load(f"{tmp_path / 'tool.py'}:x")
