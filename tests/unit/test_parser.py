from __future__ import annotations

import itertools
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlx_gptoss.events import (
    Event,
    PreambleDelta,
    ReasoningDelta,
    TextDelta,
    TokenLogprob,
    ToolCallDelta,
    ToolCallEnd,
    ToolCallStart,
)
from mlx_gptoss.harmony.parser import HarmonyParser, State
from mlx_gptoss.harmony.special import CHANNEL, END, MESSAGE, RETURN, START
from mlx_gptoss.harmony.vocabulary import load_vocabulary
from tests.unit.harmony_streams import marked


def parse(token_ids: Sequence[int], tools: Sequence[str] = ()) -> list[Event]:
    counter = itertools.count()
    parser = HarmonyParser(load_vocabulary(), frozenset(tools), new_id=lambda: f"call_{next(counter)}")
    return parser.feed_all(token_ids) + parser.finish()


def folded(events: Sequence[Event]) -> list[tuple[str, str]]:
    """Neighbouring deltas of one kind joined; calls as ("call name", arguments)."""
    out: list[tuple[str, str]] = []
    for event in events:
        if isinstance(event, ToolCallEnd):
            out.append((f"call {event.name}", event.arguments))
        elif isinstance(event, ReasoningDelta | PreambleDelta | TextDelta):
            kind = {"ReasoningDelta": "reasoning", "PreambleDelta": "preamble"}.get(type(event).__name__, "text")
            if out and out[-1][0] == kind:
                out[-1] = (kind, out[-1][1] + event.text)
            else:
                out.append((kind, event.text))
    return out


def test_a_whole_turn() -> None:
    events = parse(
        marked(
            "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>commentary<|message|>I look.<|end|>"
            '<|start|>assistant<|channel|>commentary to=functions.f <|constrain|>json<|message|>{"a": 1}<|call|>'
        )
    )
    assert folded(events) == [("reasoning", "Hm."), ("preamble", "I look."), ("call f", '{"a": 1}')]
    starts = [event for event in events if isinstance(event, ToolCallStart)]
    deltas = [event for event in events if isinstance(event, ToolCallDelta)]
    assert starts == [ToolCallStart("call_0", 0, "f")]
    assert "".join(delta.arguments for delta in deltas) == '{"a": 1}'
    assert events[-1] == ToolCallEnd("call_0", 0, "f", '{"a": 1}')


