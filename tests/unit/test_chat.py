"""Chat sessions: history token for token, tool results, cut-off answers."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from mlx_gptoss.errors import InvalidRequestError
from mlx_gptoss.events import Done, TextDelta
from mlx_gptoss.messages import AssistantMessage, SystemMessage, Tool, ToolMessage, UserMessage
from tests.unit.scripted_llm import harmony_ids, scripted

FIRST = (
    "<|channel|>analysis<|message|>Greet back.<|end|><|start|>assistant<|channel|>final<|message|>Hello, Ann.<|return|>"
)
SECOND = "<|channel|>final<|message|>You are Ann.<|return|>"
CALL = (
    "<|channel|>analysis<|message|>I need the weather.<|end|><|start|>assistant<|channel|>commentary "
    'to=functions.weather <|constrain|>json<|message|>{"city": "Oslo"}<|call|>'
)
AFTER = "<|channel|>analysis<|message|>Rain.<|end|><|start|>assistant<|channel|>final<|message|>It rains.<|return|>"
THIRD = "<|channel|>final<|message|>Take one.<|return|>"
WEATHER = Tool("weather", parameters={"type": "object", "properties": {"city": {"type": "string"}}})


def test_the_next_turn_prefills_only_what_is_new() -> None:
    with scripted(FIRST, SECOND, SECOND) as (llm, _):
        chat = llm.chat("Be kind.")
        first = chat.send("I am Ann.")
        assert first.text == "Hello, Ann."
        assert first.usage.cached_tokens == 0
        second = chat.send("Who am I?")
        assert second.text == "You are Ann."
        # The first prompt stays; the answer comes back without its reasoning, after `<|start|>assistant`.
        assert second.usage.cached_tokens == first.usage.prompt_tokens
        new = harmony_ids(
            "<|channel|>final<|message|>Hello, Ann.<|end|><|start|>user<|message|>Who am I?<|end|><|start|>assistant"
        )
        assert second.usage.prompt_tokens - second.usage.cached_tokens == len(new)
        third = chat.send("And now?")
        # No reasoning to drop: all but the last token, `<|return|>`, which history writes as `<|end|>`.
        assert third.usage.cached_tokens == second.usage.prompt_tokens + second.usage.completion_tokens - 1
        assert [type(message) for message in chat.messages] == [
            SystemMessage,
            UserMessage,
            AssistantMessage,
            UserMessage,
            AssistantMessage,
            UserMessage,
            AssistantMessage,
        ]


def test_a_tool_loop_continues_from_the_call_and_later_drops_the_reasoning() -> None:
    with scripted(CALL, AFTER, THIRD) as (llm, _):
        chat = llm.chat(tools=[WEATHER])
        asked = chat.send("Do I need an umbrella in Oslo?")
        assert asked.finish_reason == "tool_calls"
        (call,) = chat.pending_calls
        assert (call.name, call.arguments) == ("weather", '{"city": "Oslo"}')
        chat.add_tool_result(call.id, "rain")
        assert chat.pending_calls == ()
        answered = chat.send()
        assert answered.text == "It rains."
        assert answered.usage.cached_tokens == asked.usage.prompt_tokens + asked.usage.completion_tokens
        last = chat.send("So?")
        assert last.text == "Take one."
        # Both analyses are gone from the history: back to the end of the first prompt.
        assert last.usage.cached_tokens == asked.usage.prompt_tokens


def test_tool_results_can_be_sent_as_messages() -> None:
    with scripted(CALL, AFTER) as (llm, _):
        chat = llm.chat(tools=[WEATHER])
        (call,) = chat.send("Umbrella?").tool_calls
        assert chat.send([ToolMessage(call.id, call.name, "rain")]).text == "It rains."
        with pytest.raises(InvalidRequestError):
            chat.add_tool_result("call_nope", "x")


def test_system_prompts_are_shared_between_chats() -> None:
    with scripted(FIRST, FIRST) as (llm, _):
        system = "You are a careful assistant. " * 20
        llm.chat(system).send("One")
        second = llm.chat(system).send("Another thing")
        without = llm.count_tokens("Another thing", system=system) - second.usage.cached_tokens
        assert without == len(harmony_ids("<|start|>user<|message|>Another thing<|end|><|start|>assistant"))


def test_a_refused_turn_leaves_the_conversation_as_it_was() -> None:
    with scripted(FIRST, context=200) as (llm, _):
        chat = llm.chat()
        with pytest.raises(InvalidRequestError):
            chat.send("word " * 500)
        with pytest.raises(InvalidRequestError):
            chat.send("  ")
        assert chat.messages == ()
        with pytest.raises(InvalidRequestError):
            llm.chat(tempereture=1)


@pytest.mark.parametrize(
    ("options", "param"),
    [({"effort": "zz"}, "effort"), ({"stop": [""]}, "stop"), ({"max_tokens": "many"}, "max_tokens")],
)
def test_a_bad_option_is_refused_when_the_chat_is_made(options: dict[str, Any], param: str) -> None:
    with scripted(FIRST) as (llm, _), pytest.raises(InvalidRequestError) as caught:
        llm.chat(**options)
    assert caught.value.param == param


def test_a_cut_off_answer_is_kept_as_far_as_its_text_goes() -> None:
    endless = "<|channel|>final<|message|>" + "word " * 20_000
    with scripted(endless, SECOND) as (llm, _):
        chat = llm.chat()
        with chat.stream("Go", repetition_stop=False) as stream:
            for event in stream:
                if isinstance(event, TextDelta):
                    break
        message = chat.messages[-1]
        assert isinstance(message, AssistantMessage)
        assert message.text.startswith("word")
        assert chat.send("Stop. Who am I?").text == "You are Ann."


def test_an_answer_cut_off_in_its_reasoning_is_not_kept() -> None:
    endless = "<|channel|>analysis<|message|>" + "think " * 20_000
    with scripted(endless, SECOND) as (llm, _):
        chat = llm.chat()
        with chat.stream("Go", repetition_stop=False) as stream:
            next(stream)
        assert [type(message) for message in chat.messages] == [UserMessage]
        assert chat.send("Who am I?").text == "You are Ann."


def test_undo_and_reset() -> None:
    with scripted(FIRST) as (llm, _):
        chat = llm.chat("Be kind.")
        chat.send("I am Ann.")
        chat.send("Again.")
        assert chat.undo()
        assert len(chat.messages) == 3
        chat.reset()
        assert list(chat.messages) == [SystemMessage("Be kind.")]
        assert not chat.undo()


def test_async_chat() -> None:
    with scripted(FIRST, SECOND) as (llm, _):

        async def main() -> None:
            chat = llm.chat()
            assert (await chat.asend("I am Ann.")).text == "Hello, Ann."
            events = [event async for event in chat.astream("Who am I?")]
            assert isinstance(events[-1], Done)
            assert len(chat.messages) == 4

        asyncio.run(main())
