"""The demo checkpoint as a folder that mlx-lm's server opens: with a tokenizer and a template that renders as ours."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from mlx_gptoss.demo import unpack_demo
from mlx_gptoss.harmony.render import render
from mlx_gptoss.harmony.special import TEXT_TOKENS
from mlx_gptoss.harmony.vocabulary import load_vocabulary
from mlx_gptoss.messages import UserMessage
from mlx_gptoss.request import ChatRequest, Effort

ROWS = 201_088
_MARK = "QQQQ"


def special_names() -> list[str]:
    """The text forms of all ids from the first special one on."""
    known = {
        199_998: "startoftext", 199_999: "endoftext", 200_002: "return", 200_003: "constrain", 200_005: "channel",
        200_006: "start", 200_007: "end", 200_008: "message", 200_012: "call",
    }  # fmt: skip
    return [f"<|{known.get(index, f'reserved_{index}')}|>" for index in range(TEXT_TOKENS, ROWS)]


def template(effort: Effort) -> str:
    """A chat template whose prompts are, token for token, those of this server for users' and assistants' turns."""
    vocabulary, names = load_vocabulary(), special_names()
    ids = render(ChatRequest(messages=(UserMessage(_MARK),), effort=effort), vocabulary).token_ids
    text = "".join(
        names[index - TEXT_TOKENS] if index >= TEXT_TOKENS else vocabulary.token_bytes(index).decode() for index in ids
    )
    system = text[: text.index("<|start|>user")]
    return (
        json.dumps(system).join(["{{- ", " }}"])
        + "{%- for message in messages %}"
        + "{%- if message['role'] == 'assistant' %}"
        + "{{- '<|start|>assistant<|channel|>final<|message|>' + message['content'] + '<|end|>' }}"
        + "{%- else %}{{- '<|start|>' + message['role'] + '<|message|>' + message['content'] + '<|end|>' }}{%- endif %}"
        + "{%- endfor %}{{- '<|start|>assistant' }}"
    )


def tokenizer() -> Any:
    """The vocabulary as a transformers tokenizer (its word pattern is close to ours, which is enough for timing)."""
    from transformers import PreTrainedTokenizerFast
    from transformers.convert_slow_tokenizer import TikTokenConverter

    vocabulary = load_vocabulary()
    converter = TikTokenConverter(extra_special_tokens=special_names())
    converter.load_tiktoken_bpe = lambda _: {vocabulary.token_bytes(index): index for index in range(TEXT_TOKENS)}
    fast = PreTrainedTokenizerFast(tokenizer_object=converter.converted(), eos_token="<|return|>")
    fast.chat_template = template("medium")
    return fast


def peer_folder(target: Path) -> Path:
    """Write the demo checkpoint and its tokenizer into `target`, once."""
    if not (target / "tokenizer.json").is_file():
        unpack_demo(target)
        tokenizer().save_pretrained(target)
    return target