TOOLS = ("get_weather", "lookup")
RECOVERIES = {
    "structured answer is text": ("<|channel|>final <|constrain|>json<|message|>{}<|return|>", [("text", "{}")]),
    "final to json is text": ("<|channel|>final to=json<|message|>{}<|return|>", [("text", "{}")]),
    "recipient in the role": (
        " to=functions.lookup<|channel|>commentary <|constrain|>json<|message|>{}<|call|>",
        [("call lookup", "{}")],
    ),
    "recipient after constrain": (
        "<|channel|>commentary <|constrain|>json to=functions.lookup<|message|>{}<|call|>",
        [("call lookup", "{}")],
    ),
    "recipient on analysis": (
        "<|channel|>analysis to=functions.lookup code<|message|>{}<|call|>",
        [("call lookup", "{}")],
    ),
    "recipient on final": ("<|channel|>final to=functions.lookup<|message|>{}<|call|>", [("call lookup", "{}")]),
    "bare tool name": ("<|channel|>commentary to=lookup<|message|>{}<|call|>", [("call lookup", "{}")]),
    "wrong namespace": ("<|channel|>commentary to=tools.lookup<|message|>{}<|call|>", [("call lookup", "{}")]),
    "glued content type": (
        "<|channel|>commentary to=functions.lookupjson<|message|>{}<|call|>",
        [("call lookup", "{}")],
    ),
    "space after to=": ("<|channel|>commentary to= functions.lookup<|message|>{}<|call|>", [("call lookup", "{}")]),
    "unknown tool": ("<|channel|>commentary to=functions.nope<|message|>{}<|call|>", [("call nope", "{}")]),
    "duplicate to": (
        " to=functions.lookup<|channel|>commentary to=functions.lookup <|constrain|>json<|message|>{}<|call|>",
        [("call lookup", "{}")],
    ),
    "two recipients, one known": (
        "<|channel|>commentary to=nothing to=functions.lookup<|message|>{}<|call|>",
        [("call lookup", "{}")],
    ),
    "extra header words": (
        "<|channel|>commentary please to=functions.lookup now <|constrain|>json<|message|>{}<|call|>",
        [("call lookup", "{}")],
    ),
    "python code": ("<|channel|>analysis to=python code<|message|>print(1)<|call|>", [("call python", "print(1)")]),
    "browser": (
        '<|channel|>analysis to=browser.search code<|message|>{"query":"x"}<|call|>',
        [("call browser.search", '{"query":"x"}')],
    ),
    "user as recipient": ("<|channel|>final to=user<|message|>Hi<|return|>", [("text", "Hi")]),
    "missing start": (
        "<|channel|>analysis<|message|>a<|end|>assistant<|channel|>final<|message|>b<|return|>",
        [("reasoning", "a"), ("text", "b")],
    ),
    "missing start and role": (
        "<|channel|>analysis<|message|>a<|end|><|channel|>final<|message|>b<|return|>",
        [("reasoning", "a"), ("text", "b")],
    ),
    "missing end": (
        "<|channel|>analysis<|message|>a<|start|>assistant<|channel|>final<|message|>b<|return|>",
        [("reasoning", "a"), ("text", "b")],
    ),
    "channel inside content": (
        "<|channel|>analysis<|message|>a<|channel|>final<|message|>b<|return|>",
        [("reasoning", "a"), ("text", "b")],
    ),
    "message inside content": ("<|channel|>final<|message|>a<|message|>b<|return|>", [("text", "ab")]),
    "constrain inside content": ("<|channel|>final<|message|>a<|constrain|>b<|return|>", [("text", "ab")]),
    "no channel": ("<|message|>Hi<|return|>", [("text", "Hi")]),
    "no channel token": ("analysis<|message|>a<|end|>", [("reasoning", "a")]),
    "no message token": ("<|channel|>final Hello there<|return|>", [("text", "Hello there")]),
    "no header at all": ("Hello there<|return|>", [("text", "Hello there")]),
    "call without content": ("<|channel|>commentary to=functions.lookup<|call|>", [("call lookup", "")]),
    "call without message": (
        '<|channel|>commentary to=functions.lookup json{"a":1}<|call|>',
        [("call lookup", '{"a":1}')],
    ),
    "role twice": ("<|start|>assistant<|channel|>final<|message|>b<|return|>", [("text", "b")]),
    "role missing": (
        "<|channel|>final<|message|>a<|end|><|start|><|channel|>final<|message|>b<|return|>",
        [("text", "ab")],
    ),
    "channel twice": ("<|channel|>analysis<|channel|>final<|message|>b<|return|>", [("text", "b")]),
    "unknown channel": ("<|channel|>thoughts<|message|>b<|return|>", [("text", "b")]),
    "someone else's turn": (
        "<|channel|>final<|message|>a<|end|><|start|>user<|message|>and now?<|end|>"
        "<|start|>functions.lookup to=assistant<|channel|>commentary<|message|>42<|end|>",
        [("text", "a")],
    ),
    "two calls": (
        "<|channel|>commentary to=functions.lookup<|message|>1<|call|>"
        "<|start|>assistant<|channel|>commentary to=functions.get_weather<|message|>2<|call|>",
        [("call lookup", "1"), ("call get_weather", "2")],
    ),
    "cut off in arguments": ('<|channel|>commentary to=functions.lookup<|message|>{"a', [("call lookup", '{"a')]),
    "cut off in header": ("<|channel|>commentary to=functions.look", []),
    "cut off in role": ("<|channel|>final<|message|>a<|end|><|start|>assist", [("text", "a")]),
    "stray ends": ("<|end|><|end|><|call|><|return|>", []),
}


