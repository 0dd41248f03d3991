"""What every reader returns: one checkpoint under the model folder's own tensor names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

from mlx_gptoss.config import ModelConfig
from mlx_gptoss.convert.files import SourceFile
from mlx_gptoss.convert.tensors import Rows
from mlx_gptoss.folder import LinearFormat


@dataclass(frozen=True, slots=True)
class Packed:
    """A matrix that a source already holds in one of MLX's formats: its parts (`weight`, `scales`, `biases`)."""

    format: LinearFormat
    parts: Mapping[str, Rows]


@dataclass(frozen=True, slots=True)
class Source:
    """A checkpoint opened for conversion. Close it, or use it as a context manager.

    `tensors` maps the names of `mlx_gptoss.folder` to values: float tensors, `.blocks` and `.scales` (U8) of MXFP4
    experts, or `.weight` [E, N, K] of dense ones (any row order the folder uses: gate and up interleaved).
    `packed` holds matrices that may be carried over as they are; `tensors` has them dequantised as well.
    `config_json` is the source's config.json, or one made for it. `fingerprint` identifies files, headers and
    adapters. `ignored` are the source's tensors that gpt-oss does not have.
    """

    kind: str
    path: Path
    config: ModelConfig
    config_json: bytes
    tensors: Mapping[str, Rows]
    files: tuple[SourceFile, ...]
    fingerprint: str
    packed: Mapping[str, Packed] = field(default_factory=dict)
    ignored: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def __enter__(self) -> Source:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Closes every file."""
        for file in self.files:
            file.close()

    def check_unchanged(self) -> None:
        """Raises ConversionError when a file is no longer what it was when opened."""
        for file in self.files:
            file.check_unchanged()
