"""Type-checks a kernel's text with all the strictness the bench has.

Three looks at the same text: clang on the template as MLX instantiates it, clang on a real kernel function with its
threadgroup variables as written, and the lints on top. Nothing is executed.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Sequence
from typing import Literal

from tests.bench.attributes import lint_text
from tests.bench.dtypes import ElementType, element_type, to_numpy
from tests.bench.faults import Diagnostic
from tests.bench.lint import Lint
from tests.bench.rewrite import drop_metal_includes, execution_unit, raw_kernel, raw_unit
from tests.bench.spec import KernelSpec, MetalText, Template, generate
from tests.bench.toolchain import TEXT_NAME, cache_folder, key, parse_diagnostics, rules_hash, syntax_check

Variant = Literal["given", "device"]
_LEVELS = ("error", "fatal error")
_HINTS = (
    (
        re.compile(r"\b(?:float|half|bfloat|u?char|u?short|u?int|u?long)[234]\s+\w+\s*\("),
        "write T v = T(...): this form of a vector constructor does not parse on the bench",
    ),
    (
        re.compile(r"\b(?:float|half|bfloat|u?char|u?short|u?int|u?long)[234]\s+\w+\s*=\s*\{"),
        "write T v = T(...) instead of braces",
    ),
    (
        re.compile(r"\bvec\s*<[^<>]*>\s*\("),
        "vec<T, N>(...) does not parse on the bench: fill a `vec<T, N> v` component by component",
    ),
    (
        re.compile(r"\b(?:local|global|generic|bool[234])\b"),
        "local, global, generic and bool2..4 are reserved words on the bench: choose another name",
    ),
)


def check_text(text: str) -> list[Diagnostic]:
    """Diagnostics of a whole `.metal` text: functions, kernels with their attributes, no `#include "..."` left."""
    return _remembered(text, lambda: _check_text(text))


def _check_text(text: str) -> list[Diagnostic]:
    dropped = drop_metal_includes(text)
    unit = f'namespace msl_user {{\n#line 1 "{TEXT_NAME}"\n{raw_kernel(dropped)}\n}}\n'
    return _merge(lint_text(text), _clang(unit, text, 3, tree=True))


def check_kernel(
    spec: KernelSpec,
    inputs: Sequence[object],
    *,
    template: Template = (),
    output_dtypes: Sequence[object],
    variants: Sequence[Variant] = ("given",),
) -> list[Diagnostic]:
    """Diagnostics of the text MLX would compile for these inputs (arrays, or (shape, dtype) pairs).

    `variants` may add "device": the signature in which every input is large enough to arrive in device memory.
    """
    described = [_describe(value) for value in inputs]
    outputs = [element_type(d) for d in output_dtypes]
    found: list[Diagnostic] = []
    for variant in variants:
        text = generate(spec, described, outputs, template, force_device=variant == "device")
        found = _merge(found, check_generated(text))
    return found


def check_generated(text: MetalText) -> list[Diagnostic]:
    """Diagnostics of a generated text; lines count in `text.text`."""
    return _remembered("generated\n" + text.text, lambda: _check_generated(text))


def _check_generated(text: MetalText) -> list[Diagnostic]:
    found = _merge(lint_text(text.text), _clang(execution_unit(text), text.text, 0, tree=False))
    unit, first_line = raw_unit(text)
    return _merge(found, _clang(unit, text.text, first_line, tree=True))


def _remembered(what: str, check: Callable[[], list[Diagnostic]]) -> list[Diagnostic]:
    """The result of a check, kept on disk by everything that went into it."""
    memo = cache_folder() / f"{key('check', rules_hash(), what)}.json"
    if memo.exists():
        return [Diagnostic(**d) for d in json.loads(memo.read_text())]
    found = check()
    partial = memo.with_suffix(f".{os.getpid()}.part")
    partial.write_text(json.dumps([_fields(d) for d in found]))
    partial.replace(memo)
    return found


def _fields(d: Diagnostic) -> dict[str, str | int]:
    return {"rule": d.rule, "line": d.line, "column": d.column, "message": d.message, "source": d.source}


def _describe(value: object) -> tuple[tuple[int, ...], ElementType]:
    if isinstance(value, tuple) and len(value) == 2 and isinstance(value[0], tuple):
        return value[0], element_type(value[1])
    array, kind = to_numpy(value)
    return tuple(array.shape), kind


def _clang(unit: str, text: str, first_line: int, tree: bool) -> list[Diagnostic]:
    """The compiler's errors, and with `tree` the lint of what is inside `namespace msl_user`."""
    messages, dump = syntax_check(unit, tree="msl_user" if tree else None)
    found = [_hinted(d) for d in parse_diagnostics(messages, text, _LEVELS)]
    decoder = json.JSONDecoder()
    at = dump.find("{")
    while at >= 0:
        node, end = decoder.raw_decode(dump, at)
        found.extend(Lint(unit, first_line).run(node))
        at = dump.find("{", end)
    return found


def _hinted(d: Diagnostic) -> Diagnostic:
    for pattern, hint in _HINTS:
        if pattern.search(d.source):
            return Diagnostic(d.rule, d.line, d.column, f"{d.message} ({hint})", d.source)
    return d


def _merge(first: Sequence[Diagnostic], second: Sequence[Diagnostic]) -> list[Diagnostic]:
    """Both, each (rule, line, message) once, in order of place."""
    seen: dict[tuple[str, int, str], Diagnostic] = {}
    for d in (*first, *second):
        seen.setdefault((d.rule, d.line, d.message), d)
    return sorted(seen.values(), key=lambda d: (d.line, d.column, d.rule))
