"""Whatever a client sends, it gets an answer in the API's own shape, and never a 500."""

from __future__ import annotations

import asyncio
import copy
import json
import logging
from collections.abc import Iterator, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mlx_gptoss.errors import ModelNotFoundError
from mlx_gptoss.registry import Registry
from mlx_gptoss.server import pulling
from mlx_gptoss.server.failure import api_of
from tests.server.support import MODEL, WEATHER_TOOL, client_of, scripted_app

SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
FUNCTION = WEATHER_TOOL["function"]
CALL = {"id": "c1", "type": "function", "function": {"name": "get_weather", "arguments": '{"city": "Paris"}'}}
SAMPLING = {"temperature": 0.5, "top_p": 0.9, "seed": 7, "stop": ["zzz"]}
BODIES: Mapping[str, dict[str, Any]] = {
    "/v1/chat/completions": {
        **SAMPLING, "model": MODEL, "stream": False, "stream_options": {"include_usage": True}, "n": 1, "top_k": 5,
        "tools": [WEATHER_TOOL], "tool_choice": "auto", "parallel_tool_calls": True, "reasoning_effort": "low",
        "logprobs": True, "top_logprobs": 2, "logit_bias": {"5": 1}, "max_tokens": 30, "max_completion_tokens": 30,
        "presence_penalty": 0.5, "frequency_penalty": 0.5, "min_p": 0.1, "repetition_penalty": 1.1,
        "messages": [
            {"role": "system", "content": "s"}, {"role": "user", "content": [{"type": "text", "text": "hi"}]},
            {"role": "assistant", "content": None, "tool_calls": [CALL], "reasoning": "r"},
            {"role": "tool", "tool_call_id": "c1", "content": "18 C", "name": "get_weather"},
        ],
    },
    "/v1/completions": {
        **SAMPLING, "model": MODEL, "prompt": ["hi"], "n": 1, "best_of": 1, "max_tokens": 5, "logprobs": 1,
        "echo": False, "suffix": "", "logit_bias": {"5": 1}, "stream": False, "stream_options": {},
    },
    "/v1/responses": {
        "model": MODEL, "instructions": "s", "store": True, "background": False, "stream": False,
        "input": [
            {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "hi"}]},
            {"type": "reasoning", "id": "rs_1", "content": [{"type": "reasoning_text", "text": "r"}], "summary": []},
            {"type": "function_call", "call_id": "c1", "name": "get_weather", "arguments": "{}"},
            {"type": "function_call_output", "call_id": "c1", "output": "18 C"},
        ],
        "tools": [{"type": "function", **FUNCTION}], "tool_choice": "auto", "parallel_tool_calls": True,
        "reasoning": {"effort": "low", "summary": "auto"}, "text": {"format": {"type": "text"}, "verbosity": "low"},
        "include": ["message.output_text.logprobs"], "truncation": "auto", "metadata": {"a": "b"},
        "max_output_tokens": 30, "max_tool_calls": 2, "temperature": 0.5, "top_p": 0.9, "top_logprobs": 2,
        "previous_response_id": None, "conversation": None, "prompt": None, "user": "u",
    },
    "/v1/messages": {
        "model": MODEL, "max_tokens": 30, "system": [{"type": "text", "text": "s"}], "stream": False,
        "messages": [
            {"role": "user", "content": [{"type": "text", "text": "hi"}]},
            {"role": "assistant", "content": [
                {"type": "thinking", "thinking": "t", "signature": ""},
                {"type": "tool_use", "id": "c1", "name": "get_weather", "input": {"city": "Paris"}},
            ]},
            {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "c1", "content": "18 C"}]},
        ],
        "tools": [{"name": "get_weather", "description": "d", "input_schema": FUNCTION["parameters"]}],
        "tool_choice": {"type": "auto", "disable_parallel_tool_use": True}, "stop_sequences": ["zzz"],
        "thinking": {"type": "enabled", "budget_tokens": 1024}, "temperature": 0.5, "top_p": 0.9, "top_k": 5,
        "output_config": {"effort": "low"},
    },
    "/v1/messages/count_tokens": {"model": MODEL, "messages": [{"role": "user", "content": "hi"}], "system": "s"},
    "/api/chat": {
        "model": MODEL, "stream": False, "format": "", "keep_alive": "5m", "think": "low", "logprobs": True,
        "top_logprobs": 2, "options": {**SAMPLING, "num_predict": 30, "num_ctx": 4096, "top_k": 5, "min_p": 0.1,
                                       "repeat_penalty": 1.1, "repeat_last_n": 64}, "tools": [WEATHER_TOOL],
        "messages": [
            {"role": "user", "content": "hi", "images": []},
            {"role": "assistant", "content": "", "thinking": "t", "tool_calls": [
                {"function": {"name": "get_weather", "arguments": {"city": "Paris"}}}]},
            {"role": "tool", "content": "18 C", "tool_name": "get_weather"},
        ],
    },
    "/api/generate": {
        "model": MODEL, "prompt": "hi", "suffix": "", "system": "s", "template": "", "raw": False, "stream": False,
        "context": [1, 2, 3], "images": [], "format": SCHEMA, "think": True, "keep_alive": 60,
        "options": {"num_predict": 10, "stop": "zzz"},
    },
    "/api/show": {"model": MODEL, "name": MODEL, "verbose": True},
    "/api/pull": {"model": "absent", "stream": False, "insecure": True},
    "/api/copy": {"source": MODEL, "destination": "copied"},
    "/api/create": {"model": "made", "from": MODEL, "system": "s", "parameters": {"temperature": 1}, "stream": False},
    "/api/delete": {"model": "made"},
    "/api/embed": {"model": MODEL, "input": ["x"]},
}  # fmt: skip


