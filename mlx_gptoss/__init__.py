"""gpt-oss on Apple Silicon: converter, Metal kernels, engine, Harmony and a Python API."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mlx_gptoss.chat import Chat as Chat
    from mlx_gptoss.config import ModelConfig as ModelConfig
    from mlx_gptoss.engine.options import EngineOptions as EngineOptions
    from mlx_gptoss.errors import CancelledError as CancelledError
    from mlx_gptoss.errors import CheckpointError as CheckpointError
    from mlx_gptoss.errors import ConfigError as ConfigError
    from mlx_gptoss.errors import ContextOverflowError as ContextOverflowError
    from mlx_gptoss.errors import ConversionError as ConversionError
    from mlx_gptoss.errors import DownloadError as DownloadError
    from mlx_gptoss.errors import EngineClosedError as EngineClosedError
    from mlx_gptoss.errors import GptOssError as GptOssError
    from mlx_gptoss.errors import InsufficientDiskError as InsufficientDiskError
    from mlx_gptoss.errors import InsufficientMemoryError as InsufficientMemoryError
    from mlx_gptoss.errors import InternalError as InternalError
    from mlx_gptoss.errors import InvalidRequestError as InvalidRequestError
    from mlx_gptoss.errors import KernelError as KernelError
    from mlx_gptoss.errors import ModelNotFoundError as ModelNotFoundError
    from mlx_gptoss.errors import QueueFullError as QueueFullError
    from mlx_gptoss.errors import SchemaError as SchemaError
    from mlx_gptoss.events import Done as Done
    from mlx_gptoss.events import Event as Event
    from mlx_gptoss.events import PreambleDelta as PreambleDelta
    from mlx_gptoss.events import ReasoningDelta as ReasoningDelta
    from mlx_gptoss.events import TextDelta as TextDelta
    from mlx_gptoss.events import Timings as Timings
    from mlx_gptoss.events import TokenLogprob as TokenLogprob
    from mlx_gptoss.events import ToolCallDelta as ToolCallDelta
    from mlx_gptoss.events import ToolCallEnd as ToolCallEnd
    from mlx_gptoss.events import ToolCallStart as ToolCallStart
    from mlx_gptoss.events import Usage as Usage
    from mlx_gptoss.llm import GptOss as GptOss
    from mlx_gptoss.loader import load_model as load_model
    from mlx_gptoss.messages import AssistantMessage as AssistantMessage
    from mlx_gptoss.messages import DeveloperMessage as DeveloperMessage
    from mlx_gptoss.messages import Message as Message
    from mlx_gptoss.messages import SystemMessage as SystemMessage
    from mlx_gptoss.messages import Tool as Tool
    from mlx_gptoss.messages import ToolCall as ToolCall
    from mlx_gptoss.messages import ToolMessage as ToolMessage
    from mlx_gptoss.messages import UserMessage as UserMessage
    from mlx_gptoss.request import ChatRequest as ChatRequest
    from mlx_gptoss.request import ResponseFormat as ResponseFormat
    from mlx_gptoss.request import SamplingParams as SamplingParams
    from mlx_gptoss.request import ToolChoice as ToolChoice
    from mlx_gptoss.stream import Completion as Completion
    from mlx_gptoss.stream import Stream as Stream

__version__ = "0.1.0"

_EXPORTS = {
    "chat": ("Chat",),
    "config": ("ModelConfig",),
    "engine.options": ("EngineOptions",),
    "errors": (
        "CancelledError",
        "CheckpointError",
        "ConfigError",
        "ContextOverflowError",
        "ConversionError",
        "DownloadError",
        "EngineClosedError",
        "GptOssError",
        "InsufficientDiskError",
        "InsufficientMemoryError",
        "InternalError",
        "InvalidRequestError",
        "KernelError",
        "ModelNotFoundError",
        "QueueFullError",
        "SchemaError",
    ),
    "events": (
        "Done",
        "Event",
        "PreambleDelta",
        "ReasoningDelta",
        "TextDelta",
        "Timings",
        "TokenLogprob",
        "ToolCallDelta",
        "ToolCallEnd",
        "ToolCallStart",
        "Usage",
    ),
    "llm": ("GptOss",),
    "loader": ("load_model",),
    "messages": (
        "AssistantMessage",
        "DeveloperMessage",
        "Message",
        "SystemMessage",
        "Tool",
        "ToolCall",
        "ToolMessage",
        "UserMessage",
    ),
    "request": ("ChatRequest", "ResponseFormat", "SamplingParams", "ToolChoice"),
    "stream": ("Completion", "Stream"),
}
_HOMES = {name: module for module, names in _EXPORTS.items() for name in names}

# Names are found on first use, so that importing the package (the CLI's `--help`) does not load MLX.
__all__ = ["__version__", *sorted(_HOMES)]  # built from the table above


def __getattr__(name: str) -> Any:
    module = _HOMES.get(name)
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{module}"), name)


def __dir__() -> list[str]:
    return list(__all__)