@pytest.mark.parametrize("case", RECOVERIES)
def test_recovers(case: str) -> None:
    text, expected = RECOVERIES[case]
    assert folded(parse(marked(text), TOOLS)) == expected


def test_a_header_without_end_becomes_content() -> None:
    words = " word" * 400
    assert folded(parse([CHANNEL, *marked("final" + words)])) == [("text", words.strip())]


def test_a_stream_that_ends_in_an_overlong_header_keeps_its_text() -> None:
    assert folded(parse(marked("The answer to all of that is of course 42, as ever."))) == [
        ("text", "The answer to all of that is of course 42, as ever.")
    ]


def test_split_characters_wait_and_broken_ones_are_replaced() -> None:
    vocabulary = load_vocabulary()
    crab = vocabulary.encode("🦀")
    assert len(crab) > 1
    parser = HarmonyParser(vocabulary)
    parser.feed_all(marked("<|channel|>final<|message|>"))
    for token_id in crab[:-1]:
        assert parser.feed(token_id) == []
        assert parser.mid_character
    assert parser.feed(crab[-1]) == [TextDelta("🦀")]
    assert not parser.mid_character
    parser.feed(crab[0])
    assert parser.feed(RETURN) == [TextDelta("\ufffd")]


def test_logprobs_of_held_tokens_travel_with_the_text_they_make() -> None:
    vocabulary = load_vocabulary()
    parser = HarmonyParser(vocabulary)
    for token_id in marked("<|channel|>final<|message|>"):
        parser.feed(token_id, TokenLogprob(token_id, -1.0, b""))
    crab = [TokenLogprob(token_id, -0.5, vocabulary.token_bytes(token_id)) for token_id in vocabulary.encode("🦀")]
    events = [event for one in crab for event in parser.feed(one.token_id, one)]
    assert events == [TextDelta("🦀", tuple(crab))]


def test_state_for_constraints() -> None:
    parser = HarmonyParser(load_vocabulary(), {"f"})
    assert (parser.state, parser.kind) == (State.HEADER, None)
    parser.feed_all(marked("<|channel|>analysis<|message|>one two"))
    assert parser.in_reasoning
    assert parser.reasoning_tokens == 2
    parser.feed(END)
    parser.feed_all(marked("<|start|>assistant<|channel|>commentary to=functions.f<|message|>{"))
    assert (parser.in_arguments, parser.tool_name, parser.tool_calls) == (True, "f", 1)
    parser.feed_all(marked("}<|call|><|start|>assistant<|channel|>final<|message|>x"))
    assert (parser.in_final, parser.tool_name) == (True, None)
    assert [message.kind for message in parser.messages] == ["reasoning", "call"]


def test_message_spans_cover_the_stream() -> None:
    ids = marked("<|channel|>analysis<|message|>a<|end|><|start|>assistant<|channel|>final<|message|>b<|return|>")
    parser = HarmonyParser(load_vocabulary())
    parser.feed_all(ids)
    first, second = parser.messages
    assert (first.start, first.stop, second.start, second.stop) == (0, ids.index(END) + 1, ids.index(START), len(ids))


def test_default_call_ids_are_unique() -> None:
    ids = marked("<|channel|>commentary to=functions.f<|message|>{}<|call|>") * 2
    events = HarmonyParser(load_vocabulary(), {"f"}).feed_all(ids)
    names = [event.call_id for event in events if isinstance(event, ToolCallStart)]
    assert len(set(names)) == 2
    assert all(name.startswith("call_") for name in names)


@given(st.binary(max_size=60))
def test_content_is_the_bytes_decoded(data: bytes) -> None:
    vocabulary = load_vocabulary()
    single = {vocabulary.token_bytes(token_id): token_id for token_id in range(256)}
    assert len(single) == 256
    ids = [CHANNEL, *vocabulary.encode("final"), MESSAGE, *(single[bytes([byte])] for byte in data), RETURN]
    assert "".join(text for _, text in folded(parse(ids))) == data.decode("utf-8", "replace")
