"""Turns a `.metal` entry file into the arguments of `mx.fast.metal_kernel`.

An entry file holds one `[[kernel]]` function, thin enough to read at a glance, and includes the headers with the
device functions. The file is legal Metal by itself; MLX, however, generates the signature anew from the arrays of
each call and wants the parts apart:

    header          everything before the kernel: the `#include "..."` files in order, each once, comments stripped
    source          the text between the kernel's braces
    inputs          the `const device` (or `const constant`) arguments
    outputs         the mutable `device` arguments
    template        the template parameters, in order
    builtins        the arguments with a thread attribute, which MLX adds when it finds their names in `source`
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Literal

from mlx_gptoss.errors import KernelError

BUILTINS: Mapping[str, str] = {
    "dispatch_quadgroups_per_threadgroup": "uint",
    "dispatch_simdgroups_per_threadgroup": "uint",
    "dispatch_threads_per_threadgroup": "uint3",
    "grid_origin": "uint3",
    "grid_size": "uint3",
    "quadgroup_index_in_threadgroup": "uint",
    "quadgroups_per_threadgroup": "uint",
    "simdgroup_index_in_threadgroup": "uint",
    "simdgroups_per_threadgroup": "uint",
    "thread_execution_width": "uint",
    "thread_index_in_quadgroup": "uint",
    "thread_index_in_simdgroup": "uint",
    "thread_index_in_threadgroup": "uint",
    "thread_position_in_grid": "uint3",
    "thread_position_in_threadgroup": "uint3",
    "threadgroup_position_in_grid": "uint3",
    "threadgroups_per_grid": "uint3",
    "threads_per_grid": "uint3",
    "threads_per_simdgroup": "uint",
    "threads_per_threadgroup": "uint3",
}
"""The thread attributes MLX knows, with the type it gives each."""


@dataclass(frozen=True, slots=True)
class Argument:
    """A buffer argument: `type` is the element type as written, a template parameter or a Metal type."""

    name: str
    type: str
    space: Literal["device", "constant"]


@dataclass(frozen=True, slots=True)
class TemplateParameter:
    """A template parameter: a dtype (`typename`), an `int` or a `bool`."""

    name: str
    kind: Literal["typename", "int", "bool"]


@dataclass(frozen=True, slots=True)
class KernelSource:
    """One kernel, ready for a back end. `digest` is the hash of all its text."""

    name: str
    header: str
    source: str
    inputs: tuple[Argument, ...]
    outputs: tuple[Argument, ...]
    template: tuple[TemplateParameter, ...]
    builtins: tuple[str, ...]
    system_includes: tuple[str, ...]
    digest: str

    @property
    def input_names(self) -> list[str]:
        return [argument.name for argument in self.inputs]

    @property
    def output_names(self) -> list[str]:
        return [argument.name for argument in self.outputs]


_INCLUDE = re.compile(r'^[ \t]*#[ \t]*include[ \t]*(?:"([^"]+)"|<([^>]+)>)[ \t]*$', re.MULTILINE)
_COMMENT = re.compile(r"//[^\n]*|/\*.*?\*/", re.DOTALL)
_KERNEL = re.compile(r"(?:template\s*<([^>]*)>\s*)?\[\[\s*kernel\s*\]\]\s*void\s+(\w+)\s*\(")
_BUFFER = re.compile(
    r"^(const\s+)?(device|constant)\s+(const\s+)?([\w:]+)\s*\*\s*(\w+)\s*\[\[\s*buffer\((\d+)\)\s*\]\]$"
)
_BUILTIN = re.compile(r"^(uint[23]?)\s+(\w+)\s*\[\[\s*(\w+)\s*\]\]$")
_PARAMETER = re.compile(r"^(typename|int|bool)\s+(\w+)$")


@cache
def load_kernel(name: str) -> KernelSource:
    """Read `metal/<name>.metal` with everything it includes. `<name>.<text>` is another text of the kernel `name`.

    Raises KernelError when the file or one of its includes is missing, or when the entry is not in the shape above.
    """
    return parse_kernel(name, _package_files())


def parse_kernel(name: str, files: Mapping[str, str]) -> KernelSource:
    """Like `load_kernel`, over any mapping of file name to text."""
    where = f"{name}.metal"
    system: list[str] = []
    text = _flatten(where, files, [], set(), system)
    entries = list(_KERNEL.finditer(text))
    if len(entries) != 1:
        raise KernelError("a kernel file has one [[kernel]] function", got=str(len(entries)), where=where)
    entry = entries[0]
    name = name.partition(".")[0]
    if entry.group(2) != name:
        raise KernelError("the kernel is named as its file", expected=name, got=entry.group(2), where=where)
    closing = _matching(text, entry.end() - 1, "(", ")", where)
    opening = text.index("{", closing)
    end = _matching(text, opening, "{", "}", where)
    if text[end + 1 :].strip():
        raise KernelError("nothing may follow the kernel", got=text[end + 1 :].strip()[:40], where=where)
    header, source = text[: entry.start()].strip() + "\n", text[opening + 1 : end].strip("\n") + "\n"
    template = tuple(_parameter(part.strip(), where) for part in (entry.group(1) or "").split(",") if part.strip())
    inputs, outputs, builtins = _arguments(text[entry.end() : closing], where)
    _check_body(source, inputs, outputs, builtins, where)
    digest = hashlib.sha256("\0".join((name, header, source, text[entry.start() : opening])).encode()).hexdigest()
    return KernelSource(name, header, source, inputs, outputs, template, builtins, tuple(system), digest)


def kernel_names() -> tuple[str, ...]:
    """The names of all kernels that ship, sorted."""
    return tuple(sorted({name.partition(".")[0] for name in text_names()}))


def text_names() -> tuple[str, ...]:
    """What `load_kernel` reads: the kernels' names, and `<name>.<text>` for each further text of one."""
    return tuple(sorted(name.removesuffix(".metal") for name in _package_files() if name.endswith(".metal")))


