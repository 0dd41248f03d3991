"""What differs between GPUs is data: rows, simdgroups and splits of each decode kernel, by GPU family.

The numbers become template arguments of the shader text, which is the same everywhere but for `halves`. `mlx-gptoss
bench --tune` finds better ones for a machine and keeps them in a file (user_tuning.py). To change those of a family for
everyone, run `python -m benchmarks.kernels_decode --tune`, which times candidates of each matrix and attention kernel
at the released shapes and prints the winners as a `Tuning(...)` to paste here, under the family that `family_of` gives
for the machine.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Rows:
    """A matrix-vector kernel: `rows` of the weight a simdgroup takes at a time, `simdgroups` a threadgroup, `unroll`
    steps of 16 bytes (of dense weights in halves: of 16 values) in flight a lane and row, `share` simdgroups that split
    the experts of one row group (moe_down), `passes` of row groups a simdgroup (head, gate_up), `stagers` simdgroups
    more that bring one sequence's activation to threadgroup memory (qkv, where it fits whole; see apart.h)."""

    rows: int
    simdgroups: int
    unroll: int
    share: int = 1
    passes: int = 1
    stagers: int = 0

    def for_weights(self, packed: bool) -> Rows:
        """For packed weights, of which a step holds twice as many values and more: half the steps are in flight, and at
        most two rows where a simdgroup takes no others after them."""
        if not packed:
            return self
        rows = min(self.rows, 2) if self.passes == 1 else self.rows
        return dataclasses.replace(self, rows=rows, unroll=max(1, self.unroll // 2))

    def for_batch(self, batch: int, *, fewest: int = 1, steps: int = 2) -> Rows:
        """For several sequences: more rows share a staged activation (`fewest` of a kernel that takes one alone), and
        `steps` at most are in flight."""
        if batch == 1:
            return self
        rows = max(self.rows, 4) if self.rows > 1 else fewest
        return dataclasses.replace(self, rows=rows, unroll=min(self.unroll, steps))


@dataclass(frozen=True, slots=True)
class Attention:
    """An attention kernel: `simdgroups` a threadgroup, 4 * `unroll` keys a simdgroup and step (in sliding layers a tile
    of 16 * `unroll` keys a threadgroup). A full layer's main cache is split into parts of at least `split_keys` keys,
    at most `max_parts` of them."""

    simdgroups: int
    unroll: int
    split_keys: int = 256
    max_parts: int = 64


@dataclass(frozen=True, slots=True)
class Tuning:
    """All tuning constants of the decode kernels for one GPU family.

    Up to `merge_in_out` parts of a full layer's attention are merged inside the output projection, where every
    threadgroup reads them all; more by a launch of its own (1: always). `gate_up_alone` and `down_alone`: for one
    sequence, whose activations go through threadgroup memory where they fit in `staged_bytes` (None: as for several,
    where each simdgroup reads its own). `qkv_alone`: for one sequence's dense weights, where its activation fits there
    whole (None: as for several). `halves`: activations come to the expert kernels as packed halves, and products with
    MXFP4 weights are added up in halves (halves.h), for one sequence with `gate_up_alone` and `down_alone`, for several
    with `gate_up_several` and `down_several` (None: in floats); with `qkv_halves` and `out_halves` one sequence's
    products with 4-, 6- and 8-bit weights are, in those projections (None, or scales of 32 bits: in floats).
    `many_steps`: steps in flight in the dense kernels of more than four sequences. `truncated_draws`: top-k, top-p and
    min-p run on the kernels too, not on MLX's sort.
    """

    qkv: Rows = field(default_factory=lambda: Rows(2, 8, 4))
    out: Rows = field(default_factory=lambda: Rows(2, 8, 4))
    router: Rows = field(default_factory=lambda: Rows(1, 8, 6))
    gate_up: Rows = field(default_factory=lambda: Rows(4, 4, 1))
    down: Rows = field(default_factory=lambda: Rows(4, 4, 1, share=4))
    qkv_alone: Rows | None = None
    qkv_halves: Rows | None = None
    out_halves: Rows | None = None
    gate_up_alone: Rows | None = None
    down_alone: Rows | None = None
    gate_up_several: Rows | None = None
    down_several: Rows | None = None
    head: Rows = field(default_factory=lambda: Rows(4, 8, 2, passes=4))
    full: Attention = field(default_factory=lambda: Attention(4, 2))
    sliding: Attention = field(default_factory=lambda: Attention(8, 4))
    merge_in_out: int = 1
    halves: bool = False
    many_steps: int = 2
    truncated_draws: bool = True
    top_chunk: int = 2048
    staged_bytes: int = 24576

    def batch_steps(self, batch: int) -> int:
        """Steps in flight in the dense kernels of several sequences."""
        return 2 if batch <= 4 else self.many_steps

    def having(self, **fields: Any) -> Tuning:
        """The same but for some fields, by name."""
        return dataclasses.replace(self, **fields)


# Fewer cores want shorter parts of the context to stay busy with, many cores more of them; the matrix kernels' shapes
# follow from 16-byte lanes and the register file, which Apple's families share.
_SMALL = Tuning(full=Attention(4, 2, split_keys=512, max_parts=16))
_MIDDLE = Tuning(full=Attention(4, 2, split_keys=256, max_parts=32))
# Many cores have few threadgroups of the output projection each, and can read a part or two more (estimate).
_LARGE = Tuning(full=Attention(4, 2, split_keys=256, max_parts=64), merge_in_out=2)

TUNINGS: Mapping[str, Tuning] = {
    **{f"m{generation}": _SMALL for generation in range(1, 6)},
    **{f"m{generation}-pro": _MIDDLE for generation in range(1, 6)},
    **{f"m{generation}-max": _LARGE for generation in range(1, 6)},
    **{f"m{generation}-ultra": _LARGE for generation in range(1, 6)},
    # Timed on an H100 (benchmarks/results/h100.md).
    "h100": Tuning(
        qkv=Rows(4, 10, 4),
        out=Rows(1, 8, 8),
        router=Rows(1, 4, 6),
        gate_up=Rows(4, 1, 3, passes=4),
        down=Rows(4, 8, 1, share=8),
        qkv_alone=Rows(4, 10, 2, stagers=8),
        qkv_halves=Rows(2, 20, 2, stagers=8),
        out_halves=Rows(1, 12, 4),
        gate_up_alone=Rows(1, 10, 3, passes=6),
        down_alone=Rows(1, 11, 3),
        gate_up_several=Rows(2, 4, 3, passes=4),
        down_several=Rows(1, 4, 3),
        head=Rows(2, 8, 12, passes=4),
        full=Attention(12, 4, split_keys=64, max_parts=16),
        sliding=Attention(16, 4),
        halves=True,
        many_steps=1,
        truncated_draws=False,
        staged_bytes=47_104,
    ),
    "bench": Tuning(
        qkv=Rows(4, 2, 2),
        out=Rows(4, 2, 2),
        router=Rows(1, 2, 2),
        gate_up=Rows(4, 2, 1),
        down=Rows(4, 4, 1, share=2),
        gate_up_alone=Rows(2, 2, 1, passes=2),
        down_alone=Rows(2, 4, 1, share=2),
        head=Rows(4, 2, 2, passes=2),
        full=Attention(2, 2, split_keys=32, max_parts=4),
        sliding=Attention(2, 2),
        merge_in_out=2,
        top_chunk=256,
        staged_bytes=8192,
    ),
}
DEFAULT_FAMILY = "m4-max"
"""The family whose numbers serve a GPU that has none of its own."""

_APPLE = re.compile(r"\bm(\d+)\b(?:\s+(pro|max|ultra))?")


def family_of(device_name: str) -> str:
    """The tuning key of a GPU by its name: "Apple M4 Max" -> "m4-max", "NVIDIA H100 80GB HBM3" -> "h100".

    A newer Apple generation takes the newest known one of its size; anything else takes DEFAULT_FAMILY.
    """
    name = device_name.lower()
    if match := _APPLE.search(name):
        size = f"-{match.group(2)}" if match.group(2) else ""
        for generation in (int(match.group(1)), 5):
            if f"m{generation}{size}" in TUNINGS:
                return f"m{generation}{size}"
    return "h100" if "h100" in name or "h200" in name else DEFAULT_FAMILY


def packaged_tuning(family: str) -> Tuning:
    """The constants of a family as they come with the package, or those of DEFAULT_FAMILY."""
    return TUNINGS.get(family, TUNINGS[DEFAULT_FAMILY])


TRIAL: ContextVar[tuple[str, Tuning] | None] = ContextVar("TRIAL", default=None)
"""A family and the constants it has while they are being tried (see user_tuning.on_trial)."""


def tuning_for(family: str) -> Tuning:
    """The constants of a family: the user's own where they tuned this machine, else the package's."""
    # Called for every kernel of every step.
    trial = TRIAL.get()
    return own_tuning(family) if trial is None or trial[0] != family else trial[1]


@functools.cache
def own_tuning(family: str) -> Tuning:
    """As `tuning_for` without trials; the user's file is read once."""
    from mlx_gptoss.kernels.user_tuning import stored_tuning

    return stored_tuning(family) or packaged_tuning(family)
