"""Which path a loaded model takes: our kernels where the machine has a GPU for them, else MLX's own operations."""

from __future__ import annotations

import logging

from mlx_gptoss.engine.token_model import TokenModel
from mlx_gptoss.errors import ConfigError
from mlx_gptoss.fused import FusedModel, check_config
from mlx_gptoss.kernels.backend import StockBackend
from mlx_gptoss.kernels.backends import backend_named
from mlx_gptoss.kernels.selfcheck import self_check
from mlx_gptoss.kernels.shapes import Shapes
from mlx_gptoss.model import GptOssModel

_LOG = logging.getLogger(__name__)


def on_backend(model: GptOssModel, backend: str) -> TokenModel:
    """A loaded model on a back end: "auto" (the machine's own), "metal", "cuda" or "stock".

    Each kernel is checked on this machine first, or was once (see selfcheck.py). One that fails is named in a warning
    and MLX's operations stand in for it. With "auto", a model whose shapes the kernels do not have runs on the stock
    path. Raises KernelError for a back end this machine does not have, ConfigError for such shapes on a named one.
    """
    chosen = backend_named(backend)
    if isinstance(chosen, StockBackend):
        return model
    try:
        check_config(model.config)
    except ConfigError as problem:
        if backend != "auto":
            raise
        _LOG.warning("the kernels do not fit this model, MLX's own operations take their place: %s", problem)
        return model
    verdict = self_check(chosen, Shapes.of(model.config))
    return FusedModel(model.config, model.weights, chosen, model.dtype, off=verdict.disabled, stock=model)
