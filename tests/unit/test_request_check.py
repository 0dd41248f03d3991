"""What a caller without a type checker may pass: each wrong type is one clear error that names the option."""

from __future__ import annotations

from datetime import date
from typing import Any

import numpy as np
import pytest

from mlx_gptoss import load_model
from mlx_gptoss.engine.options import EngineOptions
from mlx_gptoss.errors import InvalidRequestError
from mlx_gptoss.llm import GptOss
from mlx_gptoss.messages import AssistantMessage, Tool, ToolCall, UserMessage
from mlx_gptoss.request import ChatRequest, ResponseFormat, SamplingParams, ToolChoice
from tests.unit.scripted_llm import scripted

ANSWER = "<|channel|>final<|message|>Yes.<|return|>"


@pytest.mark.parametrize(
    "prompt",
    [
        3,
        None,
        b"bytes",
        ["hi"],
        [{"role": "user", "content": "hi"}],
        {"role": "user"},
        [UserMessage(3)],  # type: ignore[arg-type]  # here and below: wrong on purpose
        [AssistantMessage(reasoning=None)],  # type: ignore[arg-type]
        [UserMessage("a"), AssistantMessage("b", token_ids=("x",)), UserMessage("c")],  # type: ignore[arg-type]
        [AssistantMessage(tool_calls=("x",))],  # type: ignore[arg-type]
        [AssistantMessage(tool_calls=(ToolCall("id", "name", {}),))],  # type: ignore[arg-type]
        ChatRequest(prompt_ids=("a",)),  # type: ignore[arg-type]
        ChatRequest(prompt_ids=(1.5,)),  # type: ignore[arg-type]
        ChatRequest(raw_prompt=3),  # type: ignore[arg-type]
    ],
)
def test_a_prompt_of_the_wrong_type(prompt: Any) -> None:
    with scripted(ANSWER) as (llm, _):
        for call in (llm.generate, llm.stream, llm.count_tokens):
            with pytest.raises(InvalidRequestError):
                call(prompt)
        if not isinstance(prompt, ChatRequest):
            with pytest.raises(InvalidRequestError):
                llm.chat().send(prompt)


@pytest.mark.parametrize(
    "option",
    [
        {"effort": "max"},
        {"effort": []},
        {"max_tokens": "5"},
        {"max_tokens": 2.5},
        {"max_tokens": True},
        {"temperature": "hot"},
        {"tools": ["x"]},
        {"tools": 3},
        {"tools": [Tool(3)]},  # type: ignore[arg-type]
        {"tools": [Tool("a", description=None)]},  # type: ignore[arg-type]
        {"stop": 3},
        {"stop": [3]},
        {"stop": [""]},
        {"logprobs": "5"},
        {"logprobs": 1.5},
        {"logit_bias": [1]},
        {"logit_bias": {"a": 1}},
        {"logit_bias": {1: "a"}},
        {"response_format": "json"},
        {"response_format": ResponseFormat("xml")},  # type: ignore[arg-type]
        {"response_format": ResponseFormat("json_schema")},
        {"tool_choice": "auto"},
        {"tool_choice": ToolChoice("maybe")},  # type: ignore[arg-type]
        {"timeout_s": "x"},
        {"reasoning_budget": "x"},
        {"reasoning_budget": -1},
        {"current_date": "2020-01-01"},
        {"sampling": {"temperature": 0}},
        {"on_progress": 3},
        {"system": 3},
    ],
)
def test_an_option_of_the_wrong_type(option: dict[str, Any]) -> None:
    with scripted(ANSWER) as (llm, _), pytest.raises(InvalidRequestError) as caught:
        llm.generate("hi", **option)
    assert "\n" not in str(caught.value)


def test_numbers_of_numpy_and_sequences_of_any_kind_are_welcome() -> None:
    with scripted(ANSWER) as (llm, _):
        completion = llm.generate(
            (UserMessage(text) for text in ["hi"]),  # type: ignore[arg-type]  # any iterable
            max_tokens=np.int64(50),
            top_k=np.int32(3),
            stop="never",
            current_date=date(2020, 1, 2),
            logit_bias={np.int64(5): 1},
        )
    assert completion.text == "Yes."


def test_a_chat_takes_messages_alone() -> None:
    with scripted(ANSWER) as (llm, _):
        chat = llm.chat()
        with pytest.raises(InvalidRequestError):
            chat.add("hi")  # type: ignore[arg-type]
        with pytest.raises(InvalidRequestError):
            chat.reset([{"role": "user"}])  # type: ignore[list-item]
        assert chat.messages == ()
        assert chat.send("hi").text == "Yes."


@pytest.mark.parametrize("model", [3, b"demo", ["demo"]])
def test_a_model_is_a_name_or_a_path(model: Any) -> None:
    with pytest.raises(InvalidRequestError, match="name or a folder"):
        GptOss.load(model)
    with pytest.raises(InvalidRequestError, match="path"):
        load_model(model)


@pytest.mark.parametrize("value", ["x", 1.5, True])
def test_bounds_of_the_engine_are_whole_numbers(value: Any) -> None:
    for name in ("context", "max_batch", "max_queue", "prefill_chunk", "snapshot_gap"):
        with pytest.raises(InvalidRequestError, match=name):
            EngineOptions(**{name: value})


def test_sampling_is_checked_where_it_is_made() -> None:
    with pytest.raises(InvalidRequestError, match="logit_bias"):
        SamplingParams(logit_bias=None)  # type: ignore[arg-type]
