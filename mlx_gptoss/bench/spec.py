"""What to measure, and what was measured: plain records that travel between processes as JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from mlx_gptoss.errors import InvalidRequestError
from mlx_gptoss.plan.footprint import Precisions

EngineName = Literal["mlx-gptoss", "engine", "mlx-lm"]
"""Our model alone, our model behind our engine, and mlx-lm's model."""
Phase = Literal["prefill", "decode"]
SHAPES = ("20b", "120b", "tiny")


@dataclass(frozen=True, slots=True)
class BenchSpec:
    """One run. The model is `folder`, or random weights of the shape `random` ("20b", "120b", or "tiny" for tests).

    `prefill` are prompt lengths, `decode` contexts (both in tokens), `batch` sequences decoded at once. A decode
    measurement is the median of `repeats` runs of `steps` steps; a prefill measurement that of `repeats` prompts.
    """

    folder: str | None = None
    random: str | None = None
    layers: int | None = None
    precisions: Precisions = field(default_factory=Precisions)
    backend: str = "auto"
    dtype: str = "bfloat16"
    prefill: tuple[int, ...] = (512, 2048)
    decode: tuple[int, ...] = (128, 2048, 8192)
    batch: tuple[int, ...] = (1,)
    steps: int = 64
    repeats: int = 3
    seed: int = 0

    def __post_init__(self) -> None:
        if (self.folder is None) == (self.random is None):
            raise InvalidRequestError("a benchmark wants a model folder or random weights, and not both")
        if self.random is not None and self.random not in SHAPES:
            raise InvalidRequestError("unknown shape", param="random", expected=", ".join(SHAPES), got=self.random)
        for name, values in (("prefill", self.prefill), ("decode", self.decode), ("batch", self.batch)):
            if any(value < 1 for value in values):
                raise InvalidRequestError(f"{name} is out of range", param=name, expected=">= 1", got=str(min(values)))
        for name, value in (("steps", self.steps), ("repeats", self.repeats), ("layers", self.layers)):
            if value is not None and value < 1:
                raise InvalidRequestError(f"{name} is out of range", param=name, expected=">= 1", got=str(value))
        if self.decode and not self.batch:
            raise InvalidRequestError("batch is empty", param="batch", expected="numbers of sequences >= 1")
        if not 0 <= self.seed < 1 << 32:
            raise InvalidRequestError(
                "seed is out of range", param="seed", expected="0 to 2^32 - 1", got=str(self.seed)
            )

    def to_dict(self) -> dict[str, Any]:
        """For JSON; `from_dict` reads it back."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> BenchSpec:
        """Of what `to_dict` gave."""
        fields = dict(data)
        fields["precisions"] = Precisions(**fields["precisions"])
        for name in ("prefill", "decode", "batch"):
            fields[name] = tuple(fields[name])
        return cls(**fields)


@dataclass(frozen=True, slots=True)
class Ceiling:
    """What this machine does at best: bytes/s of a large copy (read and write counted), FLOP/s of a large bfloat16
    (float32 on a CPU) matrix product."""

    copy_bytes_s: float
    matmul_flops: float


@dataclass(frozen=True, slots=True)
class Measurement:
    """One line of a report.

    `seconds` is the median of a decode step, or of a whole prompt, `fastest` and `slowest` the extremes; `bytes` what
    one of them has to read at least, `flops` the arithmetic it takes at least (see bench.cost). `host_seconds` is what
    the host worked on a step before it could wait for the device, `wait_seconds` what it then waited (decode only).
    `launches` counts the operations of a decode step's graph that are no views, 0 where it was not traced. `peak_bytes`
    is the allocator's peak.
    """

    engine: EngineName
    backend: str
    phase: Phase
    length: int
    batch: int
    seconds: float
    fastest: float
    slowest: float
    bytes: int
    flops: float
    peak_bytes: int
    host_seconds: float = 0.0
    wait_seconds: float = 0.0
    launches: int = 0

    @property
    def tokens_per_second(self) -> float:
        """Of all sequences together."""
        return (self.batch if self.phase == "decode" else self.length) / self.seconds

    @property
    def bytes_per_second(self) -> float:
        return self.bytes / self.seconds

    def share(self, ceiling: Ceiling) -> float:
        """Of the machine's ceiling: memory for decode; for prefill memory or arithmetic, whichever is nearer."""
        memory = self.bytes_per_second / ceiling.copy_bytes_s
        arithmetic = self.flops / self.seconds / ceiling.matmul_flops
        return memory if self.phase == "decode" else max(memory, arithmetic)

    def to_dict(self, ceiling: Ceiling) -> dict[str, Any]:
        """For JSON, with what follows from the fields."""
        return asdict(self) | {
            "tokens_per_second": self.tokens_per_second,
            "bytes_per_second": self.bytes_per_second,
            "share_of_ceiling": self.share(ceiling),
        }
