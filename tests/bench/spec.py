"""The text that MLX would compile: `mx.fast.metal_kernel`'s arguments in, the generated Metal source out.

The rules are MLX's: an input of fewer than 8 elements arrives in `constant`, a 0-d input as a reference; shapes,
strides and thread attributes are declared when their name occurs in the source. A test proves the text equal to what
MLX itself produces.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import mlx.core as mx

from tests.bench.dtypes import ElementType, element_type

TemplateValue: TypeAlias = "int | bool | mx.Dtype"
Template: TypeAlias = Sequence[tuple[str, TemplateValue]]

_ATTRIBUTES = (
    ("dispatch_quadgroups_per_threadgroup", "uint"),
    ("dispatch_simdgroups_per_threadgroup", "uint"),
    ("dispatch_threads_per_threadgroup", "uint3"),
    ("grid_origin", "uint3"),
    ("grid_size", "uint3"),
    ("quadgroup_index_in_threadgroup", "uint"),
    ("quadgroups_per_threadgroup", "uint"),
    ("simdgroup_index_in_threadgroup", "uint"),
    ("simdgroups_per_threadgroup", "uint"),
    ("thread_execution_width", "uint"),
    ("thread_index_in_quadgroup", "uint"),
    ("thread_index_in_simdgroup", "uint"),
    ("thread_index_in_threadgroup", "uint"),
    ("thread_position_in_grid", "uint3"),
    ("thread_position_in_threadgroup", "uint3"),
    ("threadgroup_position_in_grid", "uint3"),
    ("threadgroups_per_grid", "uint3"),
    ("threads_per_grid", "uint3"),
    ("threads_per_simdgroup", "uint"),
    ("threads_per_threadgroup", "uint3"),
)


@dataclass(frozen=True, slots=True)
class KernelSpec:
    """The arguments of `mx.fast.metal_kernel`."""

    name: str
    input_names: Sequence[str]
    output_names: Sequence[str]
    source: str
    header: str = ""
    ensure_row_contiguous: bool = True
    atomic_outputs: bool = False


@dataclass(frozen=True, slots=True)
class Parameter:
    """One parameter of the generated signature.

    `role` is input, shape, strides, ndim, output or attribute; `buffer` is the input's or output's index there.
    """

    name: str
    declaration: str
    type: str
    role: str
    buffer: int = 0
    reference: bool = False


@dataclass(frozen=True, slots=True)
class MetalText:
    """A generated text: `function` is the instantiated kernel's name, `arguments` its template arguments as written."""

    function: str
    text: str
    header: str
    body: str
    parameters: tuple[Parameter, ...]
    template_names: tuple[tuple[str, str], ...]
    template_arguments: tuple[str, ...]


def _template_argument(value: TemplateValue) -> tuple[str, str]:
    """(parameter kind, argument) of a template value."""
    if isinstance(value, bool):
        return "bool", str(int(value))
    if isinstance(value, int):
        return "int", str(value)
    return "typename", element_type(value).metal


def generate(
    spec: KernelSpec,
    inputs: Sequence[tuple[tuple[int, ...], ElementType]],
    outputs: Sequence[ElementType],
    template: Template = (),
    force_device: bool = False,
) -> MetalText:
    """The text for inputs of these shapes and types. `force_device` declares every input as large ones are."""
    arguments = [_template_argument(value) for _, value in template]
    suffix = spec.name + ("_" + "".join("_" + a for _, a in arguments) if arguments else "")
    parameters: list[Parameter] = []
    for i, (name, (shape, kind)) in enumerate(zip(spec.input_names, inputs, strict=True)):
        size = 1
        for n in shape:
            size *= n
        constant = size < 8 and not force_device
        reference = constant and len(shape) == 0
        space = "constant" if constant else "device"
        mark = "&" if reference else "*"
        suffix += "_" + kind.metal + ("s" if reference else "c" if constant else "")
        declared = f"const {space} {kind.metal}{mark} {name}"
        parameters.append(Parameter(name, declared, f"const {space} {kind.metal}", "input", i, reference))
        if shape:
            for role, type_, ref in (("shape", "int", False), ("strides", "int64_t", False), ("ndim", "int", True)):
                if f"{name}_{role}" in spec.source:
                    declared = f"const constant {type_}{'&' if ref else '*'} {name}_{role}"
                    parameters.append(Parameter(f"{name}_{role}", declared, f"const constant {type_}", role, i, ref))
    for i, (name, kind) in enumerate(zip(spec.output_names, outputs, strict=True)):
        suffix += "_" + kind.metal
        element = f"atomic<{kind.metal}>" if spec.atomic_outputs else kind.metal
        parameters.append(Parameter(name, f"device {element}* {name}", f"device {element}", "output", i))
    declarations = [f"  {p.declaration} [[buffer({i})]]" for i, p in enumerate(parameters)]
    for name, type_ in _ATTRIBUTES:
        if name in spec.source:
            declarations.append(f"  {type_} {name} [[{name}]]")
            parameters.append(Parameter(name, f"{type_} {name}", type_, "attribute"))
    function = f"custom_kernel_{suffix}"
    text = spec.header
    names = tuple((kind, name) for (kind, _), (name, _) in zip(arguments, template, strict=True))
    if names:
        text += "template <" + ", ".join(f"{kind} {name}" for kind, name in names) + ">\n"
    text += f"[[kernel]] void {function}(\n" + ",\n".join(declarations) + ") {\n" + spec.source + "\n}\n"
    if names:
        call = f"{function}<{', '.join(a for _, a in arguments)}>"
        text += f'\ntemplate [[host_name("{function}")]] [[kernel]] decltype({call}) {call};\n'
    return MetalText(
        function, text, spec.header, spec.source, tuple(parameters), names, tuple(argument for _, argument in arguments)
    )