@cache
def _package_files() -> Mapping[str, str]:
    folder = resources.files("mlx_gptoss.metal")
    return {
        entry.name: entry.read_text(encoding="utf-8")
        for entry in folder.iterdir()
        if entry.name.endswith((".metal", ".h"))
    }


def _flatten(name: str, files: Mapping[str, str], chain: list[str], seen: set[str], system: list[str]) -> str:
    """The text of `name` with its includes put in place, each file once, comments and indentation stripped."""
    if name not in files:
        raise KernelError("a shader includes a file that is missing", got=name, where=" -> ".join(chain) or "metal/")
    if name in chain:
        raise KernelError("shader includes go in a circle", got=" -> ".join([*chain, name]), where=chain[0])
    if name in seen:
        return ""
    seen.add(name)
    lines: list[str] = []
    for line in _COMMENT.sub(_blank, files[name]).splitlines():
        include = _INCLUDE.match(line)
        if include is None:
            if line.strip() and line.strip() not in ("#pragma once", "using namespace metal;"):
                lines.append(line.strip())
        elif include.group(1) is not None:
            included = _flatten(include.group(1), files, [*chain, name], seen, system)
            if included:
                lines.append(included)
        elif include.group(2) != "metal_stdlib" and include.group(2) not in system:
            system.append(include.group(2))
    return "\n".join(lines)


def _blank(comment: re.Match[str]) -> str:
    return " " if "\n" not in comment.group() else "\n"


def _matching(text: str, start: int, left: str, right: str, where: str) -> int:
    depth = 0
    for i in range(start, len(text)):
        if text[i] == left:
            depth += 1
        elif text[i] == right:
            depth -= 1
            if depth == 0:
                return i
    raise KernelError(f"no {right!r} closes the {left!r} of the kernel", where=where)


def _parameter(text: str, where: str) -> TemplateParameter:
    match = _PARAMETER.match(text)
    if match is None:
        raise KernelError("template parameters are typename, int or bool", got=text, where=where)
    kind: Literal["typename", "int", "bool"]
    kind = "typename" if match.group(1) == "typename" else "int" if match.group(1) == "int" else "bool"
    return TemplateParameter(match.group(2), kind)


def _arguments(text: str, where: str) -> tuple[tuple[Argument, ...], tuple[Argument, ...], tuple[str, ...]]:
    inputs: list[Argument] = []
    outputs: list[Argument] = []
    builtins: list[str] = []
    for position, part in enumerate(" ".join(piece.split()) for piece in text.split(",")):
        if builtin := _BUILTIN.match(part):
            kind, name, attribute = builtin.groups()
            if name != attribute or BUILTINS.get(name) != kind:
                raise KernelError("a built-in is named and typed as MLX does", got=part, where=where)
            builtins.append(name)
            continue
        buffer = _BUFFER.match(part)
        if buffer is None:
            raise KernelError("not a buffer or a built-in argument", got=part, where=where)
        if int(buffer.group(6)) != position:
            raise KernelError("buffers are numbered in order", expected=str(position), got=part, where=where)
        argument = Argument(buffer.group(5), buffer.group(4), "device" if buffer.group(2) == "device" else "constant")
        mutable = buffer.group(1) is None and buffer.group(3) is None
        if not mutable and outputs:
            raise KernelError("inputs come before outputs", got=part, where=where)
        (outputs if mutable else inputs).append(argument)
    if not outputs:
        raise KernelError("a kernel has an output", where=where)
    return tuple(inputs), tuple(outputs), tuple(builtins)


def _check_body(
    source: str, inputs: tuple[Argument, ...], outputs: tuple[Argument, ...], builtins: tuple[str, ...], where: str
) -> None:
    """MLX searches the body for names: what it would add must be what the entry declares."""
    found = {name for name in BUILTINS if name in source}
    if found != set(builtins):
        wrong = ", ".join(sorted(found ^ set(builtins)))
        raise KernelError("declared built-ins and those in the kernel's body differ", got=wrong, where=where)
    for argument in (*inputs, *outputs):
        for suffix in ("_shape", "_strides", "_ndim"):
            if argument.name + suffix in source:
                raise KernelError("MLX would add an argument of this name", got=argument.name + suffix, where=where)
