"""A request as Harmony tokens."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from typing import Final

from mlx_gptoss.errors import InvalidRequestError
from mlx_gptoss.harmony.bounds import check_schema_bounds
from mlx_gptoss.harmony.developer import developer_text
from mlx_gptoss.harmony.history import HistoryWriter
from mlx_gptoss.harmony.special import CALL, END, START, VOCABULARY_SIZE
from mlx_gptoss.harmony.system import system_tokens
from mlx_gptoss.harmony.vocabulary import Vocabulary, load_vocabulary
from mlx_gptoss.messages import DeveloperMessage, Message, SystemMessage, Tool
from mlx_gptoss.request import ChatRequest

MAX_TOOLS: Final = 1_024
_TOOL_NAME: Final = re.compile(r"""[^\s<>|\x00-\x1f\x7f(){};:,="'`]{1,256}""")


@dataclass(frozen=True, slots=True)
class Prompt:
    """What the model reads.

    `boundaries` are ascending positions in `token_ids` where a message ends: after the system and developer prefix,
    after each later message, and hence before the `<|start|>assistant` that opens the answer. They are the positions
    that another prompt is likely to share, so worth a cache snapshot.
    """

    token_ids: tuple[int, ...]
    boundaries: tuple[int, ...]


def render(request: ChatRequest, vocabulary: Vocabulary | None = None) -> Prompt:
    """Render `request`; its conversation ends with `<|start|>assistant`, ready for the model to go on.

    A raw prompt is tokenised as it is (no special token is ever recognised); token ids are taken as they are.
    Raises InvalidRequestError for a request that cannot be rendered and SchemaError for a schema beyond the bounds.
    """
    given = [request.raw_prompt is not None, request.prompt_ids is not None, bool(request.messages)]
    if sum(given) != 1:
        raise InvalidRequestError(
            "a request needs a conversation, a raw prompt or token ids",
            expected="exactly one",
            got=f"{sum(given)} of them",
        )
    vocabulary = load_vocabulary() if vocabulary is None else vocabulary
    if request.raw_prompt is not None:
        token_ids = tuple(vocabulary.encode(request.raw_prompt))
        if not token_ids:
            raise InvalidRequestError("the prompt is empty", param="prompt")
        return Prompt(token_ids, ())
    if request.prompt_ids is not None:
        return _from_ids(request.prompt_ids)
    return _conversation(request, vocabulary)


def rendered_tools(request: ChatRequest) -> tuple[Tool, ...]:
    """The functions that the model is told of: none under tool choice "none"."""
    return () if request.tool_choice.mode == "none" else request.tools


def check_tools(tools: Sequence[Tool]) -> None:
    """Raise InvalidRequestError for a tool name that cannot stand in a message header, or that is there twice."""
    if len(tools) > MAX_TOOLS:
        raise InvalidRequestError("too many tools", param="tools", expected=f"at most {MAX_TOOLS}", got=str(len(tools)))
    seen: set[str] = set()
    for tool in tools:
        if not _TOOL_NAME.fullmatch(tool.name):
            raise InvalidRequestError(
                "a tool's name is not usable",
                param="tools",
                expected="1 to 256 characters without spaces, quotes or brackets",
                got=repr(tool.name[:80]),
            )
        if tool.name in seen:
            raise InvalidRequestError("two tools have the same name", param="tools", got=repr(tool.name))
        seen.add(tool.name)
        if tool.parameters is not None:
            check_schema_bounds(tool.parameters, param="tools", where=f"parameters of {tool.name}")


def _from_ids(prompt_ids: tuple[int, ...]) -> Prompt:
    if not prompt_ids:
        raise InvalidRequestError("the prompt is empty", param="prompt")
    for token_id in prompt_ids:
        if not 0 <= token_id < VOCABULARY_SIZE:
            raise InvalidRequestError(
                "a token id is outside the vocabulary",
                param="prompt",
                expected=f"0 to {VOCABULARY_SIZE - 1}",
                got=str(token_id),
            )
    ends = (index + 1 for index, token_id in enumerate(prompt_ids) if token_id in (END, CALL))
    return Prompt(tuple(prompt_ids), tuple(ends))


def _conversation(request: ChatRequest, vocabulary: Vocabulary) -> Prompt:
    tools = rendered_tools(request)
    check_tools(tools)
    builtin_tools = () if request.tool_choice.mode == "none" else request.builtin_tools
    if request.response_format.schema is not None:
        check_schema_bounds(request.response_format.schema, param="response_format", where="the response format")
    leading = _leading_instructions(request.messages)
    token_ids = list(
        system_tokens(vocabulary, request.effort, request.current_date or date.today(), builtin_tools, bool(tools))
    )
    writer = HistoryWriter(vocabulary, {tool.name for tool in request.tools}, request.builtin_tools)
    instructions = "\n\n".join(message.text for message in leading if message.text)
    developer = developer_text(instructions, tools, request.response_format)
    if developer:
        token_ids += writer.message("developer", developer).tokens
    boundaries = [len(token_ids)]
    for piece in writer.assemble(writer.pieces(request.messages[len(leading) :])):
        token_ids += piece.tokens
        boundaries.append(len(token_ids))
    token_ids += [START, *vocabulary.encode_cached("assistant")]
    return Prompt(tuple(token_ids), tuple(boundaries))


def _leading_instructions(messages: Sequence[Message]) -> list[SystemMessage | DeveloperMessage]:
    leading: list[SystemMessage | DeveloperMessage] = []
    for message in messages:
        if not isinstance(message, SystemMessage | DeveloperMessage):
            break
        leading.append(message)
    return leading
