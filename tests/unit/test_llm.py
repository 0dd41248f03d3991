"""The façade over scripted models: events, stops, options, errors, threads and loops."""

from __future__ import annotations

import asyncio
import gc
import itertools
import json
import subprocess
import sys
import threading
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import mlx_gptoss
from mlx_gptoss.errors import (
    ContextOverflowError,
    EngineClosedError,
    InvalidRequestError,
    ModelNotFoundError,
    QueueFullError,
)
from mlx_gptoss.events import (
    Done,
    PreambleDelta,
    ReasoningDelta,
    TextDelta,
    ToolCallDelta,
    ToolCallEnd,
    ToolCallStart,
)
from mlx_gptoss.llm import GptOss, as_request
from mlx_gptoss.messages import SystemMessage, Tool, ToolCall, UserMessage
from mlx_gptoss.request import ChatRequest, ResponseFormat, SamplingParams
from mlx_gptoss.stop_strings import StopStrings
from tests.tiny import tiny_config, write_model_folder
from tests.unit.scripted_llm import harmony_ids, scripted

PLAIN = (
    "<|channel|>analysis<|message|>They ask for 17 + 25.<|end|>"
    "<|start|>assistant<|channel|>final<|message|>It is 42.<|return|>"
)
CALL = (
    "<|channel|>analysis<|message|>Look it up.<|end|><|start|>assistant<|channel|>commentary<|message|>One moment."
    "<|end|><|start|>assistant<|channel|>commentary to=functions.weather <|constrain|>json<|message|>"
    '{"city": "Oslo"}<|call|>'
)
WEATHER = Tool("weather", parameters={"type": "object", "properties": {"city": {"type": "string"}}})


def test_generate_gives_text_and_reasoning_apart() -> None:
    with scripted(PLAIN) as (llm, _):
        completion = llm.generate("What is 17 + 25?")
    assert completion.text == "It is 42."
    assert completion.reasoning == "They ask for 17 + 25."
    assert completion.finish_reason == "stop"
    assert completion.token_ids == tuple(harmony_ids(PLAIN))
    assert completion.usage.completion_tokens == len(completion.token_ids)
    assert completion.usage.reasoning_tokens == len(harmony_ids("They ask for 17 + 25."))
    assert completion.usage.prompt_tokens == llm.count_tokens("What is 17 + 25?")
    assert completion.timings.total_s > 0
    assert completion.message.token_ids == completion.token_ids


def test_stream_gives_typed_events_and_one_done() -> None:
    with scripted(CALL) as (llm, _), llm.stream("How is Oslo?", tools=[WEATHER]) as stream:
        events = list(stream)
    kinds = [type(event) for event in events]
    assert kinds.count(Done) == 1
    assert kinds[-1] is Done
    assert "".join(event.text for event in events if isinstance(event, ReasoningDelta)) == "Look it up."
    assert "".join(event.text for event in events if isinstance(event, PreambleDelta)) == "One moment."
    start = next(event for event in events if isinstance(event, ToolCallStart))
    end = next(event for event in events if isinstance(event, ToolCallEnd))
    assert (start.name, start.index, end.call_id) == ("weather", 0, start.call_id)
    assert "".join(event.arguments for event in events if isinstance(event, ToolCallDelta)) == end.arguments
    assert json.loads(end.arguments) == {"city": "Oslo"}
    assert events[-1].finish_reason == "tool_calls"  # type: ignore[union-attr]
    with pytest.raises(StopIteration):
        next(stream)


@pytest.mark.parametrize(
    ("stop", "text", "reason"),
    [
        (["42"], "It is ", "stop"),
        (["s 4"], "It i", "stop"),
        ([" is", "It"], "", "stop"),
        (["nothing"], "It is 42.", "stop"),
        (["42. And"], "It is 42.", "stop"),
        (["17"], "It is 42.", "stop"),
        ("is", "It ", "stop"),
    ],
)
def test_stop_strings_end_the_answer_and_are_not_in_it(stop: Any, text: str, reason: str) -> None:
    with scripted(PLAIN) as (llm, _):
        completion = llm.generate("What is 17 + 25?", stop=stop)
        assert (completion.text, completion.finish_reason) == (text, reason)
        assert completion.reasoning == "They ask for 17 + 25."
        assert completion.usage.completion_tokens == len(completion.token_ids)


