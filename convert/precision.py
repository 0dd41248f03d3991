"""The user's choice of precision for each part of the model, and presets for common machines.

Experts stay MXFP4 bit for bit wherever the source has them so. The choices here are about the rest.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Final, Literal, cast, get_args

from mlx_gptoss.errors import ConversionError, InvalidRequestError
from mlx_gptoss.folder import LinearFormat

MatrixPrecision = Literal["source", "bf16", "f32", "mxfp8", "q8", "q6", "q4"]
ExpertPrecision = Literal["mxfp4", "bf16"]

MXFP8_GROUP: Final = 32


@dataclass(frozen=True, slots=True)
class Precision:
    """How to store attention projections, embedding, head and experts.

    `source` keeps what the source has: bf16 for plain checkpoints, MLX's formats carried over where they are the same.
    """

    attention: MatrixPrecision = "source"
    embedding: MatrixPrecision = "source"
    head: MatrixPrecision = "source"
    experts: ExpertPrecision = "mxfp4"

    @classmethod
    def from_mapping(cls, choices: Mapping[str, str]) -> Precision:
        """Checks names and values. Raises InvalidRequestError."""
        for part, value in choices.items():
            allowed = get_args(ExpertPrecision if part == "experts" else MatrixPrecision)
            if part not in {f.name for f in fields(cls)}:
                raise InvalidRequestError(
                    f"there is no precision choice for {part!r}",
                    param=part,
                    expected="attention|embedding|head|experts",
                )
            if value not in allowed:
                raise InvalidRequestError(
                    f"unknown precision for {part}", param=part, expected="|".join(allowed), got=value
                )
        return cls(**cast("dict[str, MatrixPrecision]", dict(choices)))  # type: ignore[arg-type]  # checked above

    def to_dict(self) -> dict[str, str]:
        return {f.name: getattr(self, f.name) for f in fields(self)}

    def of(self, matrix: str) -> MatrixPrecision:
        """The choice for `embed`, `head`, `layers.N.qkv` or `layers.N.out`."""
        if matrix == "embed":
            return self.embedding
        if matrix == "head":
            return self.head
        return self.attention


PRESETS: Final[Mapping[str, Precision]] = {
    "16gb": Precision(attention="q6", embedding="q4", head="q6"),
    "24gb": Precision(attention="q8", embedding="q8", head="q8"),
    "max-quality": Precision(attention="bf16", embedding="bf16", head="bf16"),
}
"""Choices by memory of the machine, for the 20b model."""


def matrix_format(choice: MatrixPrecision, columns: int, matrix: str) -> LinearFormat:
    """The stored format of a matrix with `columns` inputs. Raises ConversionError when it cannot be grouped."""
    if choice == "source" or choice == "bf16":
        return LinearFormat("bf16")
    if choice == "f32":
        return LinearFormat("f32")
    group = MXFP8_GROUP if choice == "mxfp8" or columns % 64 else 64
    if columns % group:
        raise ConversionError(
            f"{matrix} cannot be stored as {choice}", expected=f"a multiple of {group} columns", got=str(columns),
            hint="Choose bf16 for this part",
        )  # fmt: skip
    return LinearFormat(choice, group)
