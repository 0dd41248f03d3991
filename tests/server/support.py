"""A server over a scripted model: what each message is answered with is written down, token for token."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from fastapi import FastAPI

from mlx_gptoss.engine import Engine, EngineOptions
from mlx_gptoss.harmony.special import START
from mlx_gptoss.harmony.vocabulary import load_vocabulary
from mlx_gptoss.llm import GptOss
from mlx_gptoss.registry import Registry
from mlx_gptoss.server.app import build_app
from mlx_gptoss.server.settings import ServerSettings
from tests.tiny import tiny_config, write_hf_checkpoint
from tests.unit.fake_model import ScriptedModel
from tests.unit.harmony_streams import marked

MODEL = "someone/scripted"
NEXT = "<|end|><|start|>assistant"
CALL = "<|channel|>commentary to=functions.get_weather <|constrain|>json<|message|>"
FINAL = "<|channel|>final<|message|>"
HELLO = f"<|channel|>analysis<|message|>They greet me.{NEXT}{FINAL}Hello there!<|return|>"
WEATHER = f'<|channel|>analysis<|message|>I need the weather.{NEXT}{CALL}{{"city": "Paris"}}<|call|>'
PREAMBLE = f'<|channel|>commentary<|message|>Let me look.{NEXT}{CALL}{{"city": "Rome"}}<|call|>'
BROKEN = f"{CALL}{{city: oops<|call|>"
SUNNY = f"{FINAL}It is sunny.<|return|>"
LONG = FINAL + "word " * 3000 + "<|return|>"
JSON = f'<|channel|>analysis<|message|>An object.{NEXT}{FINAL}{{"name": "Ada", "age": 36}}<|return|>'
REPLIES: Mapping[str, str] = {
    "weather?": WEATHER,
    "look first": PREAMBLE,
    "broken call": BROKEN,
    "18 C": SUNNY,
    "long": LONG,
    "json": JSON,
}
WEATHER_TOOL: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather in a city.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}


@dataclass(frozen=True)
class Script:
    """Answers by the last message that is not the assistant's."""

    replies: Mapping[str, str]

    def __call__(self, prompt: list[int], generated: list[int]) -> int:
        vocabulary = load_vocabulary()
        assistant = vocabulary.encode("assistant")
        starts = [index for index, token in enumerate(prompt) if token == START]
        asked = max((i for i in starts if prompt[i + 1 : i + 1 + len(assistant)] != assistant), default=0)
        text = vocabulary.decode(prompt[asked:])
        reply = marked(next((reply for key, reply in self.replies.items() if key in text), HELLO))
        return reply[min(len(generated), len(reply) - 1)]


def scripted_llm(replies: Mapping[str, str] = REPLIES, **options: Any) -> GptOss:
    """A GptOss that answers from a script."""
    return GptOss(Engine(lambda: ScriptedModel(Script(replies)), EngineOptions(**options)), name=MODEL)


def scripted_registry(home: Path) -> Registry:
    """A registry in which MODEL is installed (a tiny random model stands for the weights)."""
    from mlx_gptoss.names import convert_source

    registry = Registry(home)
    source = write_hf_checkpoint(home / "source", tiny_config(), seed=1)
    convert_source(source, registry.model_folder(MODEL))
    registry.set_default(MODEL)
    return registry


@asynccontextmanager
async def client_of(app: FastAPI, **headers: str) -> AsyncIterator[httpx.AsyncClient]:
    """An HTTP client to an application in this process, its lifespan run."""
    transport = httpx.ASGITransport(app=app)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1", headers=headers) as client,
    ):
        yield client


def scripted_app(registry: Registry, settings: ServerSettings | None = None, **options: Any) -> FastAPI:
    """An application over the scripted model."""
    return build_app(
        settings if settings is not None else ServerSettings(),
        loader=lambda name: scripted_llm(**options),
        registry=registry,
    )


def sse_events(text: str) -> list[dict[str, Any]]:
    """The data objects of a server-sent event stream; `[DONE]` is dropped, after checking that it is last."""
    records = [line.removeprefix("data: ") for line in text.split("\n") if line.startswith("data: ")]
    if "[DONE]" in records and records.index("[DONE]") != len(records) - 1:
        raise AssertionError("[DONE] is not the last event")
    return [json.loads(record) for record in records if record != "[DONE]"]


def lines_of(text: str) -> list[dict[str, Any]]:
    """The objects of an NDJSON stream; a blank line is an error, as it is to Ollama's client."""
    return [json.loads(line) for line in text.removesuffix("\n").split("\n")]
