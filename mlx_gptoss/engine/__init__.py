"""The engine: token ids in, token ids out. One thread owns the GPU."""

from __future__ import annotations

from mlx_gptoss.engine.constraint import TokenConstraint
from mlx_gptoss.engine.engine import Engine
from mlx_gptoss.engine.generation import Finished, Generation, GenerationRequest, TokenEvent
from mlx_gptoss.engine.options import EngineOptions, EngineStats
from mlx_gptoss.engine.token_model import TokenCache, TokenModel

__all__ = [
    "Engine",
    "EngineOptions",
    "EngineStats",
    "Finished",
    "Generation",
    "GenerationRequest",
    "TokenCache",
    "TokenConstraint",
    "TokenEvent",
    "TokenModel",
]
