"""Tools that run on this machine: Python functions as tools, and a few that come with the package."""

from __future__ import annotations

from mlx_gptoss.tools.function import FunctionTool, ToolBox

__all__ = ["FunctionTool", "ToolBox"]
