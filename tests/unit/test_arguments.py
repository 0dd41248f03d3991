from __future__ import annotations

import json
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlx_gptoss.harmony.arguments import parse_arguments

values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-99, 99), st.text(max_size=6)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=4), inner, max_size=3)),
    max_leaves=6,
)
objects = st.dictionaries(st.text(max_size=4), values, max_size=4)


@given(objects)
def test_json_objects_come_back_as_they_are(value: dict[str, object]) -> None:
    text = json.dumps(value)
    assert parse_arguments(text) == value
    assert parse_arguments(json.dumps(value, ensure_ascii=False, indent=2)) == value
    assert parse_arguments(json.dumps(text)) == value
    assert parse_arguments(f"```json\n{text}\n```") == value
    assert parse_arguments(f"Sure: {text} done") == value


@given(st.dictionaries(st.text("abc 'é", max_size=4), st.one_of(st.none(), st.booleans(), st.text("ab'é", max_size=4))))
def test_python_literals_are_read(value: dict[str, object]) -> None:
    assert parse_arguments(repr(value)) == value


@given(objects, st.integers(1, 400))
def test_a_cut_off_object_gives_some_object_or_none(value: dict[str, object], keep: int) -> None:
    result = parse_arguments(json.dumps(value)[:keep])
    assert result is None or isinstance(result, dict)


@given(st.text(max_size=60))
def test_any_text_gives_an_object_or_none(text: str) -> None:
    assert isinstance(parse_arguments(text), dict | None)


@given(
    st.lists(st.sampled_from(["{", "}", "[", "]", '"', "'", ",", ":", "\\", "a", "1", "True", " ", "\n"]), max_size=30)
)
def test_any_brackets_give_an_object_or_none(parts: list[str]) -> None:
    assert isinstance(parse_arguments("{" + "".join(parts)), dict | None)


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        ("", {}),
        ("  \n", {}),
        ('{"a": 1,}', {"a": 1}),
        ('{"a": [1, 2,],}', {"a": [1, 2]}),
        ('{"a": ", }"}', {"a": ", }"}),
        ("{'a': True, 'b': None}", {"a": True, "b": None}),
        ("{'a': 'say \"hi\"', }", {"a": 'say "hi"'}),
        ('{"a": "x\ny"}', {"a": "x\ny"}),
        ('{"a": NaN}', {"a": None}),
        ('{"a": {"b": [1, {"c": "d', {"a": {"b": [1, {"c": "d"}]}}),
        ('{"a": 1, "b"', {"a": 1}),
        ('{"a": 1, "b": ', {"a": 1}),
        ('{"a": 1}{"a": 2}', {"a": 1}),
        ('{"a": 1} and so on', {"a": 1}),
        ("[1, 2]", None),
        ("42", None),
        ("null", None),
        ("nonsense", None),
        ('{"a": 1]', None),
    ],
)
def test_what_models_get_wrong(raw: str, expected: dict[str, object] | None) -> None:
    assert parse_arguments(raw) == expected


@pytest.mark.parametrize(
    "text", ["{" * 200_000, '{"a":' * 50_000, '{"a": "' + '\\"' * 200_000, "{'" * 200_000, '{"a":[' + "1," * 200_000]
)
def test_hostile_arguments_end_soon(text: str) -> None:
    started = time.process_time()
    assert isinstance(parse_arguments(text), dict | None)
    assert time.process_time() - started < 5.0
