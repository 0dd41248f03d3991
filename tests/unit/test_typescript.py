from __future__ import annotations

import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai_harmony import DeveloperContent, Role, ToolDescription
from openai_harmony import Message as HarmonyMessage

from mlx_gptoss.harmony.developer import functions_section
from mlx_gptoss.harmony.typescript import comment_lines, function_type
from mlx_gptoss.harmony.vocabulary import load_vocabulary
from mlx_gptoss.messages import Tool

words = st.text("abc xyz", min_size=1, max_size=8).filter(lambda text: text == text.strip())
leaf = st.one_of(
    st.sampled_from([{"type": name} for name in ("string", "number", "integer", "boolean")]),
    st.just({"type": ["string", "null"]}),
    st.just({"type": ["integer", "boolean"]}),
    st.builds(lambda values: {"type": "string", "enum": values}, st.lists(words, min_size=1, max_size=3, unique=True)),
)


def with_notes(schemas: st.SearchStrategy[dict[str, Any]]) -> st.SearchStrategy[dict[str, Any]]:
    notes = st.fixed_dictionaries(
        {},
        optional={
            "description": words,
            "title": words,
            "default": st.one_of(words, st.integers(-9, 9), st.booleans(), st.none(), st.just([1, "a"])),
            "examples": st.lists(words, min_size=1, max_size=2),
            "nullable": st.booleans(),
        },
    )
    return st.builds(lambda schema, note: {**schema, **note}, schemas, notes)


def objects(values: st.SearchStrategy[dict[str, Any]]) -> st.SearchStrategy[dict[str, Any]]:
    keys = st.sampled_from(["alpha", "beta", "gamma_2", "_d"])
    return st.builds(
        lambda properties, required: {"type": "object", "properties": properties, "required": required},
        st.dictionaries(keys, values, max_size=3),
        st.lists(keys, max_size=2),
    )


plain_items = st.sampled_from([{"type": "string"}, {"type": "number"}, {"type": "boolean"}])
schemas = st.recursive(
    leaf,
    lambda inner: st.one_of(
        objects(with_notes(inner)),
        st.builds(lambda items: {"type": "array", "items": items}, st.one_of(plain_items, objects(plain_items))),
        st.just({"type": "array"}),
        st.builds(lambda variants: {"oneOf": variants}, st.lists(with_notes(leaf), min_size=1, max_size=3)),
    ),
    max_leaves=8,
)


def reference(name: str, description: str, parameters: dict[str, Any] | None) -> str:
    content = DeveloperContent.new().with_function_tools([ToolDescription.new(name, description, parameters)])
    tokens = load_vocabulary().encoding.render(HarmonyMessage.from_role_and_content(Role.DEVELOPER, content))
    text = load_vocabulary().decode(tokens)
    return text.removeprefix("<|start|>developer<|message|># Tools\n\n").removesuffix("<|end|>")


@given(objects(with_notes(schemas)), st.one_of(words, st.just(""), st.just("one\n\ntwo")))
def test_agrees_with_openai_harmony_where_that_is_right(parameters: dict[str, Any], description: str) -> None:
    assert functions_section([Tool("f", description, parameters)]) == reference("f", description, parameters)


def test_agrees_on_functions_without_parameters() -> None:
    assert functions_section([Tool("f", "Does f.")]) == reference("f", "Does f.", None)


def type_of(schema: Any, **beside: Any) -> str:
    """The type written for a property `x` with this schema."""
    text = function_type("f", "", {"type": "object", "properties": {"x": schema}, "required": ["x"], **beside})
    return text.removeprefix("type f = (_: {\n").removesuffix("\n}) => any;\n")


POINT = {"type": "object", "properties": {"x": {"type": "number"}}, "required": ["x"]}


