"""From the text that MLX would compile to the translation units that clang compiles.

Line numbers never change: every rewrite stays on its line.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from tests.bench.spec import MetalText, Parameter
from tests.bench.toolchain import TEXT_NAME

_COMMENT_OR_STRING = re.compile(r'//[^\n]*|/\*.*?\*/|"(?:\\.|[^"\\\n])*"', re.S)
_METAL_INCLUDE = re.compile(
    r"^[ \t]*#[ \t]*include[ \t]*<metal_[^>]*>[^\n]*$|^[ \t]*#[ \t]*include[ \t]*<metal_stdlib>[^\n]*$", re.M
)
_ARRAY_START = re.compile(r"(?P<lead>(?:^|[;{}\n])[ \t\n]*)(?P<align>(?:alignas\s*\([^()]*\)\s*)?)threadgroup\s+", re.M)
_KERNEL_WORD = re.compile(r"\[\[\s*kernel\s*\]\](?=\s*(?:\[\[[^\]]*\]\]\s*)*void)|\bkernel\b(?=\s+void)")
_INSTANTIATION = re.compile(r"\btemplate\s*\[\[\s*host_name\b[^;]*;")
_UINT3 = "uint3(t->{0}[0], t->{0}[1], t->{0}[2])"
_VECTOR_ATTRIBUTES = {
    "thread_position_in_grid": "position_in_grid",
    "thread_position_in_threadgroup": "position_in_threadgroup",
    "threadgroup_position_in_grid": "threadgroup_position_in_grid",
    "threads_per_grid": "threads_per_grid",
    "grid_size": "threads_per_grid",
    "threads_per_threadgroup": "threads_per_threadgroup",
    "dispatch_threads_per_threadgroup": "dispatch_threads_per_threadgroup",
    "threadgroups_per_grid": "threadgroups_per_grid",
}
_SCALAR_ATTRIBUTES = {
    "thread_index_in_threadgroup": "t->index_in_threadgroup",
    "thread_index_in_simdgroup": "t->index_in_simdgroup",
    "simdgroup_index_in_threadgroup": "t->simdgroup_index",
    "simdgroups_per_threadgroup": "t->simdgroups_per_threadgroup",
    "dispatch_simdgroups_per_threadgroup": "t->dispatch_simdgroups_per_threadgroup",
    "threads_per_simdgroup": "32u",
    "thread_execution_width": "32u",
    "thread_index_in_quadgroup": "(t->index_in_threadgroup & 3u)",
    "quadgroup_index_in_threadgroup": "(t->index_in_threadgroup / 4u)",
    "quadgroups_per_threadgroup": "(t->simdgroups_per_threadgroup * 8u)",
    "dispatch_quadgroups_per_threadgroup": "(t->dispatch_simdgroups_per_threadgroup * 8u)",
}
_THREAD = (
    "struct msl_thread_info { uint position_in_grid[3]; uint position_in_threadgroup[3]; "
    "uint threadgroup_position_in_grid[3]; uint threads_per_grid[3]; uint threads_per_threadgroup[3]; "
    "uint dispatch_threads_per_threadgroup[3]; uint threadgroups_per_grid[3]; uint index_in_threadgroup; "
    "uint index_in_simdgroup; uint simdgroup_index; uint simdgroups_per_threadgroup; "
    "uint dispatch_simdgroups_per_threadgroup; };"
)


def blank_comments(text: str) -> str:
    """The text with comments and string contents replaced by spaces, newlines kept."""

    def blank(match: re.Match[str]) -> str:
        keep_quotes = match[0].startswith('"')
        inner = re.sub(r"[^\n]", " ", match[0])
        return f'"{inner[1:-1]}"' if keep_quotes else inner

    return _COMMENT_OR_STRING.sub(blank, text)


def drop_metal_includes(text: str) -> str:
    """The text without `#include <metal_...>`: the shim is already there."""
    return _METAL_INCLUDE.sub("", text)


def _split_declarators(text: str) -> list[str]:
    parts, depth, start = [], 0, 0
    for i, c in enumerate(text):
        depth += c in "[({<"
        depth -= c in "])}>"
        if c == "," and depth == 0:
            parts.append(text[start:i])
            start = i + 1
    parts.append(text[start:])
    return [p.strip() for p in parts]


def move_threadgroup_arrays(source: str) -> str:
    """Gives every `threadgroup T name[...]` of a kernel body its place in the executor's arena.

    Pointers and references to threadgroup memory stay as they are.
    """
    blank = blank_comments(source)
    out: list[str] = []
    at, slot = 0, 0
    for match in _ARRAY_START.finditer(blank):
        end = blank.find(";", match.end())
        if end < 0 or match.end() < at:
            continue
        statement = blank[match.end() : end]
        if (
            "=" in statement
            or "*" in re.sub(r"\[[^\]]*\]", "", statement)
            or "&" in re.sub(r"\[[^\]]*\]", "", statement)
        ):
            continue
        declared = _declaration(statement)
        if declared is None:
            continue
        type_, declarators = declared
        out.append(source[at : match.start()] + match["lead"])
        for name, dimensions in declarators:
            alias = f"msl_array_{slot}"
            out.append(
                f"typedef {type_} {alias}{dimensions}; threadgroup {alias}& {name} = "
                f"*(threadgroup {alias}*)msl_threadgroup_array({slot}, sizeof({alias}), alignof({alias}));"
            )
            slot += 1
        out.append("\n" * source[match.start() + len(match["lead"]) : end].count("\n"))
        at = end + 1
    return "".join(out) + source[at:]


def _declaration(statement: str) -> tuple[str, list[tuple[str, str]]] | None:
    """(type, [(name, dimensions)]) of `T a[N], b[M][K]`, or None when it is no plain declaration."""
    first, *rest = _split_declarators(" ".join(statement.split()))
    head = re.match(r"^(?P<type>.*[\w>])\s+(?P<name>\w+)\s*(?P<dims>(?:\[[^\]]*\]\s*)*)$", first)
    if head is None:
        return None
    declarators = [(head["name"], head["dims"])]
    for part in rest:
        more = re.match(r"^(?P<name>\w+)\s*(?P<dims>(?:\[[^\]]*\]\s*)*)$", part)
        if more is None:
            return None
        declarators.append((more["name"], more["dims"]))
    return head["type"], declarators


def _value(p: Parameter) -> str:
    if p.role != "attribute":
        return f"*a->{p.name}" if p.reference else f"a->{p.name}"
    if p.name in _VECTOR_ATTRIBUTES:
        return _UINT3.format(_VECTOR_ATTRIBUTES[p.name])
    if p.name == "grid_origin":
        return "uint3(0u)"
    return _SCALAR_ATTRIBUTES[p.name]


def execution_unit(metal: MetalText) -> str:
    """The translation unit that runs: MLX's text, its arrays moved, and an entry that unpacks the arguments."""
    text = drop_metal_includes(metal.text)
    body_at = len(drop_metal_includes(metal.header)) + metal.text[len(metal.header) :].index(") {\n") + 4
    body = move_threadgroup_arrays(metal.body)
    kernel = text[:body_at] + body + "\n}\n"
    fields = " ".join(f"{p.type}* {p.name};" for p in metal.parameters if p.role != "attribute")
    arguments = f"<{', '.join(metal.template_arguments)}>" if metal.template_arguments else ""
    values = ", ".join(_value(p) for p in metal.parameters)
    return (
        f'{_THREAD}\n#line 1 "{TEXT_NAME}"\n{kernel}\n#line 1 "entry.h"\n'
        f"struct msl_arguments {{ {fields} }};\n"
        'extern "C" __attribute__((visibility("default"))) void msl_entry(const __generic msl_arguments* a, '
        f"const __generic msl_thread_info* t) {{ {metal.function}{arguments}({values}); }}\n"
    )


