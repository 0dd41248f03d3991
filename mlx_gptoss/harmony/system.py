"""The system message, rendered by openai-harmony: identity, dates, effort, built-in tools, channels."""

from __future__ import annotations

import functools
from collections.abc import Callable
from datetime import date
from typing import Final

from openai_harmony import (
    Message,
    ReasoningEffort,
    RenderOptions,
    Role,
    SystemContent,
    ToolNamespaceConfig,
)

from mlx_gptoss.errors import InvalidRequestError
from mlx_gptoss.harmony.vocabulary import Vocabulary

_EFFORTS: Final = {"low": ReasoningEffort.LOW, "medium": ReasoningEffort.MEDIUM, "high": ReasoningEffort.HIGH}
_BUILTINS: Final[dict[str, Callable[[], ToolNamespaceConfig]]] = {
    "browser": ToolNamespaceConfig.browser,
    "python": ToolNamespaceConfig.python,
}


@functools.lru_cache(maxsize=64)
def system_tokens(
    vocabulary: Vocabulary, effort: str, today: date, builtin_tools: tuple[str, ...], has_functions: bool
) -> tuple[int, ...]:
    """Tokens of the whole system message, `<|start|>` to `<|end|>`.

    `has_functions` adds the line that sends calls to the commentary channel. Raises InvalidRequestError for an unknown
    effort or built-in tool.
    """
    if effort not in _EFFORTS:
        raise InvalidRequestError(
            "unknown reasoning effort", param="effort", expected="low, medium or high", got=effort
        )
    content = (
        SystemContent.new().with_reasoning_effort(_EFFORTS[effort]).with_conversation_start_date(today.isoformat())
    )
    for name in builtin_tools:
        if name not in _BUILTINS:
            raise InvalidRequestError(
                "unknown built-in tool", param="builtin_tools", expected="browser or python", got=name
            )
        content = content.with_tools(_BUILTINS[name]())
    message = Message.from_role_and_content(Role.SYSTEM, content)
    options = RenderOptions(conversation_has_function_tools=has_functions)
    return tuple(vocabulary.encoding.render(message, options))
