"""JSON Schema as the TypeScript types that gpt-oss was trained to read in its tool definitions.

Same text as openai-harmony 0.0.8 on the schemas which that renders as valid types; correct where it falls back to
`any` or to broken text: `anyOf`, `$ref`, `allOf`, `const`, enums without a type, arrays of unions, tuples, maps,
multi-line comments and property names that are not identifiers.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

from mlx_gptoss.harmony.pointer import resolve_pointer

MAX_NODES: Final = 5_000
"""Schema nodes rendered per tool; references can expand without end, so what lies beyond becomes `any`."""

MAX_DEPTH: Final = 40

_IDENTIFIER: Final = re.compile(r"[A-Za-z_$][A-Za-z0-9_$]*")
_LINE_BREAK: Final = re.compile("\r\n|[\n\r\u2028\u2029]")
_NAMED_TYPES: Final = {"integer": "number"}


def function_type(name: str, description: str, parameters: Mapping[str, Any] | None) -> str:
    """The commented `type name = (_: ...) => any;` of one function."""
    comment = "".join(f"{line}\n" for line in comment_lines(description, ""))
    if parameters is None:
        return f"{comment}type {name} = () => any;\n"
    return f"{comment}type {name} = (_: {_TypeWriter(parameters).type_of(parameters, '', 0)}) => any;\n"


def comment_lines(text: object, indent: str) -> list[str]:
    """`text` as `// ` comment lines; none when it is not a string or is empty."""
    if not isinstance(text, str) or not text:
        return []
    lines = _LINE_BREAK.split(text)
    if lines[-1] == "":
        lines.pop()
    return [f"{indent}// {line}" for line in lines]


def _literal(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), default=str)


def _default(schema: Mapping[str, Any]) -> str | None:
    if "default" not in schema:
        return None
    default = schema["default"]
    if isinstance(default, str) and schema.get("enum"):
        return "default: " + _one_line(default)
    return f"default: {_literal(default)}"


def _one_line(text: str) -> str:
    return " ".join(_LINE_BREAK.split(text))


class _TypeWriter:
    """Writes one tool's types; holds the root that references point into and what is left of the node budget."""

    def __init__(self, root: Mapping[str, Any]) -> None:
        self.root = root
        self.nodes_left = MAX_NODES
        self.open_references: list[str] = []

    def type_of(self, schema: object, indent: str, depth: int) -> str:
        self.nodes_left -= 1
        if schema is False:
            return "never"
        if not isinstance(schema, Mapping) or self.nodes_left < 0 or depth > MAX_DEPTH:
            return "any"
        if "$ref" in schema:
            return self._reference(schema, indent, depth)
        if isinstance(schema.get("allOf"), Sequence) and schema["allOf"]:
            return self._all_of(schema, indent, depth)
        if isinstance(schema.get("oneOf"), Sequence) and schema["oneOf"]:
            return "".join(f"\n{line}" for line in self._variants(schema["oneOf"], indent, depth))
        if isinstance(schema.get("anyOf"), Sequence) and schema["anyOf"]:
            return self._union([self.type_of(variant, indent, depth + 1) for variant in schema["anyOf"]])
        if "const" in schema:
            return _literal(schema["const"])
        if isinstance(schema.get("enum"), Sequence) and schema["enum"]:
            return " | ".join(_literal(value) for value in schema["enum"])
        return self._typed(schema, indent, depth)

    def _typed(self, schema: Mapping[str, Any], indent: str, depth: int) -> str:
        kind = schema.get("type")
        if isinstance(kind, list | tuple):
            names = [name for name in kind if isinstance(name, str)]
            return self._union([self._named(name, schema, indent, depth) for name in names]) if names else "any"
        if isinstance(kind, str):
            return self._named(kind, schema, indent, depth)
        if "properties" in schema:
            return self._object(schema, indent, depth)
        if "items" in schema or "prefixItems" in schema:
            return self._array(schema, indent, depth)
        return "any"

    def _named(self, kind: str, schema: Mapping[str, Any], indent: str, depth: int) -> str:
        if kind == "object":
            return self._object(schema, indent, depth)
        if kind == "array":
            return self._array(schema, indent, depth)
        if kind in ("string", "number", "integer", "boolean", "null"):
            return _NAMED_TYPES.get(kind, kind)
        return "any"

    def _array(self, schema: Mapping[str, Any], indent: str, depth: int) -> str:
        prefix = schema.get("prefixItems")
        if isinstance(prefix, Sequence) and prefix:
            parts = [self.type_of(item, indent, depth + 1) for item in prefix]
            if isinstance(schema.get("items"), Mapping):
                parts.append(f"...{self._element(schema['items'], indent, depth)}[]")
            return f"[{', '.join(parts)}]"
        if "items" not in schema:
            return "Array<any>"
        return f"{self._element(schema['items'], indent, depth)}[]"

    def _element(self, schema: object, indent: str, depth: int) -> str:
        text = self._with_null(self.type_of(schema, indent, depth + 1), schema)
        return f"({text})" if _is_union(text) else text

    def _object(self, schema: Mapping[str, Any], indent: str, depth: int) -> str:
        lines = comment_lines(schema.get("description"), indent)
        lines.append("{")
        properties = schema.get("properties")
        wanted = schema.get("required")
        required = set(filter(_is_text, wanted)) if isinstance(wanted, Sequence) else set()
        if isinstance(properties, Mapping):
            for key, value in properties.items():
                if self.nodes_left < 0:
                    break
                lines += self._property(str(key), value, key in required, indent, depth)
        extra = schema.get("additionalProperties")
        if isinstance(extra, Mapping) and extra:
            lines.append(f"{indent}[key: string]: {self.type_of(extra, indent + '    ', depth + 1)},")
        lines.append(f"{indent}}}")
        return "\n".join(lines)

    def _property(self, key: str, value: object, required: bool, indent: str, depth: int) -> list[str]:
        schema = value if isinstance(value, Mapping) else {}
        name = (key if _IDENTIFIER.fullmatch(key) else _literal(key)) + ("" if required else "?")
        lines = []
        if isinstance(schema.get("title"), str):
            lines += [*comment_lines(schema["title"], indent), f"{indent}//"]
        choices = schema.get("oneOf")
        is_choice = isinstance(choices, Sequence) and bool(choices)
        description = schema.get("description")
        if not is_choice:
            lines += comment_lines(description, indent)
        examples = schema.get("examples")
        if isinstance(examples, list | tuple) and examples:
            lines.append(f"{indent}// Examples:")
            lines += [f"{indent}// - {_literal(example)}" for example in examples]
        default = _default(schema)
        if is_choice and isinstance(choices, Sequence):
            first = choices[0]
            repeated = isinstance(first, Mapping) and first.get("description") == description
            above = [] if repeated else comment_lines(description, indent)
            lines += above
            if default is not None:
                lines.append(f"{indent}// {default}")
            lines.append(f"{indent}{name}:")
            lines += self._variants(choices, indent, depth, description, above)
            lines.append(f"{indent},")
            return lines
        type_text = self._with_null(self.type_of(value, indent + "    ", depth + 1), value)
        comment = f" // {default}" if default is not None else ""
        lines.append(f"{indent}{name}: {type_text},{comment}")
        return lines

    def _variants(
        self,
        variants: Sequence[Any],
        indent: str,
        depth: int,
        property_description: object = None,
        described_above: Sequence[str] = (),
    ) -> list[str]:
        lines = []
        for index, variant in enumerate(variants):
            text = self._with_null(self.type_of(variant, indent + "   ", depth + 1), variant)
            notes = []
            if isinstance(variant, Mapping):
                description = variant.get("description")
                shown = isinstance(description, str) and description != property_description
                if isinstance(description, str) and shown and not (index == 0 and described_above):
                    notes.append(_one_line(description))
                default = _default(variant)
                if default is not None:
                    notes.append(default)
            comment = f" // {' '.join(notes)}" if notes else ""
            lines.append(f"{indent} | {text}{comment}")
        return lines

    def _reference(self, schema: Mapping[str, Any], indent: str, depth: int) -> str:
        reference = str(schema["$ref"])
        target = resolve_pointer(self.root, reference)
        if target is None or reference in self.open_references:
            return "any"
        beside = {key: value for key, value in schema.items() if key not in ("$ref", "$defs", "definitions")}
        if isinstance(target, Mapping):
            # The place of use has already printed what it says about itself.
            kept = {key: value for key, value in target.items() if key not in ("description", "title", "default")}
            structural = {key: value for key, value in beside.items() if key in ("properties", "required")}
            target = _merge([kept, structural]) if structural else kept
        self.open_references.append(reference)
        try:
            return self.type_of(target, indent, depth + 1)
        finally:
            self.open_references.pop()

    def _all_of(self, schema: Mapping[str, Any], indent: str, depth: int) -> str:
        beside = {key: value for key, value in schema.items() if key != "allOf"}
        parts = [self._flatten(part, 0) for part in schema["allOf"]]
        if "type" in beside or "properties" in beside:
            parts.append(beside)
        known = [part for part in parts if isinstance(part, Mapping)]
        if len(known) == len(parts) and all(_is_plain_object(part) for part in known):
            return self.type_of(_merge(known), indent, depth + 1)
        if len(parts) == 1:
            return self.type_of(parts[0], indent, depth + 1)
        texts = [self.type_of(part, indent, depth + 1) for part in parts]
        return " & ".join(f"({text})" if _is_union(text) else text for text in texts)

    def _flatten(self, part: Any, hops: int) -> Any:
        """What a part of an allOf stands for: references to plain objects are looked up so that they can be merged."""
        if isinstance(part, Mapping) and "$ref" in part and hops < MAX_DEPTH:
            target = self._flatten(resolve_pointer(self.root, part["$ref"]), hops + 1)
            if isinstance(target, Mapping) and _is_plain_object(target) and part["$ref"] not in self.open_references:
                return target
        return part

    def _with_null(self, text: str, schema: object) -> str:
        if isinstance(schema, Mapping) and schema.get("nullable") is True and "null" not in text:
            return f"{text} | null"
        return text

    @staticmethod
    def _union(texts: Sequence[str]) -> str:
        return " | ".join(dict.fromkeys(texts))


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _is_plain_object(schema: Mapping[str, Any]) -> bool:
    combining = ("$ref", "allOf", "anyOf", "oneOf", "const", "enum")
    return not any(key in schema for key in combining) and (
        schema.get("type") == "object" or ("type" not in schema and "properties" in schema)
    )


def _merge(parts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """One object schema that asks for everything `parts` ask for."""
    merged: dict[str, Any] = {"type": "object"}
    properties: dict[str, Any] = {}
    required: list[Any] = []
    for part in parts:
        for key, value in part.items():
            if key == "properties" and isinstance(value, Mapping):
                properties.update(value)
            elif key == "required" and isinstance(value, Sequence):
                required += value
            else:
                merged.setdefault(key, value)
    return {**merged, "properties": properties, "required": required}


def _is_union(text: str) -> bool:
    """Whether ` | ` or ` & ` appears outside braces, brackets, parentheses and quoted strings."""
    depth = 0
    for token in re.findall(r'//[^\n]*|"(?:[^"\\]|\\.)*"|[][{}()]| [|&] ', text):
        if token in ("{", "[", "("):
            depth += 1
        elif token in ("}", "]", ")"):
            depth -= 1
        elif depth == 0 and token in (" | ", " & "):
            return True
    return False
