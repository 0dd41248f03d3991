"""gpt-oss on Apple Silicon: converter, Metal kernels, engine, Harmony and a Python API."""

from __future__ import annotations

__version__ = "0.1.0"
