"""History that clients send back in part is made whole again."""

from __future__ import annotations

from dataclasses import replace

from mlx_gptoss.messages import AssistantMessage, ToolCall, ToolMessage, UserMessage
from mlx_gptoss.server.turns import TurnStore

ASKED = (UserMessage("weather?"),)
CALL = ToolCall("call_1", "get_weather", '{"city": "Paris", "unit": "c"}')
TURN = AssistantMessage(reasoning="must look", tool_calls=(CALL,), token_ids=(1, 2, 3))
ANSWER = AssistantMessage(text="42", reasoning="easy", token_ids=(7, 8))


def filled() -> TurnStore:
    store = TurnStore()
    store.remember(ASKED, TURN)
    store.remember((UserMessage("sum?"),), ANSWER)
    return store


def test_reasoning_comes_back_by_call_id() -> None:
    sent = AssistantMessage(tool_calls=(CALL,))
    assert filled().restore([UserMessage("something else"), sent])[1] == TURN


def test_a_call_without_its_id_is_found_by_the_conversation() -> None:
    sent = AssistantMessage(tool_calls=(ToolCall("other", "get_weather", '{"unit":"c","city":"Paris"}'),))
    assert filled().restore([*ASKED, sent])[1] == TURN
    assert filled().restore([UserMessage("another"), sent])[1] == sent


def test_text_is_found_only_in_its_own_conversation() -> None:
    sent = AssistantMessage(text="42")
    assert filled().restore([UserMessage("sum?"), sent])[1] == ANSWER
    assert filled().restore([UserMessage("other?"), sent])[1] == sent


def test_what_the_client_changed_stays_changed() -> None:
    changed = AssistantMessage(tool_calls=(ToolCall("call_1", "get_weather", '{"city": "Rome"}'),))
    assert filled().restore([*ASKED, changed])[1] == changed
    edited = AssistantMessage(text="43")
    assert filled().restore([UserMessage("sum?"), edited])[1] == edited


def test_the_clients_reasoning_wins() -> None:
    sent = AssistantMessage(reasoning="edited", tool_calls=(CALL,))
    assert filled().restore([*ASKED, sent])[1] == replace(TURN, reasoning="edited", token_ids=None)


def test_a_nameless_result_gets_the_name_of_its_call() -> None:
    assert filled().restore([ToolMessage("call_1", "", "18 C")])[0] == ToolMessage("call_1", "get_weather", "18 C")
    assert filled().restore([ToolMessage("unknown", "", "18 C")])[0] == ToolMessage("unknown", "", "18 C")


def test_the_store_is_bounded() -> None:
    store = TurnStore(capacity=4)
    for number in range(100):
        store.remember([UserMessage(str(number))], replace(ANSWER, text=str(number)))
    assert len(store) == 4