def test_a_stop_string_ends_the_generation_too() -> None:
    endless = "<|channel|>final<|message|>" + "word and " * 20_000
    with scripted(endless) as (llm, model):
        completion = llm.generate("Go on", stop=["and"], repetition_stop=False)
        assert completion.text == "word "
        time.sleep(0.2)
        before = model.decoded
        time.sleep(0.1)
        assert model.decoded == before


@given(
    text=st.text("abc", max_size=20),
    stops=st.lists(st.text("abc", min_size=1, max_size=4), min_size=1, max_size=3),
    cuts=st.lists(st.integers(1, 20), max_size=5),
)
def test_stop_strings_in_any_pieces(text: str, stops: list[str], cuts: list[int]) -> None:
    watch = StopStrings(stops)
    places = sorted({0, len(text), *(cut for cut in cuts if cut < len(text))})
    shown = ""
    for start, end in itertools.pairwise(places):
        for delta in watch.feed(TextDelta(text[start:end])):
            shown += delta.text
        # What is shown never contains a stop string, not even its start when it could still come.
        assert not any(stop in shown for stop in stops)
    shown += "".join(delta.text for delta in watch.flush())
    hits = [end for end in places if any(stop in text[:end] for stop in stops)]
    if hits:
        first = min(text[: hits[0]].find(stop) for stop in stops if stop in text[: hits[0]])
        assert watch.found
        assert shown == text[:first]
    else:
        assert not watch.found
        assert shown == text


def test_length_is_reported_and_usage_exact() -> None:
    with scripted(PLAIN) as (llm, _):
        completion = llm.generate("Hello", max_tokens=6)
    assert completion.finish_reason == "length"
    assert completion.usage.completion_tokens == 6
    assert completion.text == ""


def test_a_reasoning_budget_closes_the_analysis() -> None:
    final = "<|end|><|start|>assistant<|channel|>final<|message|>Done.<|return|>"
    long = "<|channel|>analysis<|message|>" + "on and on " * 200 + final
    with scripted(long) as (llm, _):
        completion = llm.generate("Think", reasoning_budget=10)
        assert completion.usage.reasoning_tokens == 10
        assert completion.text == "Done."
        assert completion.finish_reason == "stop"


def test_a_response_format_constrains_the_answer_alone() -> None:
    schema = {
        "type": "object",
        "properties": {"n": {"type": "integer"}},
        "required": ["n"],
        "additionalProperties": False,
    }
    wild = "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>final<|message|>not json<|return|>"
    with scripted(wild) as (llm, _):
        completion = llm.generate(
            "Answer", response_format=ResponseFormat("json_schema", schema), max_tokens=60, temperature=0
        )
    assert completion.reasoning == "Hm."
    assert completion.finish_reason in ("stop", "length")
    assert completion.text.startswith("{")


def test_logprobs_belong_to_their_text() -> None:
    with scripted(PLAIN) as (llm, _):
        completion = llm.generate("Hi", logprobs=2)
    assert b"".join(one.bytes for one in completion.logprobs).decode() == "It is 42."
    for one in completion.logprobs:
        assert one.logprob == pytest.approx(0.0, abs=1e-3)
        assert len(one.top) == 2
        assert one.top[0][0] == one.token_id


def test_split_characters_wait() -> None:
    with scripted("<|channel|>final<|message|>né 🧮🧮 ok<|return|>") as (llm, _):
        texts = [event.text for event in llm.stream("Hi") if isinstance(event, TextDelta)]
    assert "".join(texts) == "né 🧮🧮 ok"
    assert not any("\ufffd" in text for text in texts)


def test_raw_prompts_give_plain_text() -> None:
    with scripted("and so it was<|return|>") as (llm, _):
        completion = llm.generate(ChatRequest(raw_prompt="Once upon a time"))
    assert completion.text == "and so it was"
    assert completion.finish_reason == "stop"
    assert completion.reasoning == ""


