"""Any gpt-oss checkpoint into a model folder: bit-exact, in bounded memory, resumable."""

from __future__ import annotations

from mlx_gptoss.convert.converter import convert
from mlx_gptoss.convert.precision import PRESETS, Precision

__all__ = ["PRESETS", "Precision", "convert"]
