"""`cached_tokens` through HTTP: exactly what the rendered prompts share, down to the token.

A stored conversation can be re-entered where its tokens end and where its prompts ended. A turn that ended with a
call stays as it was generated, so all of it is cached; after a final answer its reasoning is dropped, so the next
prompt parts from it where it began to answer, and that is where the last prompt ended.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Any

import httpx
import pytest

from mlx_gptoss.harmony.render import render
from mlx_gptoss.harmony.vocabulary import load_vocabulary
from mlx_gptoss.messages import (
    AssistantMessage,
    DeveloperMessage,
    Message,
    SystemMessage,
    ToolCall,
    ToolMessage,
    UserMessage,
)
from mlx_gptoss.registry import Registry
from mlx_gptoss.request import ChatRequest
from mlx_gptoss.server.wire.chat_completions import ChatCompletionBody, ChatMessageBody, to_request
from tests.server.support import HELLO, MODEL, SUNNY, WEATHER, WEATHER_TOOL, client_of, scripted_app
from tests.unit.harmony_streams import marked

pytestmark = pytest.mark.anyio


@pytest.fixture
async def client(registry: Registry) -> AsyncIterator[httpx.AsyncClient]:
    async with client_of(scripted_app(registry)) as found:
        yield found


def prompt_of(messages: Sequence[Message], tools: Sequence[dict[str, Any]] = ()) -> tuple[int, ...]:
    body = ChatCompletionBody(
        model=MODEL, messages=[ChatMessageBody(role="user", content="x")], tools=list(tools) or None
    )
    parsed = to_request(body).tools
    return render(ChatRequest(messages=tuple(messages), tools=parsed), load_vocabulary()).token_ids


async def ask(client: httpx.AsyncClient, messages: list[dict[str, Any]], **fields: Any) -> tuple[int, int, Any]:
    body = {"model": MODEL, "messages": messages, **fields}
    answer = (await client.post("/v1/chat/completions", json=body)).json()
    usage = answer["usage"]
    return usage["prompt_tokens"], usage["prompt_tokens_details"]["cached_tokens"], answer["choices"][0]["message"]


@pytest.mark.parametrize("first", ["user", "system", "developer"])
async def test_plain_chat(client: httpx.AsyncClient, first: str) -> None:
    """Turns 2 to 5: everything up to the last answer is cached, although clients drop the reasoning."""
    sent: list[dict[str, Any]] = [] if first == "user" else [{"role": first, "content": "Answer in one line."}]
    known: list[Message] = []
    if first != "user":
        known.append((SystemMessage if first == "system" else DeveloperMessage)("Answer in one line."))
    before: tuple[int, ...] = ()
    for turn in range(5):
        sent.append({"role": "user", "content": f"question {turn}"})
        known.append(UserMessage(f"question {turn}"))
        expected_prompt = prompt_of(known)
        count, cached, message = await ask(client, sent)
        assert count == len(expected_prompt)
        assert expected_prompt[: len(before)] == before
        assert cached == len(before)
        before = expected_prompt
        sent.append({"role": "assistant", "content": message["content"]})
        known.append(AssistantMessage(text="Hello there!", reasoning="They greet me.", token_ids=tuple(marked(HELLO))))


async def test_tool_loop(client: httpx.AsyncClient) -> None:
    """A call keeps its reasoning, so the whole turn is cached up to its very last token."""
    tools = [WEATHER_TOOL]
    sent: list[dict[str, Any]] = [{"role": "user", "content": "weather?"}]
    first_prompt = prompt_of([UserMessage("weather?")], tools)
    count, cached, message = await ask(client, sent, tools=tools)
    assert (count, cached) == (len(first_prompt), 0)
    call = message["tool_calls"][0]
    sent += [
        {"role": "assistant", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": call["id"], "content": "18 C"},
    ]
    turn = AssistantMessage(
        reasoning="I need the weather.", token_ids=tuple(marked(WEATHER)),
        tool_calls=(ToolCall(call["id"], "get_weather", '{"city": "Paris"}'),),
    )  # fmt: skip
    known: list[Message] = [UserMessage("weather?"), turn, ToolMessage(call["id"], "get_weather", "18 C")]
    second_prompt = prompt_of(known, tools)
    count, cached, message = await ask(client, sent, tools=tools)
    assert count == len(second_prompt)
    generated = [*first_prompt, *marked(WEATHER)]
    assert second_prompt[: len(generated)] == tuple(generated)
    assert cached == len(generated)
    sent += [{"role": "assistant", "content": message["content"]}, {"role": "user", "content": "hi"}]
    known += [AssistantMessage(text="It is sunny.", token_ids=tuple(marked(SUNNY))), UserMessage("hi")]
    third_prompt = prompt_of(known, tools)
    count, cached, _ = await ask(client, sent, tools=tools)
    assert count == len(third_prompt)
    # The final answer ended the loop, so the reasoning that led to the call is gone from the history.
    assert cached == len(first_prompt)


async def test_two_conversations_share_a_system_prompt(client: httpx.AsyncClient) -> None:
    system = {"role": "system", "content": "You are a careful assistant. " * 20}
    one = prompt_of([SystemMessage(system["content"]), UserMessage("alpha?")])
    two = prompt_of([SystemMessage(system["content"]), UserMessage("beta?")])
    assert (await ask(client, [system, {"role": "user", "content": "alpha?"}]))[:2] == (len(one), 0)
    count, cached, _ = await ask(client, [system, {"role": "user", "content": "beta?"}])
    system_end = render(
        ChatRequest(messages=(SystemMessage(system["content"]), UserMessage("x"))), load_vocabulary()
    ).boundaries[0]
    assert count == len(two)
    assert one[:system_end] == two[:system_end]
    assert cached == system_end


async def test_reasoning_comes_back_by_call_id_for_any_api(client: httpx.AsyncClient) -> None:
    """Asked through one API, continued through another: the call id is all that is needed."""
    tool = {"type": "function", **WEATHER_TOOL["function"]}
    first = (await client.post("/v1/responses", json={"model": MODEL, "input": "weather?", "tools": [tool]})).json()
    call = first["output"][-1]
    messages: list[dict[str, Any]] = [
        {"role": "user", "content": "weather?"},
        {"role": "assistant", "tool_calls": [
            {"id": call["call_id"], "type": "function",
             "function": {"name": call["name"], "arguments": '{"city":"Paris"}'}}]},
        {"role": "tool", "tool_call_id": call["call_id"], "content": "18 C"},
    ]  # fmt: skip
    _, cached, _ = await ask(client, messages, tools=[WEATHER_TOOL])
    assert cached == first["usage"]["input_tokens"] + first["usage"]["output_tokens"]
