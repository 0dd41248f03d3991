"""JSON Schema to a token grammar: llguidance over the packaged vocabulary, with bounds on what a schema may cost."""

from __future__ import annotations

import functools
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from decimal import Decimal
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from llguidance import LLMatcher, LLParserLimits, LLTokenizer, TokenizerWrapper

from mlx_gptoss.errors import InternalError, SchemaError
from mlx_gptoss.harmony.bounds import check_schema_bounds, schema_text
from mlx_gptoss.harmony.special import RETURN, TEXT_TOKENS, VOCABULARY_SIZE
from mlx_gptoss.harmony.vocabulary import Vocabulary

Mask = npt.NDArray[np.uint32]

MASK_WORDS: Final = (VOCABULARY_SIZE + 31) // 32

MAX_PROPERTIES: Final = 2_000
"""Of one object: the cost of optional properties is quadratic (2,000 take half a second)."""

MAX_MULTIPLE: Final = 50_000
"""Least common multiple of every `multipleOf`: each remainder becomes a state."""

MAX_WHITESPACE: Final = 40
"""Longest white space between two JSON tokens: room for indentation, none for endless blanks."""

_OPTIONS: Final = {
    "whitespace_flexible": True,
    "whitespace_pattern": rf"[\x20\x0A\x0D\x09]{{1,{MAX_WHITESPACE}}}",
    "item_separator": ",",
    "key_separator": ":",
    "coerce_one_of": True,
    "lenient": False,
}
_DATA_KEYWORDS: Final = frozenset({"const", "enum", "default", "examples"})
_UNKNOWN_FORMAT: Final = re.compile(r"Unknown format: (.*)")


class Grammar:
    """A compiled schema. `start` gives an independent matcher for one generation; the grammar itself never changes."""

    def __init__(self, matcher: LLMatcher) -> None:
        self._matcher = matcher

    def start(self) -> GrammarState:
        return GrammarState(self._matcher.deep_copy())


