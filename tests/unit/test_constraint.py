from __future__ import annotations

import json
import random
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jsonschema
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlx_gptoss.errors import InternalError, InvalidRequestError, SchemaError
from mlx_gptoss.harmony.constraint import HarmonyConstraint, constraint_for
from mlx_gptoss.harmony.grammar import MASK_WORDS, Mask, compile_schema
from mlx_gptoss.harmony.header_choice import answer_opening, shared_start
from mlx_gptoss.harmony.parser import HarmonyParser
from mlx_gptoss.harmony.render import render
from mlx_gptoss.harmony.special import CALL, END, RETURN, START, TEXT_TOKENS, VOCABULARY_SIZE
from mlx_gptoss.harmony.vocabulary import load_vocabulary
from mlx_gptoss.messages import Tool, UserMessage
from mlx_gptoss.request import ChatRequest, ResponseFormat, ToolChoice
from tests.unit.harmony_streams import marked

POINT: dict[str, Any] = {
    "type": "object",
    "properties": {"x": {"type": "integer"}, "name": {"enum": ["a", "b"]}},
    "required": ["x", "name"],
    "additionalProperties": False,
}
WEATHER = Tool(
    "get_weather",
    "Weather",
    {**POINT, "properties": {"city": {"type": "string", "maxLength": 12}}, "required": ["city"]},
    strict=True,
)
MOVE = Tool("move", "Move", POINT)
THINK = "<|channel|>analysis<|message|>Hm, let me see.<|end|>"


def ask(**options: Any) -> ChatRequest:
    return ChatRequest(messages=(UserMessage("Hi"),), **options)


def as_format(schema: Mapping[str, Any]) -> ResponseFormat:
    return ResponseFormat("json_schema", schema)


def constrain(request: ChatRequest) -> HarmonyConstraint:
    constraint = constraint_for(request, load_vocabulary())
    assert constraint is not None
    return constraint


def allowed(mask: Mask | None) -> set[int]:
    if mask is None:
        return set(range(VOCABULARY_SIZE))
    assert mask.dtype == np.dtype(np.uint32)
    assert mask.shape == (MASK_WORDS,)
    return set(np.flatnonzero(np.unpackbits(mask.view(np.uint8), bitorder="little")).tolist())


