"""What the bench raises.

KernelError                 (mlx_gptoss.errors)
├── ShaderCompileError      the text is not legal: `diagnostics` holds every reason
└── ShaderFaultError             the text is legal and did something wrong: `kind`, `buffer`, `threadgroup`, `lane`, ...
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mlx_gptoss.errors import KernelError


@dataclass(frozen=True, slots=True)
class Diagnostic:
    """One reason to reject a text. `line` and `column` count from 1 in the text that MLX would compile."""

    rule: str
    line: int
    column: int
    message: str
    source: str = ""

    def __str__(self) -> str:
        shown = f"\n    {self.source.strip()}" if self.source else ""
        return f"line {self.line}:{self.column}: [{self.rule}] {self.message}{shown}"


class ShaderCompileError(KernelError):
    """The shader text does not compile, or Apple's compiler would reject it."""

    def __init__(self, kernel: str, diagnostics: Sequence[Diagnostic]) -> None:
        self.kernel = kernel
        self.diagnostics = tuple(diagnostics)
        super().__init__(
            f"kernel {kernel} is not legal Metal: {self.diagnostics[0] if diagnostics else 'no reason given'}"
        )

    def __str__(self) -> str:
        lines = "\n".join(str(d) for d in self.diagnostics[:8])
        return f"kernel {self.kernel} is not legal Metal\n{lines}"


class ShaderFaultError(KernelError):
    """A kernel did something undefined while it ran.

    `kind` is one of fault, out_of_bounds, divergence, threadgroup_memory, inactive_lane, arithmetic, timeout,
    uninitialised, race, read_only, stack, unwritten. The positions are None where they have no meaning.
    """

    def __init__(
        self,
        kernel: str,
        kind: str,
        what: str,
        *,
        buffer: str | None = None,
        offset: int | None = None,
        line: int | None = None,
        source: str = "",
        threadgroup: tuple[int, int, int] | None = None,
        simdgroup: int | None = None,
        lane: int | None = None,
    ) -> None:
        place = []
        if buffer is not None:
            place.append(f"buffer {buffer}" + (f" at byte {offset}" if offset is not None else ""))
        if threadgroup is not None:
            place.append(f"threadgroup {threadgroup}")
        if simdgroup is not None:
            place.append(f"simdgroup {simdgroup}")
        if lane is not None:
            place.append(f"lane {lane}")
        if line:
            place.append(f"line {line}" + (f": {source.strip()}" if source else ""))
        super().__init__(f"kernel {kernel}: {what}", where=", ".join(place) or None)
        self.kernel = kernel
        self.kind = kind
        self.buffer = buffer
        self.offset = offset
        self.line = line
        self.threadgroup = threadgroup
        self.simdgroup = simdgroup
        self.lane = lane