@pytest.mark.parametrize(
    ("schema", "expected"),
    [
        ({"anyOf": [{"type": "string"}, {"type": "null"}]}, "x: string | null,"),
        ({"anyOf": [{"type": "integer"}, {"type": "number"}]}, "x: number,"),
        ({"const": "k"}, 'x: "k",'),
        ({"const": None}, "x: null,"),
        ({"enum": [1, None, "a"]}, 'x: 1 | null | "a",'),
        ({"type": "integer", "enum": [1, 2]}, "x: 1 | 2,"),
        ({"type": "string", "enum": ['say "hi"']}, 'x: "say \\"hi\\"",'),
        ({"type": "array", "items": {"type": "string", "enum": ["a", "b"]}}, 'x: ("a" | "b")[],'),
        ({"type": "array", "items": {"anyOf": [{"type": "string"}, {"type": "number"}]}}, "x: (string | number)[],"),
        ({"type": "array", "items": {"enum": ["a | b"]}}, 'x: "a | b"[],'),
        ({"type": "array", "items": {"type": "string", "nullable": True}}, "x: (string | null)[],"),
        ({"type": ["array", "null"], "items": {"type": "string"}}, "x: string[] | null,"),
        ({"type": "array", "prefixItems": [{"type": "string"}, {"type": "number"}]}, "x: [string, number],"),
        (
            {"type": "array", "prefixItems": [{"type": "string"}], "items": {"type": "number"}},
            "x: [string, ...number[]],",
        ),
        ({"items": {"type": "string"}}, "x: string[],"),
        ({"type": "object", "additionalProperties": {"type": "number"}}, "x: {\n    [key: string]: number,\n    },"),
        ({"properties": {"a": {"type": "string"}}}, "x: {\n    a?: string,\n    },"),
        ({"$ref": "#/$defs/P"}, "x: {\n    x: number,\n    },"),
        ({"$ref": "#/$defs/P", "description": "here"}, "// here\nx: {\n    x: number,\n    },"),
        ({"$ref": "#/$defs/gone"}, "x: any,"),
        ({"$ref": "https://example.com/schema"}, "x: any,"),
        ({"allOf": [{"$ref": "#/$defs/P"}]}, "x: {\n    x: number,\n    },"),
        (
            {"allOf": [{"$ref": "#/$defs/P"}, {"properties": {"y": {"type": "string"}}}]},
            "x: {\n    x: number,\n    y?: string,\n    },",
        ),
        ({"allOf": [{"type": "string"}, {"enum": ["a", "b"]}]}, 'x: string & ("a" | "b"),'),
        ({"type": "string", "description": "one\ntwo"}, "// one\n// two\nx: string,"),
        ({"type": "string", "default": "one\ntwo"}, 'x: string, // default: "one\\ntwo"'),
        (True, "x: any,"),
        (False, "x: never,"),
        ({}, "x: any,"),
        ({"type": "martian"}, "x: any,"),
    ],
)
def test_types_that_openai_harmony_gets_wrong(schema: Any, expected: str) -> None:
    assert type_of(schema, **{"$defs": {"P": POINT}}) == expected


def test_names_that_are_no_identifiers_are_quoted() -> None:
    text = function_type("f", "", {"type": "object", "properties": {"a-b": {"type": "string"}, "": {}, "9": {}}})
    assert '"a-b"?: string,\n""?: any,\n"9"?: any,\n' in text


def test_every_line_of_a_comment_is_commented() -> None:
    assert comment_lines("a\r\nb\rc\u2028d\n", "  ") == ["  // a", "  // b", "  // c", "  // d"]
    assert comment_lines(None, "") == []
    described = {"type": "object", "properties": {"x": {"oneOf": [{"type": "string", "description": "a\nb"}]}}}
    assert " | string // a b\n" in function_type("f", "", described)


def test_recursive_references_end() -> None:
    tree = {"type": "object", "properties": {"next": {"$ref": "#/$defs/T"}}}
    assert "next?: any," in type_of({"$ref": "#/$defs/T"}, **{"$defs": {"T": tree}})
    assert "any" in function_type("f", "", {"type": "object", "properties": {"self": {"$ref": "#"}}})
    loop = {"allOf": [{"$ref": "#/$defs/L"}]}
    assert type_of({"$ref": "#/$defs/L"}, **{"$defs": {"L": loop}}) == "x: any,"


def test_reference_bombs_stay_small() -> None:
    definitions: dict[str, Any] = {"d0": {"type": "string"}}
    for level in range(1, 40):
        inner = {"$ref": f"#/$defs/d{level - 1}"}
        definitions[f"d{level}"] = {"type": "object", "properties": {"a": inner, "b": inner}}
    started = time.process_time()
    text = type_of({"$ref": "#/$defs/d39"}, **{"$defs": definitions})
    assert time.process_time() - started < 2.0
    assert len(text) < 2_000_000


json_values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.text(max_size=5)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=5), inner, max_size=3)),
    max_leaves=10,
)
keywords = st.sampled_from(
    [
        "type",
        "properties",
        "items",
        "allOf",
        "anyOf",
        "oneOf",
        "enum",
        "const",
        "$ref",
        "required",
        "description",
        "default",
    ]
)


@given(
    st.recursive(json_values, lambda inner: st.dictionaries(keywords, st.one_of(inner, st.lists(inner, max_size=2))))
)
def test_any_json_gives_some_type(schema: Any) -> None:
    assert function_type("f", "", {"properties": {"x": schema}})
