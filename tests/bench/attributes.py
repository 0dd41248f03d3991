"""A lint of `[[...]]` attributes, which clang ignores: unknown, duplicate, missing and mistyped ones."""

from __future__ import annotations

import re
from collections.abc import Iterator

from tests.bench.faults import Diagnostic
from tests.bench.rewrite import blank_comments

_UINTS = ("uint", "ushort", "uint32_t", "uint16_t")
_VECTORS = (*_UINTS, "uint2", "uint3", "ushort2", "ushort3")
BUILTINS = {
    "dispatch_quadgroups_per_threadgroup": _UINTS,
    "dispatch_simdgroups_per_threadgroup": _UINTS,
    "dispatch_threads_per_threadgroup": _VECTORS,
    "grid_origin": _VECTORS,
    "grid_size": _VECTORS,
    "quadgroup_index_in_threadgroup": _UINTS,
    "quadgroups_per_threadgroup": _UINTS,
    "simdgroup_index_in_threadgroup": _UINTS,
    "simdgroups_per_threadgroup": _UINTS,
    "thread_execution_width": _UINTS,
    "thread_index_in_quadgroup": _UINTS,
    "thread_index_in_simdgroup": _UINTS,
    "thread_index_in_threadgroup": _UINTS,
    "thread_position_in_grid": _VECTORS,
    "thread_position_in_threadgroup": _VECTORS,
    "threadgroup_position_in_grid": _VECTORS,
    "threadgroups_per_grid": _VECTORS,
    "threads_per_grid": _VECTORS,
    "threads_per_simdgroup": _UINTS,
    "threads_per_threadgroup": _VECTORS,
}
_FUNCTION_ATTRIBUTES = (
    "kernel",
    "host_name",
    "max_total_threads_per_threadgroup",
    "visible",
    "always_inline",
    "gnu::always_inline",
    "unroll",
    "likely",
    "unlikely",
    "maybe_unused",
    "nodiscard",
    "fallthrough",
)
_PARAMETER_ATTRIBUTES = ("buffer", "threadgroup", *BUILTINS)
_ATTRIBUTE = re.compile(r"\[\[([^\[\]]*(?:\[[^\[\]]*\][^\[\]]*)*)\]\]")
_KERNEL = re.compile(
    r"(?:\[\[\s*kernel\s*\]\]|\bkernel\b)\s*(?:\[\[[^\]]*\]\]\s*)*(?P<result>[\w:<>]+(?:\s*\*)?)\s+(?P<name>\w+)\s*\("
)
_FORBIDDEN = (
    (re.compile(r"\blong\s+long\b"), "long-long", "long long does not exist in Metal: use long or ulong"),
    (re.compile(r"\bdouble\b"), "double", "double does not exist in Metal"),
    (
        re.compile(r"\b(?:dynamic_cast|typeid|thread_local|co_await|co_yield|co_return|try|throw|catch|asm|__asm__)\b"),
        "keyword",
        "this C++ feature does not exist in Metal",
    ),
    (re.compile(r"\b(?:new|delete)(?:\s*\[|\s+\w)"), "keyword", "new and delete do not exist in Metal"),
    (
        re.compile(
            r"\b(?:__global|__local|__private|__constant|__generic|__kernel|get_global_id|get_local_id|convert_\w+)\b"
        ),
        "opencl",
        "this is OpenCL's spelling, not Metal's",
    ),
    (re.compile(r"\b(?:__builtin_\w+|msl_\w+)\b"), "builtin", "this exists on the bench and not in Metal"),
    (re.compile(r"\b(?:printf|assert)\s*\("), "library", "this function does not exist in Metal"),
)


def lint_text(text: str) -> list[Diagnostic]:
    """Violations that need no syntax tree."""
    blank = blank_comments(text)
    found = list(_unknown(text, blank))
    for match in _KERNEL.finditer(blank):
        found.extend(_kernel(text, blank, match))
    for pattern, rule, message in _FORBIDDEN:
        found.extend(_at(text, hit.start(), rule, message) for hit in pattern.finditer(blank))
    return sorted(found, key=lambda d: (d.line, d.column))


