"""The text of the developer message: instructions, function tools, response formats."""

from __future__ import annotations

from collections.abc import Sequence

from mlx_gptoss.harmony.bounds import schema_text
from mlx_gptoss.harmony.typescript import comment_lines, function_type
from mlx_gptoss.messages import Tool
from mlx_gptoss.request import ResponseFormat


def developer_text(instructions: str, tools: Sequence[Tool], response_format: ResponseFormat) -> str:
    """Content of the developer message; "" when there is nothing to say, and then no message is rendered."""
    sections = []
    if instructions:
        sections.append(f"# Instructions\n\n{instructions}")
    if tools:
        sections.append(f"# Tools\n\n{functions_section(tools)}")
    if response_format.kind != "text":
        sections.append(f"# Response Formats\n\n{response_format_section(response_format)}")
    return "\n\n".join(sections)


def functions_section(tools: Sequence[Tool]) -> str:
    """The `functions` namespace as TypeScript."""
    types = "\n".join(function_type(tool.name, tool.description, tool.parameters) for tool in tools)
    return f"## functions\n\nnamespace functions {{\n\n{types}\n}} // namespace functions"


def response_format_section(response_format: ResponseFormat) -> str:
    """Name, commented description and schema (within `bounds`) of the format that the final answer must have."""
    if response_format.kind == "json_object" or response_format.schema is None:
        schema = '{"type":"object"}'
    else:
        schema = schema_text(response_format.schema)
    comments = comment_lines(response_format.description, "")
    return "\n".join([f"## {response_format.name}\n", *comments, schema])