def accepts(constraint: HarmonyConstraint, token_ids: Sequence[int]) -> int | None:
    """Advance through `token_ids`; the index of the first that the mask forbids, None when all pass."""
    for index, token_id in enumerate(token_ids):
        mask = constraint.mask()
        if mask is not None and not int(mask[token_id // 32]) >> token_id % 32 & 1:
            return index
        forced = constraint.force()
        if forced:
            assert forced[0] == token_id
        constraint.advance(token_id)
    return None


def sample_turn(constraint: HarmonyConstraint, rng: random.Random, limit: int = 1500) -> list[int] | None:
    """A turn drawn at random from the masks, leaning towards closing; None when it did not end in time."""
    palette = [token for text in '"}],:{[0123456789 truefalsenull.-ab' for token in load_vocabulary().encode(text)]
    palette += [*load_vocabulary().encode('"}'), END, RETURN, CALL]
    out: list[int] = []
    while len(out) < limit:
        forced = constraint.force() if rng.random() < 0.7 else ()
        if not forced:
            mask = constraint.mask()
            choices = allowed(mask) if mask is not None else set(palette)
            assert choices, "a dead end"
            if choices & {RETURN, CALL, END} and rng.random() < 0.5:
                forced = (min(choices & {RETURN, CALL, END}),)
            else:
                liked = sorted(choices & set(palette))
                forced = (rng.choice(liked if liked and rng.random() < 0.95 else sorted(choices)),)
        for token_id in forced:
            assert token_id in allowed(constraint.mask())
            constraint.advance(token_id)
            out.append(token_id)
        if out[-1] in (RETURN, CALL):
            return out
    return None


def parsed(token_ids: Sequence[int], *names: str) -> HarmonyParser:
    parser = HarmonyParser(load_vocabulary(), frozenset(names))
    parser.feed_all(token_ids)
    parser.finish()
    return parser


def test_a_request_that_demands_nothing_has_no_constraint() -> None:
    assert constraint_for(ask(), load_vocabulary()) is None
    assert constraint_for(ask(tools=(MOVE,)), load_vocabulary()) is None
    assert constraint_for(ChatRequest(raw_prompt="x"), load_vocabulary()) is None


@pytest.mark.parametrize("header", ["final", "final <|constrain|>json"])
@pytest.mark.parametrize("body", ['{"x": 1, "name": "a"}', '{"x":-12,"name":"b"}', '{\n  "x": 0,\n  "name": "a"\n}'])
def test_a_right_answer_passes_with_its_reasoning(header: str, body: str) -> None:
    ids = marked(f"{THINK}{THINK.replace('<|channel|>', '<|start|>assistant<|channel|>')}")
    ids += marked(f"<|start|>assistant<|channel|>{header}<|message|>{body}<|return|>")
    constraint = constrain(ask(response_format=as_format(POINT)))
    assert accepts(constraint, ids) is None
    assert constraint.mask() is None
    assert constraint.force() == ()


@pytest.mark.parametrize(
    "text",
    [
        "<|channel|>final<|message|>Sure!<|return|>",
        '<|channel|>final<|message|>{"x": "1"}<|return|>',
        '<|channel|>final<|message|>{"x": 1}<|return|>',
        '<|channel|>final<|message|>{"x": 1, "name": "c"}<|return|>',
        '<|channel|>final<|message|>{"x": 1, "name": "a"<|return|>',
        '<|channel|>final<|message|>{"x": 1, "name": "a"}<|end|>',
        '<|channel|>final<|message|>{"x": 1, "name": "a"}<|call|>',
        "<|channel|>analysis<|message|>Hm<|return|>",
        "<|channel|>analysis<|message|>Hm<|call|>",
        "<|channel|>commentary<|message|>Hm<|end|>",
        "<|channel|>commentary to=functions.f <|constrain|>json<|message|>{}<|call|>",
        "<|message|>{}",
        "<|return|>",
        "final",
    ],
)
def test_a_wrong_answer_is_stopped(text: str) -> None:
    assert accepts(constrain(ask(response_format=as_format(POINT))), marked(text)) is not None


def test_the_answer_ends_exactly_when_it_is_complete() -> None:
    constraint = constrain(ask(response_format=as_format(POINT)))
    for token_id in marked('<|channel|>final<|message|>{"x": 1, "name": "a"'):
        assert RETURN not in allowed(constraint.mask())
        constraint.advance(token_id)
    assert RETURN not in allowed(constraint.mask())
    constraint.advance(load_vocabulary().encode("}")[0])
    assert RETURN in allowed(constraint.mask())


def test_special_tokens_never_stand_inside_json() -> None:
    constraint = constrain(ask(response_format=as_format({"type": "string"})))
    assert accepts(constraint, marked('<|channel|>final<|message|>"abc')) is None
    assert max(allowed(constraint.mask())) < TEXT_TOKENS
    assert accepts(constraint, load_vocabulary().encode('<|end|>"')) is None
    assert {token_id for token_id in allowed(constraint.mask()) if token_id >= TEXT_TOKENS} == {RETURN}


def test_json_object_means_any_object() -> None:
    right = marked('<|channel|>final<|message|>{"any": [1, {"b": null}]}<|return|>')
    assert accepts(constrain(ask(response_format=ResponseFormat("json_object"))), right) is None
    wrong = marked("<|channel|>final<|message|>[1]<|return|>")
    assert accepts(constrain(ask(response_format=ResponseFormat("json_object"))), wrong) is not None


def test_white_space_is_bounded() -> None:
    ids = marked('<|channel|>final<|message|>{"x": 1,' + "\n" * 200)
    assert accepts(constrain(ask(response_format=as_format(POINT))), ids) is not None


leaf_schemas: list[dict[str, Any]] = [
    {"type": "integer"},
    {"type": "number", "minimum": 0, "maximum": 10},
    {"type": "boolean"},
    {"type": "null"},
    {"type": "string", "maxLength": 5},
    {"type": "string", "pattern": "^[a-c]{2,3}$"},
    {"enum": ["a", 1, None]},
    {"const": {"k": [1]}},
]
some_schemas = st.recursive(
    st.sampled_from(leaf_schemas),
    lambda inner: st.one_of(
        st.builds(lambda items: {"type": "array", "items": items, "maxItems": 3}, inner),
        st.builds(lambda one, two: {"anyOf": [one, two]}, inner, inner),
        st.builds(
            lambda properties, count: {
                "type": "object",
                "properties": properties,
                "required": sorted(properties)[:count],
                "additionalProperties": False,
            },
            st.dictionaries(st.sampled_from(["a", "b-c", "é"]), inner, max_size=3),
            st.integers(0, 3),
        ),
    ),
    max_leaves=5,
)


@given(some_schemas, st.integers(0, 2**32))
@settings(max_examples=40, deadline=None)
def test_whatever_the_masks_allow_is_an_answer_by_the_schema(schema: dict[str, Any], seed: int) -> None:
    turn = sample_turn(constrain(ask(response_format=as_format(schema))), random.Random(seed))
    if turn is not None:
        last = parsed(turn).messages[-1]
        assert (last.kind, last.stop) == ("text", len(turn))
        jsonschema.validate(json.loads(last.text), schema)


@given(st.integers(0, 2**32), st.sampled_from(["auto", "required", "named"]), st.booleans())
@settings(max_examples=25, deadline=None)
def test_whatever_the_masks_allow_calls_tools_by_their_schemas(seed: int, mode: Any, with_format: bool) -> None:
    request = ask(
        tools=(WEATHER, MOVE, Tool("noop", strict=True)),
        tool_choice=ToolChoice(mode, "move" if mode == "named" else None),
        response_format=as_format(POINT) if with_format else ResponseFormat(),
    )
    turn = sample_turn(constrain(request), random.Random(seed))
    if turn is None:
        return
    parser = parsed(turn, "get_weather", "move", "noop")
    *before, last = parser.messages
    assert last.stop == len(turn)
    assert all(message.kind in ("reasoning", "preamble") for message in before)
    if mode != "auto":
        assert [message.kind for message in before] in ([], ["reasoning"])
        assert last.kind == "call"
    if last.kind == "call":
        if mode == "named":
            assert last.tool_name == "move"
        by_name: dict[str, Any] = {"get_weather": WEATHER.parameters, "move": POINT, "noop": {"maxProperties": 0}}
        if mode != "auto" or last.tool_name != "move":
            jsonschema.validate(json.loads(last.text), by_name[last.tool_name or ""])
    elif with_format:
        jsonschema.validate(json.loads(last.text), POINT)


def test_a_named_tool_is_forced_after_the_reasoning() -> None:
    constraint = constrain(ask(tools=(WEATHER, MOVE), tool_choice=ToolChoice("named", "move")))
    assert accepts(constraint, marked(THINK)) is None
    forced = constraint.force()
    assert forced == tuple(
        marked("<|start|>assistant<|channel|>commentary to=functions.move <|constrain|>json<|message|>")
    )
    assert accepts(constraint, [*forced, *marked('{"x": 3, "name": "b"}'), CALL]) is None


def test_a_forced_call_may_come_without_reasoning_and_never_with_an_answer() -> None:
    request = ask(tools=(WEATHER, MOVE), tool_choice=ToolChoice("required"))
    direct = marked('<|channel|>commentary to=functions.move <|constrain|>json<|message|>{"x":1,"name":"a"}<|call|>')
    assert accepts(constrain(request), direct) is None
    for text in (
        "<|channel|>final",
        "<|channel|>commentary<|message|>",
        f"{THINK}<|start|>assistant<|channel|>analysis<|message|>",
    ):
        assert accepts(constrain(request), marked(text)) is not None


def test_strict_arguments_are_constrained_and_others_are_free() -> None:
    request = ask(tools=(WEATHER, MOVE))
    head = "<|channel|>commentary to=functions.{} <|constrain|>json<|message|>"
    assert accepts(constrain(request), marked(head.format("get_weather") + '{"town"')) is not None
    assert accepts(constrain(request), marked(head.format("move") + "whatever<|call|>")) is None
    assert accepts(constrain(request), marked("<|channel|>final<|message|>Free text.<|return|>")) is None
    assert accepts(constrain(request), marked("<|channel|>commentary<|message|>I look.<|end|>")) is None


def test_a_required_call_may_be_to_a_builtin() -> None:
    request = ask(builtin_tools=("python",), tool_choice=ToolChoice("required"))
    assert accepts(constrain(request), marked("<|channel|>analysis to=python code<|message|>print(1)<|call|>")) is None


def test_a_forced_tool_whose_schema_cannot_be_enforced_takes_any_object_unless_strict() -> None:
    schema = {"type": "object", "not": {}}
    request = ask(tools=(Tool("f", "", schema),), tool_choice=ToolChoice("required"))
    assert (
        accepts(
            constrain(request),
            marked('<|channel|>commentary to=functions.f <|constrain|>json<|message|>{"z":1}<|call|>'),
        )
        is None
    )
    with pytest.raises(SchemaError, match="parameters of f"):
        constrain(ask(tools=(Tool("f", "", schema, strict=True),)))


def test_tool_choice_none_cannot_call() -> None:
    constraint = constrain(ask(tools=(MOVE,), tool_choice=ToolChoice("none")))
    assert accepts(constraint, marked("<|channel|>commentary")) is not None
    assert (
        accepts(
            constrain(ask(tools=(MOVE,), tool_choice=ToolChoice("none"))),
            marked("<|channel|>final<|message|>ok<|return|>"),
        )
        is None
    )


@pytest.mark.parametrize("choice", [ToolChoice("required"), ToolChoice("named", "gone"), ToolChoice("named")])
def test_a_tool_choice_without_its_tool_is_refused(choice: ToolChoice) -> None:
    with pytest.raises(InvalidRequestError):
        constrain(ask(tools=(MOVE,) if choice.mode == "named" else (), tool_choice=choice))


def test_the_reasoning_budget_closes_the_channel_and_opens_the_answer() -> None:
    constraint = constrain(ask(reasoning_budget=3))
    free = marked("<|channel|>analysis<|message|>")
    for token_id in [*free, *marked(" one two")]:
        assert constraint.mask() is None
        assert constraint.force() == ()
        constraint.advance(token_id)
    constraint.advance(marked(" three")[0])
    assert constraint.force() == answer_opening(load_vocabulary())
    assert allowed(constraint.mask()) == {END}
    assert accepts(constraint, [*constraint.force(), *marked("Four."), RETURN]) is None


def test_a_spent_budget_still_lets_the_model_choose_between_tools_and_answer() -> None:
    constraint = constrain(ask(reasoning_budget=1, tools=(MOVE,)))
    ids = marked("<|channel|>analysis<|message|>one")
    assert accepts(constraint, ids) is None
    assert constraint.force() == tuple(marked("<|end|><|start|>assistant<|channel|>"))
    assert accepts(constraint, constraint.force()) is None
    assert allowed(constraint.mask()) == {marked("final")[0], marked("commentary")[0]}


def test_no_budget_means_no_reasoning_at_all() -> None:
    assert constrain(ask(reasoning_budget=0)).force() == tuple(marked("<|channel|>final<|message|>"))


def test_the_budget_waits_for_a_whole_character() -> None:
    crab = load_vocabulary().encode("🦀")
    constraint = constrain(ask(reasoning_budget=1))
    assert accepts(constraint, [*marked("<|channel|>analysis<|message|>"), *crab[:-1]]) is None
    assert constraint.force() == ()
    constraint.advance(crab[-1])
    assert constraint.force() == answer_opening(load_vocabulary())


def test_a_budget_and_a_format_work_together() -> None:
    constraint = constrain(ask(reasoning_budget=2, response_format=as_format(POINT)))
    assert accepts(constraint, marked("<|channel|>analysis<|message|>one two")) is None
    assert accepts(constraint, constraint.force()) is None
    assert accepts(constraint, marked('<|message|>{"x": 1, "name": "a"}<|return|>')) is None


def test_raw_continuations_are_constrained_from_the_first_token() -> None:
    constraint = constrain(ChatRequest(raw_prompt="JSON:", response_format=as_format(POINT)))
    assert accepts(constraint, [*marked('{"x": 1, "name": "a"}'), RETURN]) is None
    ids = render(ask()).token_ids
    constraint = constrain(ChatRequest(prompt_ids=ids, response_format=as_format(POINT)))
    assert accepts(constraint, marked(f"{THINK}<|start|>assistant<|channel|>final<|message|>")) is None


def test_a_forbidden_token_is_an_internal_error() -> None:
    with pytest.raises(InternalError):
        constrain(ask(response_format=as_format(POINT))).advance(START)
    constraint = constrain(ask(response_format=as_format(POINT)))
    assert accepts(constraint, marked("<|channel|>final<|message|>")) is None
    with pytest.raises(InternalError):
        constraint.advance(marked("x")[0])


def test_one_schema_serves_many_generations_on_many_threads() -> None:
    ids = marked('<|channel|>final<|message|>{"x": 1, "name": "a"}<|return|>')
    results: list[int | None] = []

    def work() -> None:
        results.extend(accepts(constrain(ask(response_format=as_format(POINT))), ids) for _ in range(5))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [None] * 20


def test_unknown_formats_and_harmless_keywords_are_ignored() -> None:
    schema = {
        "type": "object",
        "title": "T",
        "x-guidance": {"item_separator": ";"},
        "properties": {
            "format": {"type": "string", "format": "regex", "default": {"format": "regex"}},
            "b": {"format": "nope"},
        },
        "required": ["format", "b"],
    }
    ids = marked('<|channel|>final<|message|>{"format": "x", "b": 1}<|return|>')
    assert accepts(constrain(ask(response_format=as_format(schema))), ids) is None


def bomb() -> dict[str, Any]:
    definitions: dict[str, Any] = {"d0": {"type": "string"}}
    for level in range(1, 40):
        inner = {"$ref": f"#/$defs/d{level - 1}"}
        definitions[f"d{level}"] = {"type": "object", "properties": {"a": inner, "b": inner}}
    return {"$defs": definitions, "$ref": "#/$defs/d39"}


HOSTILE: dict[str, Any] = {
    "cycle": {"$ref": "#"},
    "long cycle": {"$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"},
    "remote": {"$ref": "http://example.com/schema"},
    "missing": {"$ref": "#/$defs/gone"},
    "unsupported": {"not": {"type": "string"}},
    "unsupported items": {"type": "array", "uniqueItems": True},
    "false": {"type": "object", "properties": {"a": False}, "required": ["a"]},
    "bad type": {"type": "martian"},
    "bad regex": {"type": "string", "pattern": "("},
    "lookahead": {"type": "string", "pattern": "(?=a)b"},
    "too many properties": {"type": "object", "properties": {f"p{i}": {} for i in range(3_000)}},
    "fine multiple": {"type": "integer", "multipleOf": 9_999_991},
    "fine decimal": {"type": "number", "multipleOf": 0.9999991},
    "fine together": {"allOf": [{"type": "integer", "multipleOf": 997}, {"multipleOf": 991}]},
    "huge multiple": {"type": "integer", "multipleOf": 10**300},
    "tiny multiple": {"type": "number", "multipleOf": 1e-300},
    "huge number": {"minimum": 10**1000},
    "too large": {"enum": [f"v{i}" for i in range(30_000)]},
    "allOf of anyOf": {
        "allOf": [
            {"anyOf": [{"properties": {f"p{i}{j}": {"type": "string"}}, "type": "object"} for j in range(4)]}
            for i in range(10)
        ]
    },
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_and_unsupported_schemas_are_refused_soon(case: str) -> None:
    started = time.process_time()
    with pytest.raises(SchemaError) as caught:
        constrain(ask(response_format=as_format(HOSTILE[case])))
    assert time.process_time() - started < 3.0
    assert caught.value.param == "response_format"
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600


HEAVY: dict[str, Any] = {
    "reference bomb": bomb(),
    "long string": {"type": "string", "minLength": 1_000_000},
    "long array": {"type": "array", "minItems": 10**9, "items": {"type": "string"}},
    "nested repeats": {"type": "string", "pattern": "(((a{1,9}){1,9}){1,9}){1,9}"},
    "exponential pattern": {"type": "string", "pattern": "(a|b)*a(a|b){200}"},
    "many choices": {"enum": [f"value {i}" for i in range(9_000)]},
    "many properties": {"type": "object", "properties": {f"p{i}": {"type": "string"} for i in range(1_500)}},
}


@pytest.mark.parametrize("case", HEAVY)
def test_heavy_schemas_compile_in_bounded_time(case: str) -> None:
    started = time.process_time()
    constraint = constrain(ask(response_format=as_format(HEAVY[case])))
    assert accepts(constraint, marked("<|channel|>final<|message|>")) is None
    assert constraint.mask() is not None
    assert time.process_time() - started < 5.0


def test_shared_start() -> None:
    assert shared_start([]) == ()
    assert shared_start([(1, 2)]) == (1, 2)
    assert shared_start([(1, 2, 3), (1, 2), (1, 2, 4)]) == (1, 2)
    assert shared_start([(1,), (2,)]) == ()


def test_compiled_schemas_are_kept() -> None:
    vocabulary = load_vocabulary()
    one = compile_schema(POINT, vocabulary, param="p", where="w")
    assert compile_schema(dict(POINT), vocabulary, param="p", where="w") is one