class GrammarState:
    """Where one generation is in its grammar."""

    def __init__(self, matcher: LLMatcher) -> None:
        self._matcher = matcher

    def mask(self, end_id: int) -> Mask:
        """Text tokens that may come next, and `end_id` exactly when the JSON is complete: uint32 [6284], a new array.

        Raises SchemaError when the schema turns out too complex to enforce.
        """
        mask = np.zeros(MASK_WORDS, dtype=np.uint32)
        self._matcher.unsafe_compute_mask_ptr(mask.ctypes.data, mask.nbytes)
        if self._matcher.is_error():
            raise SchemaError("the schema became too complex to enforce", got=_first_line(self._matcher.get_error()))
        word, bit = divmod(RETURN, 32)
        complete = bool(int(mask[word]) >> bit & 1)
        if complete and end_id != RETURN:
            mask[word] &= np.uint32(~(1 << bit) & 0xFFFFFFFF)
            mask[end_id // 32] |= np.uint32(1 << end_id % 32)
        return mask

    def advance(self, token_id: int) -> None:
        """Take a text token. Raises InternalError when the mask had forbidden it."""
        if not self._matcher.consume_token(token_id):
            raise InternalError("a token outside the constraint was generated", got=str(token_id))


def compile_schema(schema: Mapping[str, Any], vocabulary: Vocabulary, *, param: str, where: str) -> Grammar:
    """Compile `schema`; recently used ones are kept.

    Raises SchemaError, naming `param` and `where`, for a schema that is malformed, unsatisfiable, beyond the bounds,
    or uses keywords that cannot be enforced (such as `not`, `if`, `uniqueItems`). An unknown format is an annotation
    and is ignored. `oneOf` is enforced as `anyOf`.
    """
    check_schema_bounds(schema, param=param, where=where)
    _check_cost(schema, param, where)
    rest = {key: value for key, value in schema.items() if key != "x-guidance"}
    try:
        return _compile(schema_text(rest), vocabulary)
    except SchemaError as error:
        raise SchemaError(error.what, param=param, got=error.got, where=where) from error


def warm_up(vocabulary: Vocabulary) -> None:
    """Build the grammar tokeniser now (about 1 s), so that the first constrained request does not wait for it."""
    _tokenizer(vocabulary)


@functools.lru_cache(maxsize=32)
def _compile(schema: str, vocabulary: Vocabulary) -> Grammar:
    tokenizer = _tokenizer(vocabulary)
    limits = LLParserLimits(max_lexer_states=20_000, verbose_errors=False)
    for _ in range(16):
        grammar = LLMatcher.grammar_from_json_schema(schema, overrides=_OPTIONS)
        matcher = LLMatcher(tokenizer, grammar, log_level=0, limits=limits)
        unknown = _UNKNOWN_FORMAT.match(matcher.get_error()) if matcher.is_error() else None
        if unknown is None:
            break
        schema = json.dumps(_without_format(json.loads(schema), unknown.group(1).strip()), ensure_ascii=False)
    if matcher.is_error():
        raise SchemaError("the schema cannot be enforced", got=_first_line(matcher.get_error()))
    probe = np.zeros(MASK_WORDS, dtype=np.uint32)
    tried = matcher.deep_copy()
    tried.unsafe_compute_mask_ptr(probe.ctypes.data, probe.nbytes)
    if tried.is_error() or not probe.any():
        raise SchemaError("the schema cannot be satisfied or is too complex", got=_first_line(tried.get_error()))
    return Grammar(matcher)


class _TokenTable:
    """The vocabulary in the shape that llguidance asks for."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self.eos_token_id = RETURN
        self.bos_token_id = None
        self.tokens = [vocabulary.token_bytes(token_id) for token_id in range(VOCABULARY_SIZE)]
        self.special_token_ids = list(range(TEXT_TOKENS, VOCABULARY_SIZE))
        self._encode = vocabulary.encode

    def __call__(self, text: str | bytes) -> list[int]:
        return self._encode(text if isinstance(text, str) else text.decode("utf-8", "replace"))


@functools.cache
def _tokenizer(vocabulary: Vocabulary) -> LLTokenizer:
    return LLTokenizer(TokenizerWrapper(_TokenTable(vocabulary)), n_vocab=VOCABULARY_SIZE, eos_token=RETURN)


def _check_cost(schema: Mapping[str, Any], param: str, where: str) -> None:
    multiple = 1
    for node in _objects(schema):
        properties = node.get("properties")
        if isinstance(properties, Mapping) and len(properties) > MAX_PROPERTIES:
            raise SchemaError(
                "an object of the schema has too many properties",
                param=param,
                expected=f"at most {MAX_PROPERTIES}",
                got=str(len(properties)),
                where=where,
            )
        step = node.get("multipleOf")
        if isinstance(step, int | float) and not isinstance(step, bool) and step:
            coarse = 1e-12 <= abs(step) <= 1e12
            digits = Decimal(repr(step)).normalize().as_tuple().digits if coarse else (MAX_MULTIPLE + 1,)
            multiple = math.lcm(multiple, int("".join(map(str, digits))))
    if multiple > MAX_MULTIPLE:
        raise SchemaError(
            "the schema's multipleOf is too fine to enforce",
            param=param,
            expected=f"a least common multiple of at most {MAX_MULTIPLE}",
            where=where,
        )


def _objects(value: object) -> Iterator[Mapping[str, Any]]:
    if isinstance(value, Mapping):
        yield value
        for inner in value.values():
            yield from _objects(inner)
    elif isinstance(value, Sequence) and not isinstance(value, str):
        for inner in value:
            yield from _objects(inner)


def _without_format(value: Any, name: str) -> Any:
    if isinstance(value, dict):
        return {
            key: inner if key in _DATA_KEYWORDS else _without_format(inner, name)
            for key, inner in value.items()
            if not (key == "format" and inner == name)
        }
    if isinstance(value, list):
        return [_without_format(inner, name) for inner in value]
    return value


def _first_line(message: str) -> str | None:
    line = message.strip().partition("\n")[0]
    return line[:300] or None