def nested(depth: int) -> Any:
    value: Any = 1
    for level in range(depth):
        value = [value] if level % 2 else {"type": "object", "properties": value}
    return value


ODD = st.one_of(
    st.sampled_from(
        [
            None, True, False, 0, -1, 1, 2**31, 2**63, -(2**63), 2**64, 10**300, 1e308, -1e308, 5e-324, 1e400,
            float("nan"), float("inf"), float("-inf"), "", "\x00", "\ud800", "\udfff x", "<|start|>assistant<|end|>",
            "auto", "none", "required", "json", "x" * 3000, "a b\n", "../../etc/passwd", "/etc", [], {}, [[]], [None],
            [{}], {"": {}}, {"type": None}, {"type": "function"}, {"type": "text"}, {"type": "json_schema"},
            {"$ref": "#"}, {"type": "object", "properties": []}, {"type": ["object", 3]}, {"pattern": "(((((("},
            {"type": "json_schema", "json_schema": {"name": "x", "schema": {"$ref": "#/$defs/absent"}}},
            nested(20), nested(60), nested(150),
        ]
    ),
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
        max_leaves=6,
    ),
)  # fmt: skip


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    if path:
        yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield from places(inner, (*path, key))


@st.composite
def mutated(draw: st.DrawFn, base: dict[str, Any]) -> Any:
    """`base` with up to three of its values replaced, removed or doubled, at any depth."""
    body = copy.deepcopy(base)
    for _ in range(draw(st.integers(1, 3))):
        path = draw(st.sampled_from(sorted(places(body), key=str)))
        target = body
        for key in path[:-1]:
            target = target[key]
        action = draw(st.sampled_from(["replace", "replace", "replace", "remove", "wrap", "stream"]))
        if action == "replace":
            target[path[-1]] = copy.deepcopy(draw(ODD))
        elif action == "wrap":
            target[path[-1]] = [target[path[-1]]]
        elif action == "stream":
            body["stream"] = True
        else:
            del target[path[-1]]
        if not body:
            break
    return body


@dataclass(eq=False)
class Rig(logging.Handler):
    """The application in this process, and every error that it logs."""

    client: httpx.AsyncClient
    runner: asyncio.Runner
    errors: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__(logging.ERROR)

    def emit(self, record: logging.LogRecord) -> None:
        self.errors.append(self.format(record))

    def send(self, method: str, path: str, content: bytes) -> httpx.Response:
        return self.runner.run(self.client.request(method, path, content=content))


