"""Frameworks that people build agents with: litellm, openai-agents, google-adk, langchain."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

pytestmark = pytest.mark.clients
MODEL = "demo"
ASK: list[Any] = [{"role": "user", "content": "What is 17 + 25?"}]
TOOL: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Get the weather in a city.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}


@pytest.mark.parametrize("route", ["openai", "ollama_chat"])
def test_litellm(server: str, route: str) -> None:
    import litellm

    base = f"{server}/v1" if route == "openai" else server
    options: dict[str, Any] = {"model": f"{route}/{MODEL}", "api_base": base, "api_key": "unused", "temperature": 0}
    answer = litellm.completion(messages=ASK, **options)
    assert "42" in answer.choices[0].message.content
    chunks = list(litellm.completion(messages=ASK, stream=True, **options))
    assert "42" in "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    called = litellm.completion(
        messages=[{"role": "user", "content": "What is the weather in Paris?"}], tools=[TOOL], **options
    )
    assert called.choices[0].message.tool_calls[0].function.name == "get_weather"


@pytest.mark.parametrize("api", ["responses", "chat"])
def test_openai_agents(server: str, api: str) -> None:
    from agents import Agent, ModelSettings, OpenAIChatCompletionsModel, OpenAIResponsesModel, Runner, function_tool
    from openai import AsyncOpenAI

    seen: list[str] = []

    @function_tool
    def get_weather(city: str) -> str:
        """Get the weather in a city."""
        seen.append(city)
        return "21 C and sunny"

    client = AsyncOpenAI(base_url=f"{server}/v1", api_key="unused")
    kind = OpenAIResponsesModel if api == "responses" else OpenAIChatCompletionsModel
    agent = Agent(
        name="helper", tools=[get_weather], model=kind(MODEL, client), model_settings=ModelSettings(temperature=0)
    )
    result = asyncio.run(Runner.run(agent, "What is the weather in Paris?", max_turns=4))
    assert seen
    assert "21" in str(result.final_output)


def test_google_adk(server: str) -> None:
    from google.adk.agents import LlmAgent
    from google.adk.models.lite_llm import LiteLlm
    from google.adk.runners import InMemoryRunner
    from google.genai import types

    def get_weather(city: str) -> dict[str, str]:
        """Get the weather in a city."""
        return {"report": f"21 C and sunny in {city}"}

    async def run() -> list[str]:
        model = LiteLlm(model=f"openai/{MODEL}", api_base=f"{server}/v1", api_key="unused", temperature=0)
        agent = LlmAgent(name="helper", model=model, tools=[get_weather])
        runner = InMemoryRunner(agent=agent, app_name="test")
        session = await runner.session_service.create_session(app_name="test", user_id="user")
        said = types.Content(role="user", parts=[types.Part(text="What is the weather in Paris?")])
        texts = []
        async for event in runner.run_async(user_id="user", session_id=session.id, new_message=said):
            for part in (event.content.parts or []) if event.content else []:
                texts.append(part.text or "")
                if part.function_call is not None:
                    texts.append(f"called {part.function_call.name}")
        return texts

    texts = asyncio.run(run())
    assert "called get_weather" in texts
    assert any("21" in text for text in texts)


def test_langchain_openai(server: str) -> None:
    from langchain_core.tools import tool
    from langchain_openai import ChatOpenAI
    from pydantic import BaseModel

    class Person(BaseModel):
        """A person."""

        name: str
        age: int

    @tool
    def get_weather(city: str) -> str:
        """Get the weather in a city."""
        return "21 C and sunny"

    model = ChatOpenAI(model=MODEL, base_url=f"{server}/v1", api_key="unused", temperature=0, max_tokens=600)
    assert "42" in str(model.invoke("What is 17 + 25?").content)
    assert "13" in "".join(str(chunk.content) for chunk in model.stream("What is 8 + 5?"))
    called = model.bind_tools([get_weather]).invoke("What is the weather in Paris?")
    assert called.tool_calls[0]["name"] == "get_weather"
    structured = model.with_structured_output(Person, method="json_schema")
    assert isinstance(structured.invoke("Ada is 36 years old. Answer in JSON."), Person)


def test_langchain_ollama(server: str) -> None:
    from langchain_core.tools import tool
    from langchain_ollama import ChatOllama

    @tool
    def get_weather(city: str) -> str:
        """Get the weather in a city."""
        return "21 C and sunny"

    model = ChatOllama(model=MODEL, base_url=server, temperature=0, reasoning=True)
    answer = model.invoke("What is 17 + 25?")
    assert "42" in str(answer.content)
    assert answer.additional_kwargs["reasoning_content"]
    called = model.bind_tools([get_weather]).invoke("What is the weather in Paris?")
    assert called.tool_calls[0]["args"].get("city")
