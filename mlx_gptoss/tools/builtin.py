"""Small tools that come with the package, for `mlx-gptoss chat --tool calculate`."""

from __future__ import annotations

import ast
import math
import operator
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any

_BINARY: Mapping[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: operator.pow,
}
_UNARY: Mapping[type[ast.unaryop], Callable[[Any], Any]] = {ast.USub: operator.neg, ast.UAdd: operator.pos}
_NAMES: Mapping[str, float] = {"pi": math.pi, "e": math.e}
_FUNCTIONS: Mapping[str, Callable[..., Any]] = {
    name: getattr(math, name) for name in ("sqrt", "sin", "cos", "tan", "log", "log10", "exp", "floor", "ceil")
} | {"abs": abs, "round": round, "min": min, "max": max}
_LARGEST_EXPONENT = 1024
_LARGEST_POWER_BITS = 1 << 16


def _evaluate(node: ast.expr) -> Any:
    if isinstance(node, ast.Constant) and isinstance(node.value, int | float) and not isinstance(node.value, bool):
        return node.value
    if isinstance(node, ast.Name) and node.id in _NAMES:
        return _NAMES[node.id]
    if isinstance(node, ast.UnaryOp) and type(node.op) in _UNARY:
        return _UNARY[type(node.op)](_evaluate(node.operand))
    if isinstance(node, ast.BinOp) and type(node.op) in _BINARY:
        left, right = _evaluate(node.left), _evaluate(node.right)
        # An unbounded power of whole numbers, or a power of a power, could take all memory.
        if isinstance(node.op, ast.Pow):
            if abs(right) > _LARGEST_EXPONENT:
                raise ValueError(f"exponent beyond {_LARGEST_EXPONENT}")
            if isinstance(left, int) and left.bit_length() * abs(right) > _LARGEST_POWER_BITS:
                raise ValueError("the power is too large")
        return _BINARY[type(node.op)](left, right)
    if (
        isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id in _FUNCTIONS
        and not node.keywords
    ):
        return _FUNCTIONS[node.func.id](*(_evaluate(argument) for argument in node.args))
    raise ValueError("only numbers, + - * / // % **, parentheses and simple functions are understood")


def calculate(expression: str) -> str:
    """Evaluate an arithmetic expression, for example (3 + 4) * 2.5."""
    if len(expression) > 1000:
        raise ValueError("expression too long")
    return str(_evaluate(ast.parse(expression, mode="eval").body))


def current_time() -> str:
    """The current local date and time, ISO 8601."""
    return datetime.now().astimezone().isoformat(timespec="seconds")


BUILTIN: Mapping[str, Callable[..., Any]] = {"calculate": calculate, "current_time": current_time}
