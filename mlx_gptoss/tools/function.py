"""A Python function as a tool: its signature becomes the JSON Schema, its result the tool message."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import json
import sys
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlx_gptoss.errors import InvalidRequestError
from mlx_gptoss.messages import Tool, ToolCall, ToolMessage

_TYPES: Mapping[Any, str] = {str: "string", int: "integer", float: "number", bool: "boolean"}


def json_schema_of(annotation: Any) -> dict[str, Any]:
    """The JSON Schema of a type annotation: scalars, lists, dicts, Literal, Optional and unions of those."""
    if annotation in _TYPES:
        return {"type": _TYPES[annotation]}
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Literal:
        return {"enum": list(arguments)} | ({"type": "string"} if all(isinstance(a, str) for a in arguments) else {})
    if origin in (list, tuple, set, frozenset) or annotation in (list, tuple, set):
        return {"type": "array"} | ({"items": json_schema_of(arguments[0])} if arguments else {})
    if origin is dict or annotation is dict:
        return {"type": "object"}
    if origin in (typing.Union, types.UnionType):
        choices = [json_schema_of(argument) for argument in arguments if argument is not type(None)]
        return choices[0] if len(choices) == 1 else {"anyOf": choices}
    return {}


def _is_json(value: object) -> bool:
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError, RecursionError):
        return False
    return True


@dataclass(frozen=True, slots=True)
class FunctionTool:
    """A callable and the Tool that describes it to the model."""

    tool: Tool
    function: Callable[..., Any]

    @classmethod
    def of(cls, function: Callable[..., Any]) -> FunctionTool:
        """Describe a function by its name, docstring and annotations."""
        try:
            hints = typing.get_type_hints(function)
        except Exception:
            hints = {}
        properties: dict[str, Any] = {}
        required = []
        for parameter in inspect.signature(function).parameters.values():
            if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
                continue
            schema = json_schema_of(hints.get(parameter.name, str))
            if parameter.default is parameter.empty:
                required.append(parameter.name)
            elif parameter.default is not None and _is_json(parameter.default):
                schema = schema | {"default": parameter.default}
            properties[parameter.name] = schema
        parameters = {"type": "object", "properties": properties, "required": required} if properties else None
        description = inspect.getdoc(function) or ""
        return cls(Tool(function.__name__, description, parameters), function)

    @classmethod
    def load(cls, target: str) -> FunctionTool:
        """The function that `package.module:name` or `path/to/file.py:name` stands for."""
        location, _, attribute = target.rpartition(":")
        if not location or not attribute:
            raise InvalidRequestError(
                "not a tool", param="tool", expected="file.py:function or module:function", got=repr(target)
            )
        if location.endswith(".py"):
            path = Path(location).expanduser()
            specification = importlib.util.spec_from_file_location(f"mlx_gptoss_tool_{path.stem}", path)
            if specification is None or specification.loader is None or not path.is_file():
                raise InvalidRequestError("no such tool file", param="tool", got=location)
            module = importlib.util.module_from_spec(specification)
            sys.modules[specification.name] = module
            try:
                specification.loader.exec_module(module)
            except (Exception, SystemExit) as error:
                raise InvalidRequestError(
                    "the tool file does not run", param="tool", got=str(error), where=location
                ) from error
        else:
            try:
                module = importlib.import_module(location)
            except ImportError as error:
                raise InvalidRequestError("no such tool module", param="tool", got=location) from error
            except (Exception, SystemExit) as error:
                raise InvalidRequestError(
                    "the tool module does not run", param="tool", got=str(error), where=location
                ) from error
        function = getattr(module, attribute, None)
        if not callable(function):
            raise InvalidRequestError("no such function", param="tool", got=attribute, where=location)
        try:
            return cls.of(function)
        except (AttributeError, TypeError, ValueError) as error:
            # Some callables have no name, or no signature that Python can tell.
            raise InvalidRequestError(
                "not a function that can be described", param="tool", got=str(error), where=target
            ) from error


class ToolBox:
    """Tools by name, and the one place where a call is run. A failing call is an answer to the model, not an error."""

    def __init__(self, tools: Iterable[FunctionTool] = ()) -> None:
        """Raises InvalidRequestError when two tools have one name."""
        self._tools: dict[str, FunctionTool] = {}
        for item in tools:
            if item.tool.name in self._tools:
                raise InvalidRequestError("two tools have the same name", param="tool", got=repr(item.tool.name))
            self._tools[item.tool.name] = item

    def __bool__(self) -> bool:
        return bool(self._tools)

    def __contains__(self, name: object) -> bool:
        return name in self._tools

    @property
    def tools(self) -> tuple[Tool, ...]:
        """What to put into a request."""
        return tuple(item.tool for item in self._tools.values())

    def run(self, call: ToolCall) -> ToolMessage:
        """Run one call. Bad arguments, an unknown name or an exception come back as the result's text."""
        return ToolMessage(call.id, call.name, self._result(call))

    def _result(self, call: ToolCall) -> str:
        item = self._tools.get(call.name)
        if item is None:
            return json.dumps({"error": f"unknown tool {call.name}; known: {', '.join(self._tools) or 'none'}"})
        try:
            arguments = json.loads(call.arguments or "{}")
        except (ValueError, RecursionError) as error:
            return json.dumps({"error": f"arguments are not JSON: {error}"})
        if not isinstance(arguments, dict):
            return json.dumps({"error": "arguments are not a JSON object"})
        try:
            inspect.signature(item.function).bind(**arguments)
        except TypeError as error:
            return json.dumps({"error": str(error)})
        try:
            value = item.function(**arguments)
        except (Exception, SystemExit) as error:
            return json.dumps({"error": f"{type(error).__name__}: {error}"})
        if isinstance(value, str):
            return value
        try:
            return json.dumps(value, ensure_ascii=False, default=str)
        except (TypeError, ValueError, RecursionError):
            return str(value)
