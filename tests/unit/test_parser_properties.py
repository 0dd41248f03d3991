"""The parser on random, mutated and well-formed streams; openai-harmony is the oracle for the last."""

from __future__ import annotations

from hypothesis import example, given, settings
from hypothesis import strategies as st
from openai_harmony import Role, StreamableParser

from mlx_gptoss.events import Done, ToolCallDelta, ToolCallEnd, ToolCallStart
from mlx_gptoss.harmony.parser import HarmonyParser
from mlx_gptoss.harmony.special import TEXT_TOKENS, VOCABULARY_SIZE
from mlx_gptoss.harmony.vocabulary import load_vocabulary
from tests.unit.harmony_streams import SPECIALS, Turn, stream, turn_lists
from tests.unit.test_parser import folded, parse

plain_ids = st.sampled_from(
    load_vocabulary().encode("assistant analysis commentary final to=functions.f json {} a é 🦀")
)
special_ids = st.one_of(st.sampled_from(sorted(SPECIALS.values())), st.integers(TEXT_TOKENS, VOCABULARY_SIZE - 1))
tokens = st.one_of(plain_ids, special_ids, st.integers(0, TEXT_TOKENS - 1), st.integers(-(2**70), 2**70))


def check_events_are_consistent(ids: list[int]) -> None:
    parser = HarmonyParser(load_vocabulary(), {"f"})
    events = parser.feed_all(ids) + parser.finish()
    assert parser.finish() == []
    open_call: ToolCallStart | None = None
    pieces: list[str] = []
    calls = 0
    for event in events:
        if isinstance(event, ToolCallStart):
            assert open_call is None
            assert event.index == calls
            open_call, pieces, calls = event, [], calls + 1
        elif isinstance(event, ToolCallDelta):
            assert open_call is not None
            assert (event.call_id, event.index) == (open_call.call_id, open_call.index)
            pieces.append(event.arguments)
        elif isinstance(event, ToolCallEnd):
            assert open_call is not None
            assert (event.call_id, event.name, event.arguments) == (open_call.call_id, open_call.name, "".join(pieces))
            open_call = None
        elif not isinstance(event, Done):
            assert event.text
    assert open_call is None
    assert parser.tool_calls == calls
    spans = [(message.start, message.stop) for message in parser.messages]
    assert all(start <= stop for start, stop in spans)
    assert spans == sorted(spans)


@given(st.lists(tokens, max_size=60))
@settings(max_examples=300)
@example([10**30, -1])
def test_never_raises_on_any_ids(ids: list[int]) -> None:
    check_events_are_consistent(ids)


@given(st.lists(st.one_of(plain_ids, special_ids), max_size=60))
@settings(max_examples=300)
def test_no_special_token_reaches_an_event(ids: list[int]) -> None:
    assert not any("<" in text or "|" in text for _, text in folded(parse(ids, ["f"])))


@given(st.data(), turn_lists)
@settings(max_examples=200)
def test_mutated_streams_never_raise(data: st.DataObject, turns: list[Turn]) -> None:
    ids = stream(turns)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(ids)))
        change = data.draw(st.sampled_from(["drop", "insert", "repeat", "cut"]))
        if change == "drop":
            del ids[at : at + 1]
        elif change == "insert":
            ids.insert(at, data.draw(special_ids))
        elif change == "repeat":
            ids[at:at] = ids[max(0, at - 3) : at]
        else:
            del ids[at:]
    check_events_are_consistent(ids)


@given(turn_lists)
@settings(max_examples=200)
def test_agrees_with_openai_harmony_on_well_formed_streams(turns: list[Turn]) -> None:
    ids = stream(turns)
    oracle = StreamableParser(load_vocabulary().encoding, Role.ASSISTANT)
    for token_id in ids:
        oracle.process(token_id)
    oracle.process_eos()
    parser = HarmonyParser(load_vocabulary(), {turn.tool for turn in turns if turn.tool})
    parser.feed_all(ids)
    ours = []
    for message in parser.messages:
        recipient = f"functions.{message.tool_name}" if message.kind == "call" else None
        ours.append((message.header.channel, recipient, message.header.content_type, message.text))
    theirs = []
    for reference in oracle.messages:
        recipient = None if reference.recipient in (None, "all") else reference.recipient
        kind = (reference.content_type or "").removeprefix("<|constrain|>") or None
        theirs.append((reference.channel, recipient, kind, "".join(part.text for part in reference.content)))
    assert ours == theirs
    assert [kind for kind, _ in folded(parse(ids)) if kind.startswith("call")] == [
        f"call {turn.tool}" for turn in turns if turn.kind == "call"
    ]


@given(turn_lists)
def test_deltas_join_to_the_content(turns: list[Turn]) -> None:
    parser = HarmonyParser(load_vocabulary())
    parser.feed_all(stream(turns))
    assert [(message.kind, message.text) for message in parser.messages] == [
        (turn.kind, turn.content) for turn in turns
    ]