def raw_unit(metal: MetalText) -> tuple[str, int]:
    """The translation unit that is only type-checked, and the line in it that is the text's first.

    The kernel is a real kernel function here and its threadgroup variables are as written. Template parameters become
    names of a namespace, because clang takes no template kernels.
    """
    header = drop_metal_includes(metal.header)
    signature = metal.text[len(metal.header) :]
    signature = signature[signature.index("[[kernel]] void") : signature.index(") {\n") + 4]
    aliases = _aliases(metal.template_names, metal.template_arguments)
    lead = f"namespace msl_raw {{ {aliases} __kernel" + signature.removeprefix("[[kernel]]")
    newline = "\n" if metal.template_names else ""
    unit = f'namespace msl_user {{\n#line 1 "{TEXT_NAME}"\n{header}{newline}{lead}{metal.body}\n}}\n}}\n}}\n'
    return unit, 3


def raw_kernel(text: str) -> str:
    """A hand-written text with its `[[kernel]]` or `kernel` functions as the compiler's own kernels.

    Template kernels stay functions, with their threadgroup variables moved, and explicit instantiations go: clang has
    neither.
    """
    text = _INSTANTIATION.sub(lambda m: "\n" * m[0].count("\n"), text)
    blank = blank_comments(text)
    out, at = [], 0
    for match in _KERNEL_WORD.finditer(blank):
        if match.start() < at:
            continue
        out.append(text[at : match.start()])
        at = match.end()
        if not blank[: match.start()].rstrip().endswith(">"):
            out.append("__kernel")
            continue
        opening = blank.find("{", blank.find(")", _closing(blank, blank.find("(", at), "(", ")")))
        end = _closing(blank, opening, "{", "}")
        out.append(text[at : opening + 1] + move_threadgroup_arrays(text[opening + 1 : end]))
        at = end
    return "".join(out) + text[at:]


def _closing(text: str, start: int, opening: str, closing: str) -> int:
    """Index of the bracket that closes the one at `start`; the end of the text when none does."""
    depth = 0
    for i in range(max(start, 0), len(text)):
        depth += text[i] == opening
        depth -= text[i] == closing
        if depth == 0:
            return i
    return len(text)


def _aliases(names: Sequence[tuple[str, str]], arguments: Sequence[str]) -> str:
    parts = []
    for (kind, name), argument in zip(names, arguments, strict=True):
        if kind == "typename":
            parts.append(f"using {name} = {argument};")
        else:
            parts.append(f"static constexpr __constant {kind} {name} = {argument};")
    return " ".join(parts)