def _unknown(text: str, blank: str) -> Iterator[Diagnostic]:
    for match in _ATTRIBUTE.finditer(blank):
        for name, _ in _split(match[1]):
            if name not in _FUNCTION_ATTRIBUTES and name not in _PARAMETER_ATTRIBUTES:
                yield _at(text, match.start(), "attribute", f"unknown attribute {name}")


def _split(inside: str) -> list[tuple[str, str]]:
    """(name, argument) of the attributes in one pair of brackets."""
    return [
        (m[1], (m[2] or "").strip()) for m in re.finditer(r"([\w:]+)\s*(?:\(([^()]*)\))?\s*(?:,|$)", inside.strip())
    ]


def _kernel(text: str, blank: str, match: re.Match[str]) -> Iterator[Diagnostic]:
    """Rules for the parameters of one kernel."""
    if match["result"] != "void":
        yield _at(text, match.start(), "kernel", f"kernel {match['name']} must return void")
    depth, end = 1, match.end()
    while end < len(blank) and depth:
        depth += blank[end] in "(["
        depth -= blank[end] in ")]"
        end += 1
    seen: dict[str, str] = {}
    for start, parameter in _parameters(blank, match.end(), end - 1):
        attributes = [a for m in _ATTRIBUTE.finditer(parameter) for a in _split(m[1])]
        declared = _ATTRIBUTE.sub("", parameter).strip()
        if not declared:
            continue
        name = declared.split()[-1].lstrip("*&")
        if not attributes:
            yield _at(text, start, "attribute", f"kernel parameter {name} has no attribute")
        if len(attributes) > 1:
            yield _at(text, start, "attribute", f"kernel parameter {name} has several attributes")
        for attribute, argument in attributes:
            label = f"{attribute}({argument})" if argument else attribute
            if label in seen:
                yield _at(text, start, "attribute", f"{label} is given to {seen[label]} and to {name}")
            seen[label] = name
            yield from _one(text, start, name, declared, attribute, argument)


def _one(text: str, start: int, name: str, declared: str, attribute: str, argument: str) -> Iterator[Diagnostic]:
    pointer = "*" in declared or "&" in declared
    if attribute == "buffer":
        if not re.fullmatch(r"\d+", argument):
            yield _at(text, start, "attribute", f"buffer of {name} needs a number")
        elif int(argument) > 30:
            yield _at(text, start, "attribute", f"buffer({argument}) of {name}: the last buffer index is 30")
        if not pointer:
            yield _at(text, start, "attribute", f"{name} is a buffer and must be a pointer or a reference")
        elif not re.search(r"\b(?:device|constant)\b", declared):
            yield _at(text, start, "address-space", f"buffer {name} must be in device or constant memory")
    elif attribute in BUILTINS:
        type_ = " ".join(w for w in declared.split()[:-1] if w != "const")
        if type_ not in BUILTINS[attribute]:
            yield _at(
                text,
                start,
                "attribute",
                f"{attribute} has type {type_ or 'none'}, expected {' or '.join(BUILTINS[attribute][:4])}",
            )
    elif attribute == "threadgroup" and not re.search(r"\bthreadgroup\b", declared):
        yield _at(text, start, "attribute", f"{name} must point to threadgroup memory")


def _parameters(blank: str, start: int, end: int) -> Iterator[tuple[int, str]]:
    depth, at = 0, start
    for i in range(start, end + 1):
        c = blank[i] if i < end else ","
        depth += c in "([<"
        depth -= c in ")]>"
        if c == "," and depth == 0:
            part = blank[at:i]
            yield at + len(part) - len(part.lstrip()), part
            at = i + 1


def _at(text: str, offset: int, rule: str, message: str) -> Diagnostic:
    line = text.count("\n", 0, offset) + 1
    begin = text.rfind("\n", 0, offset) + 1
    finish = text.find("\n", offset)
    return Diagnostic(rule, line, offset - begin + 1, message, text[begin : finish if finish >= 0 else len(text)])
