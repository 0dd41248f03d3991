"""What may come next in a turn: JSON answers, strict arguments, forced tools and a bound on reasoning, in one pass.

Reasoning stays free. From the first header on, a constrained turn opens its messages only in ways that the parser
reads back exactly; the grammar of the answer begins after `final<|message|>`, that of a call's arguments after theirs,
and the turn can end only where its JSON is complete.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any, Final

import numpy as np

from mlx_gptoss.errors import InternalError, InvalidRequestError, SchemaError
from mlx_gptoss.harmony.grammar import MASK_WORDS, Grammar, GrammarState, Mask, compile_schema
from mlx_gptoss.harmony.header_choice import Header, HeaderSet, header_set, message_opening, shared_start
from mlx_gptoss.harmony.parser import HarmonyParser, State
from mlx_gptoss.harmony.render import rendered_tools
from mlx_gptoss.harmony.special import CALL, END, RETURN, STOP_IDS, TEXT_TOKENS
from mlx_gptoss.harmony.vocabulary import Vocabulary
from mlx_gptoss.messages import Tool
from mlx_gptoss.request import ChatRequest

_ANY_OBJECT: Final[Mapping[str, Any]] = {"type": "object"}
_NO_ARGUMENTS: Final[Mapping[str, Any]] = {"type": "object", "properties": {}, "additionalProperties": False}


class HarmonyConstraint:
    """The engine's `TokenConstraint` for one Harmony turn, or for a raw continuation (`headers` None)."""

    def __init__(
        self,
        vocabulary: Vocabulary,
        *,
        tool_names: frozenset[str] = frozenset(),
        headers: HeaderSet | None = None,
        answer: Grammar | None = None,
        arguments: Mapping[str, Grammar] | None = None,
        structured: bool = True,
        think_once: bool = False,
        reasoning_budget: int | None = None,
    ) -> None:
        """`structured` false leaves everything free until `reasoning_budget` analysis tokens are spent; `think_once`
        allows one analysis message at most."""
        self._opening = message_opening(vocabulary)
        self._parser = HarmonyParser(vocabulary, tool_names)
        self._headers = headers
        self._answer = answer
        self._arguments = dict(arguments or {})
        self._structured = structured
        self._think_once = think_once
        self._budget = reasoning_budget
        self._grammar: GrammarState | None = None
        self._choices: tuple[Header, ...] = ()
        self._chosen = 0
        self._ended = False
        if headers is None:
            self._grammar = answer.start() if answer is not None else None
        else:
            self._open_header(())

    def mask(self) -> Mask | None:
        """Which tokens may come next (uint32 [6284], not to be written to); None when all may."""
        if self._ended:
            return None
        if self._headers is None:
            return None if self._grammar is None else self._grammar.mask(RETURN)
        if self._must_close():
            return _only(END)
        if not self._structured:
            return None
        if self._parser.state is not State.CONTENT:
            return _only(*{choice[self._chosen] for choice in self._choices})
        kind = self._parser.kind
        end_id = {"text": RETURN, "call": CALL}.get(kind or "", END)
        return _text_and(end_id) if self._grammar is None else self._grammar.mask(end_id)

    def force(self) -> tuple[int, ...]:
        """Tokens that leave no choice: the part of a header that all allowed ones share, the end of reasoning."""
        if self._ended or self._headers is None:
            return ()
        if self._must_close():
            return (END, *self._opening, *shared_start(self._headers.allowed(reasoning=False)))
        if not self._structured or self._parser.state is State.CONTENT:
            return ()
        return shared_start([choice[self._chosen :] for choice in self._choices])

    def advance(self, token_id: int) -> None:
        """Take a generated or forced token. Raises InternalError for one that the mask had forbidden."""
        if self._ended:
            return
        if self._headers is None:
            self._advance_raw(token_id)
            return
        closing = self._must_close()
        state = self._parser.state
        self._parser.feed(token_id)
        self._structured = self._structured or closing
        if token_id in STOP_IDS:
            self._ended = True
        elif not self._structured:
            return
        elif state is State.CONTENT:
            self._advance_content(token_id)
        else:
            self._advance_header(token_id)

    def _must_close(self) -> bool:
        if self._budget is None or self._headers is None:
            return False
        parser = self._parser
        return parser.in_reasoning and parser.reasoning_tokens >= self._budget and not parser.mid_character

    def _advance_raw(self, token_id: int) -> None:
        if token_id in STOP_IDS:
            self._ended = True
        elif self._grammar is not None:
            self._grammar.advance(token_id)

    def _advance_content(self, token_id: int) -> None:
        if self._parser.state is not State.CONTENT:
            self._grammar = None
            self._open_header(self._opening)
        elif self._grammar is not None:
            self._grammar.advance(token_id)

    def _advance_header(self, token_id: int) -> None:
        self._choices = tuple(choice for choice in self._choices if choice[self._chosen] == token_id)
        self._chosen += 1
        if not self._choices:
            raise InternalError("a token outside the constraint was generated", got=str(token_id))
        if self._parser.state is State.CONTENT:
            grammar = self._answer if self._parser.in_final else self._arguments.get(self._parser.tool_name or "")
            self._grammar = None if grammar is None else grammar.start()

    def _open_header(self, opening: Header) -> None:
        if self._headers is None:
            return
        thought = any(message.kind == "reasoning" for message in self._parser.messages)
        spent = self._budget is not None and self._parser.reasoning_tokens >= self._budget
        may_reason = not spent and not (thought and self._think_once)
        self._choices = tuple(opening + header for header in self._headers.allowed(reasoning=may_reason))
        self._chosen = 0
        if spent:
            self._structured = True