def test_token_ids_that_open_a_turn_are_parsed_as_one() -> None:
    with scripted(PLAIN) as (llm, _):
        ids = tuple(harmony_ids("<|start|>user<|message|>Hi<|end|><|start|>assistant"))
        assert llm.generate(ChatRequest(prompt_ids=ids)).reasoning == "They ask for 17 + 25."
        assert llm.generate(ChatRequest(prompt_ids=ids[:-2])).reasoning == ""


@pytest.mark.parametrize(
    ("options", "param"),
    [
        ({"temprature": 1}, "temprature"),
        ({"temperature": -1}, "temperature"),
        ({"stop": [""]}, "stop"),
        ({"reasoning_budget": -1}, "reasoning_budget"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"logprobs": 21}, "logprobs"),
    ],
)
def test_bad_options_are_named_at_once(options: dict[str, Any], param: str) -> None:
    with scripted(PLAIN) as (llm, _), pytest.raises(InvalidRequestError) as caught:
        llm.stream("Hi", **options)
    assert caught.value.param == param


@pytest.mark.parametrize("prompt", ["", " \n", ChatRequest(), ChatRequest(prompt_ids=()), ChatRequest(raw_prompt="")])
def test_an_empty_prompt_is_refused(prompt: Any) -> None:
    with scripted(PLAIN) as (llm, _), pytest.raises(InvalidRequestError):
        llm.generate(prompt)


def test_a_prompt_beyond_the_context_is_refused() -> None:
    with scripted(PLAIN, context=128) as (llm, _), pytest.raises(ContextOverflowError):
        llm.generate("word " * 200)


def test_options_go_where_they_belong() -> None:
    request = as_request("Hi", {"system": "Be brief.", "temperature": 0.5, "effort": "high", "stop": "x", "seed": 1})
    assert request.messages == (SystemMessage("Be brief."), UserMessage("Hi"))
    assert request.sampling == SamplingParams(temperature=0.5, seed=1)
    assert (request.effort, request.stop) == ("high", ("x",))
    changed = as_request(request, {"top_p": 0.5})
    assert changed.sampling == SamplingParams(temperature=0.5, seed=1, top_p=0.5)


def test_errors_in_midstream_end_the_stream_and_raise_from_generate() -> None:
    def broken(prompt: list[int], generated: list[int]) -> int:
        if len(generated) == 5:
            raise RuntimeError("the device fell over")
        return harmony_ids(PLAIN)[len(generated)]

    from mlx_gptoss.engine import Engine
    from tests.unit.fake_model import ScriptedModel

    with GptOss(Engine(lambda: ScriptedModel(broken))) as llm:
        events = list(llm.stream("Hi"))
        assert isinstance(events[-1], Done)
        assert events[-1].finish_reason == "error"
        assert "device fell over" in (events[-1].error or "")
        with pytest.raises(mlx_gptoss.InternalError, match="device fell over"):
            llm.generate("Hi")


def test_cancelling_gives_what_there_is() -> None:
    endless = "<|channel|>final<|message|>" + "word " * 50_000
    with scripted(endless) as (llm, _):
        with llm.stream("Go", repetition_stop=False) as stream:
            for event in stream:
                if isinstance(event, TextDelta):
                    stream.cancel()
                    break
            completion = stream.result()
        assert completion.finish_reason == "cancelled"
        assert completion.text.startswith("word")


def test_leaving_or_dropping_a_stream_stops_its_generation() -> None:
    endless = "<|channel|>final<|message|>" + "word " * 50_000
    with scripted(endless, max_batch=1, max_queue=0) as (llm, _):
        with llm.stream("Go", repetition_stop=False) as stream:
            next(stream)
        _retry(lambda: llm.generate("Go", max_tokens=1))
        stream = llm.stream("Go", repetition_stop=False)
        next(stream)
        del stream
        gc.collect()
        _retry(lambda: llm.generate("Go", max_tokens=1))


def _retry(action: Any) -> None:
    deadline = time.time() + 5
    while True:
        try:
            action()
        except QueueFullError:
            assert time.time() < deadline
            time.sleep(0.01)
        else:
            return


