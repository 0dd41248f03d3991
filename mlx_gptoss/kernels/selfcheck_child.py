"""The process in which kernels are checked: what hangs or crashes there takes nobody along.

Reads one JSON object on standard input (back end, shapes, kernels); writes a line `{"start": name}` before each kernel
and `{"report": {...}}` after it.
"""

from __future__ import annotations

import importlib
import json
import sys
from typing import IO, Any, cast

from mlx_gptoss.kernels.backend import Backend
from mlx_gptoss.kernels.backends import backend_named
from mlx_gptoss.kernels.check import check_kernel
from mlx_gptoss.kernels.shapes import Shapes


def backend_from(spec: str) -> Backend:
    """A back end by name ("metal", "cuda"), or by `module:callable`."""
    module, _, attribute = spec.partition(":")
    if not attribute:
        return backend_named(spec)
    return cast("Backend", getattr(importlib.import_module(module), attribute)())


def work(source: IO[str], sink: IO[str]) -> None:
    """Checks what `source` asks for, kernel by kernel."""

    def say(message: dict[str, Any]) -> None:
        sink.write(json.dumps(message) + "\n")
        sink.flush()

    order = json.load(source)
    shapes = Shapes(**order["shapes"])
    backend: Backend | None = None
    for kernel in order["kernels"]:
        say({"start": kernel})
        backend = backend or backend_from(order["backend"])
        say({"report": check_kernel(kernel, shapes, backend, measure=order["measure"]).to_dict()})


if __name__ == "__main__":
    work(sys.stdin, sys.stdout)