def constraint_for(request: ChatRequest, vocabulary: Vocabulary) -> HarmonyConstraint | None:
    """What `request` demands of its tokens: a response format, strict or forced tools, no tools, a reasoning budget.

    None when it demands nothing. Raises SchemaError for a schema that cannot be enforced, InvalidRequestError for a
    tool choice that names no tool. One instance serves one generation, on any thread.
    """
    answer = _answer_grammar(request, vocabulary)
    if request.raw_prompt is not None or (request.prompt_ids is not None and not _opens_turn(request, vocabulary)):
        return None if answer is None else HarmonyConstraint(vocabulary, answer=answer)
    mode = request.tool_choice.mode
    tools = _callable_tools(request)
    forced = mode in ("required", "named")
    arguments = {tool.name: _arguments_grammar(tool, vocabulary) for tool in tools if tool.strict or forced}
    structured = answer is not None or bool(arguments) or forced or (mode == "none" and bool(request.tools))
    if not structured and request.reasoning_budget is None:
        return None
    builtin_tools = () if mode in ("none", "named") else request.builtin_tools
    return HarmonyConstraint(
        vocabulary,
        tool_names=frozenset(tool.name for tool in tools),
        headers=header_set(
            vocabulary,
            functions=[tool.name for tool in tools],
            builtin_tools=builtin_tools,
            preamble=bool(tools) and not forced,
            final=not forced,
            json_final=answer is not None and not forced,
        ),
        answer=answer,
        arguments=arguments,
        structured=structured,
        think_once=forced,
        reasoning_budget=request.reasoning_budget,
    )


def _answer_grammar(request: ChatRequest, vocabulary: Vocabulary) -> Grammar | None:
    wanted = request.response_format
    if wanted.kind == "text":
        return None
    schema = _ANY_OBJECT if wanted.kind == "json_object" or wanted.schema is None else wanted.schema
    return compile_schema(schema, vocabulary, param="response_format", where="the response format")


def _callable_tools(request: ChatRequest) -> tuple[Tool, ...]:
    choice = request.tool_choice
    tools = rendered_tools(request)
    if choice.mode == "named":
        tools = tuple(tool for tool in tools if tool.name == choice.name)
        if not tools:
            raise InvalidRequestError("the tool choice names no tool", param="tool_choice", got=repr(choice.name))
    if choice.mode == "required" and not tools and not request.builtin_tools:
        raise InvalidRequestError("a tool call is required but there are no tools", param="tool_choice")
    return tools


def _arguments_grammar(tool: Tool, vocabulary: Vocabulary) -> Grammar:
    schema = _NO_ARGUMENTS if tool.parameters is None else tool.parameters
    try:
        return compile_schema(schema, vocabulary, param="tools", where=f"parameters of {tool.name}")
    except SchemaError:
        if tool.strict:
            raise
        # Nobody asked for this schema to be enforced, only for the call: any object will do.
        return compile_schema(_ANY_OBJECT, vocabulary, param="tools", where=f"parameters of {tool.name}")


def _opens_turn(request: ChatRequest, vocabulary: Vocabulary) -> bool:
    opening = message_opening(vocabulary)
    return request.prompt_ids is not None and request.prompt_ids[-len(opening) :] == opening


def _only(*token_ids: int) -> Mask:
    mask = np.zeros(MASK_WORDS, dtype=np.uint32)
    for token_id in token_ids:
        mask[token_id // 32] |= np.uint32(1 << token_id % 32)
    return mask


@functools.cache
def _text_and(end_id: int) -> Mask:
    """All text tokens and one special token; shared and read-only."""
    mask = _only(end_id)
    full, rest = divmod(TEXT_TOKENS, 32)
    mask[:full] = 0xFFFFFFFF
    mask[full] |= np.uint32((1 << rest) - 1)
    mask.setflags(write=False)
    return mask