@pytest.fixture(scope="module")
def rig(registry: Registry) -> Iterator[Rig]:
    def absent(name: str, **options: Any) -> None:
        raise ModelNotFoundError(f"no model {name!r} on the hub")

    patch = pytest.MonkeyPatch()
    patch.setattr(pulling, "pull", absent)
    with asyncio.Runner() as runner:
        stack = AsyncExitStack()
        client = runner.run(stack.enter_async_context(client_of(scripted_app(registry, context=700))))
        found = Rig(client, runner)
        logging.getLogger("mlx_gptoss.server").addHandler(found)
        yield found
        logging.getLogger("mlx_gptoss.server").removeHandler(found)
        runner.run(stack.aclose())
    patch.undo()


def check(rig: Rig, path: str, response: httpx.Response) -> None:
    errors, rig.errors = rig.errors, []
    assert not errors
    assert response.status_code < 500, response.text
    if response.status_code >= 400:
        error = response.json()["error"]
        assert isinstance(error, str if api_of(path) == "ollama" else dict)
        message = error if isinstance(error, str) else error["message"]
        assert message
        assert "\n" not in message
    elif "json" in response.headers.get("content-type", "") and "ndjson" not in response.headers["content-type"]:
        response.json()


@pytest.mark.parametrize("path", BODIES)
def test_the_body_itself_is_accepted(rig: Rig, path: str) -> None:
    method = "DELETE" if path == "/api/delete" else "POST"
    response = rig.send(method, path, json.dumps(BODIES[path]).encode())
    refused = {"/api/pull": 404, "/api/embed": 400, "/api/delete": 200}
    if path != "/api/delete":
        assert response.status_code == refused.get(path, 200), response.text


@pytest.mark.parametrize("path", BODIES)
def test_mutated_bodies(rig: Rig, path: str) -> None:
    method = "DELETE" if path == "/api/delete" else "POST"

    @settings(
        max_examples=40 if len(BODIES[path]) > 5 else 20, deadline=None, derandomize=True, database=None,
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(mutated(BODIES[path]))
    def run(body: Any) -> None:
        check(rig, path, rig.send(method, path, json.dumps(body).encode()))

    run()


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/api/chat", "/v1/messages", "/v1/responses"])
@pytest.mark.parametrize(
    "content",
    [
        b"", b"null", b"[]", b'"x"', b"1", b"{", b'{"model": "x"', b"\xff\xfe", b'{"model": "\xff"}',
        b'{"model": "\xed\xa0\x80"}', b"[" * 100_000, b'{"a":' * 100_000, b'{"seed": ' + b"9" * 6000 + b"}",
        b'{"temperature": NaN}', b'{"temperature": 1e999}', b'{"a": Infinity}', b"\xef\xbb\xbf{}",
        '{"model": "\u0000"}'.encode("utf-16"), b'{"model": 1, "model": 2}', b"\x00" * 100,
    ],
    ids=range(20),
)  # fmt: skip
def test_what_is_not_json(rig: Rig, path: str, content: bytes) -> None:
    response = rig.send("POST", path, content)
    assert response.status_code == 400
    check(rig, path, response)


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/v1/models/..%2f..%2fetc"), ("GET", "/v1/models/%00"), ("GET", "/v1/models/a%20b"),
        ("GET", "/v1/models/" + "x" * 5000), ("GET", "/v1/responses/%ff"),
        ("GET", "/v1/responses/x/input_items?limit=x"),
        ("GET", "/v1/responses/x/input_items?limit=99999999999999999999"), ("DELETE", "/v1/responses/x"),
        ("POST", "/v1/responses/x/cancel"), ("PUT", "/api/chat"), ("GET", "/api/chat"),
        ("DELETE", "/api/delete"), ("POST", "/api/tags"),
    ],
)  # fmt: skip
def test_odd_paths(rig: Rig, method: str, path: str) -> None:
    response = rig.send(method, path, b"")
    assert 400 <= response.status_code < 500
    check(rig, path, response)


def test_half_a_surrogate_pair_becomes_a_replacement_character(rig: Rig) -> None:
    body = b'{"model": "someone/scripted", "input": "hi \\ud800 there", "metadata": {"k\\udc00": "v"}}'
    response = rig.send("POST", "/v1/responses", body)
    assert response.status_code == 200
    assert response.json()["metadata"] == {"k\ufffd": "v"}