def test_timeouts_end_with_their_reason() -> None:
    endless = "<|channel|>final<|message|>" + "word " * 50_000
    with scripted(endless) as (llm, _):
        completion = llm.generate("Go", timeout_s=0.2, repetition_stop=False)
    assert completion.finish_reason == "timeout"
    assert completion.text.startswith("word")


def test_several_threads_at_once() -> None:
    with scripted(PLAIN, max_batch=3) as (llm, _):
        answers: list[str] = []

        def ask(n: int) -> None:
            answers.append(llm.generate(f"Question {n}").text)

        threads = [threading.Thread(target=ask, args=(n,)) for n in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert answers == ["It is 42."] * 8


def test_async_twins() -> None:
    async def main(llm: GptOss) -> None:
        completions = await asyncio.gather(*(llm.agenerate(f"Question {n}") for n in range(4)))
        assert [completion.text for completion in completions] == ["It is 42."] * 4
        kinds = [type(event) async for event in llm.astream("Hi")]
        assert kinds[-1] is Done
        stream = llm.astream("Hi")
        assert isinstance(await anext(stream), ReasoningDelta)
        await stream.aclose()  # type: ignore[attr-defined]

    with scripted(PLAIN) as (llm, _):
        asyncio.run(main(llm))


def test_cancelling_a_task_ends_its_generation() -> None:
    endless = "<|channel|>final<|message|>" + "word " * 50_000

    async def main(llm: GptOss) -> None:
        task = asyncio.create_task(llm.agenerate("Go", repetition_stop=False))
        await asyncio.sleep(0.2)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        for _ in range(200):
            if llm.engine_stats().active == 0:
                return
            await asyncio.sleep(0.01)
        raise AssertionError("still running")

    with scripted(endless) as (llm, _):
        asyncio.run(main(llm))


def test_after_close_requests_are_refused() -> None:
    with scripted(PLAIN) as (llm, _):
        pass
    assert llm.closed
    with pytest.raises(EngineClosedError):
        llm.generate("Hi")
    llm.close()


def test_a_dropped_model_frees_its_thread() -> None:
    with scripted(PLAIN) as (llm, _):
        engine = llm.engine
        del llm
    gc.collect()
    assert engine.closed


def test_loading_what_is_not_there(tmp_path: Any) -> None:
    with pytest.raises(ModelNotFoundError):
        GptOss.load(tmp_path / "nothing")
    with pytest.raises(InvalidRequestError):
        GptOss.load(tmp_path, bogus=1)


def test_a_model_folder_loads_and_answers(tmp_path: Any) -> None:
    """A random model with the whole vocabulary: noise comes out, but through every layer, twice the same."""
    config = tiny_config(vocab_size=201_088, hidden_size=32, intermediate_size=32, num_layers=2, head_dim=16)
    folder = write_model_folder(tmp_path / "noise", config)
    with GptOss.load(folder, dtype="float32", context=400) as llm:
        assert llm.context == 400
        assert llm.name == "noise"
        first = llm.generate("Hello", max_tokens=20, seed=1)
        assert first.usage.completion_tokens == len(first.token_ids) > 0
        assert max(first.token_ids) < 200_014
        again = llm.generate("Hello", max_tokens=20, seed=1)
        assert again.token_ids == first.token_ids
        assert again.usage.cached_tokens > 0
        text = llm.generate("JSON", max_tokens=40, seed=1, response_format=ResponseFormat("json_object")).text
        assert text == "" or text.lstrip().startswith("{")


def test_importing_the_package_loads_nothing() -> None:
    code = "import sys, mlx_gptoss; print(sorted({'mlx', 'mlx.core', 'numpy', 'openai_harmony'} & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_public_names_resolve() -> None:
    for name in mlx_gptoss.__all__:
        assert getattr(mlx_gptoss, name) is not None
    with pytest.raises(AttributeError):
        mlx_gptoss.nonsense  # noqa: B018  # the access is the test
    assert mlx_gptoss.ToolCall is ToolCall
