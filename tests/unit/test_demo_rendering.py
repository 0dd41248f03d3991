"""What the demo checkpoint was trained on is, token for token, what the runtime renders."""

from __future__ import annotations

import json
import lzma
import random
from datetime import date
from pathlib import Path

import pytest

pytest.importorskip("tiktoken")

from mlx_gptoss.harmony.parser import HarmonyParser
from mlx_gptoss.harmony.render import render
from mlx_gptoss.harmony.vocabulary import load_vocabulary
from mlx_gptoss.harmony.vocabulary_file import FILE_NAME
from mlx_gptoss.messages import AssistantMessage, Message, SystemMessage, ToolCall, ToolMessage, UserMessage
from mlx_gptoss.request import ChatRequest
from training.conversation import EFFORTS, Function, Renderer, Setting, Turn
from training.data import TASKS, Source
from training.lexicon import Lexicon
from training.structured import Structured
from training.toolbox import Toolbox, announced

DAY = "2026-03-05"


@pytest.fixture(scope="module")
def lexicon(tmp_path_factory: pytest.TempPathFactory) -> Lexicon:
    packed = Path(__file__).parents[2] / "mlx_gptoss" / "data" / "o200k_base.tiktoken.xz"
    target = tmp_path_factory.mktemp("vocabulary") / FILE_NAME
    with lzma.open(packed) as stream:
        target.write_bytes(stream.read())
    return Lexicon(target)


def said(turn: Turn) -> list[Message]:
    """A finished turn as a client sends it back."""
    if turn.call is None:
        return [UserMessage(turn.user), AssistantMessage(turn.final)]
    call = ToolCall("1", turn.call.name, json.dumps(turn.call.arguments, ensure_ascii=False))
    return [
        UserMessage(turn.user),
        AssistantMessage(preamble=turn.call.preamble, tool_calls=(call,)),
        ToolMessage("1", call.name, turn.call.result),
        AssistantMessage(turn.final),
    ]


def request(setting: Setting, messages: list[Message], functions: tuple[Function, ...] = ()) -> ChatRequest:
    leading = [SystemMessage(setting.instructions)] if setting.instructions else []
    return ChatRequest(
        messages=(*leading, *messages),
        tools=tuple(function.tool() for function in functions),
        response_format=setting.response_format,
        effort=setting.effort,  # type: ignore[arg-type]  # one of EFFORTS
        current_date=date.fromisoformat(setting.date),
    )


@pytest.mark.parametrize("seed", range(12))
def test_plain_turns_after_history(lexicon: Lexicon, seed: int) -> None:
    source = Source(lexicon, seed)
    effort = EFFORTS[seed % 3]
    functions, calls = source.idle_functions(effort)
    setting = Setting(DAY, effort, source.instructions() if seed % 2 else "", functions)
    history = [*calls, *source.history(effort, functions, chance=0.9)]
    turn = source.small_turn(effort)
    ids = Renderer(lexicon).opening(setting)
    for past in history:
        ids += Renderer(lexicon).past(past, respelled=True)
    prompt = ids + Renderer(lexicon).first_step(turn)[0]
    messages = [message for past in history for message in said(past)]
    assert render(request(setting, [*messages, UserMessage(turn.user)], functions)).token_ids == prompt


@pytest.mark.parametrize("seed", range(40))
def test_tool_calls_and_results(lexicon: Lexicon, seed: int) -> None:
    rng, effort, renderer = random.Random(seed), EFFORTS[seed % 3], Renderer(lexicon)
    turn, functions = Toolbox(rng, Source(lexicon, 0).narrow, evaluation=False).draw(effort)
    if seed % 4 == 0:
        turn = announced(turn)
    assert turn.call is not None
    setting = Setting(DAY, effort, "", functions)
    opening = renderer.opening(setting)
    prompt, answer = renderer.first_step(turn)
    assert render(request(setting, [UserMessage(turn.user)], functions)).token_ids == opening + prompt

    user, called, result, _ = said(turn)
    assert isinstance(called, AssistantMessage)
    sent = AssistantMessage(reasoning=turn.thought, preamble=called.preamble, tool_calls=called.tool_calls)
    spliced = AssistantMessage(tool_calls=called.tool_calls, token_ids=answer)
    for message, respelled, reasoned in ((sent, True, True), (called, True, False), (spliced, False, True)):
        wanted = opening + renderer.second_step(turn, turn.call, respelled, reasoned)[0]
        assert render(request(setting, [user, message, result], functions)).token_ids == wanted


@pytest.mark.parametrize("seed", range(20))
def test_response_formats(lexicon: Lexicon, seed: int) -> None:
    effort, renderer = EFFORTS[seed % 3], Renderer(lexicon)
    turn, form = Structured(random.Random(seed), Source(lexicon, 0).narrow, evaluation=False).draw(effort)
    setting = Setting(DAY, effort, "", (), form)
    prompt = renderer.opening(setting) + renderer.first_step(turn)[0]
    assert render(request(setting, [UserMessage(turn.user)])).token_ids == prompt
    assert isinstance(json.loads(turn.final), dict)


@pytest.mark.parametrize("task", TASKS)
def test_answers_parse_as_they_were_meant(lexicon: Lexicon, task: str) -> None:
    source = Source(lexicon, 5, evaluation=True)
    for effort in EFFORTS:
        example = source.draw(task, effort, 400)
        parser = HarmonyParser(load_vocabulary(), frozenset(), new_id=str)
        parser.feed_all(example.answer)
        parser.finish()
        assert parser.messages[-1].kind == ("call" if task == "tool call" else "text")
        text = lexicon.decode(list(example.answer))
        assert task == "tool call" or example.marks["final"] in text


def test_reasoning_grows_with_effort_in_every_task(lexicon: Lexicon) -> None:
    for task in TASKS:
        mean = []
        for effort in EFFORTS:
            source = Source(lexicon, 11, evaluation=True)
            mean.append(sum(len(source.draw(task, effort, 400).answer) for _ in range(60)) / 60)
        assert mean == sorted(mean), task


def test_held_out_words_are_never_drawn_in_training(lexicon: Lexicon) -> None:
    narrow = Source(lexicon, 0).narrow
    assert len(narrow.nouns) > 300
    assert len(narrow.new_nouns) > 15
    assert not set(narrow.nouns) & set(narrow.new_nouns)
    assert not set(narrow.proper) & set(narrow.new_proper)


def test_the_vocabulary_file_is_the_packaged_one(lexicon: Lexicon) -> None:
    text = 'What is the weather in Paris? {"city": "Paris"} 17 + 25 = 42.'
    assert list(lexicon.encode(text)) == list(load_vocabulary().encode(text))
