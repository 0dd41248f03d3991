"""Which rows of the tuning, and which of its texts, an expert kernel takes for its activations."""

from __future__ import annotations

from dataclasses import dataclass

from mlx_gptoss.errors import KernelError
from mlx_gptoss.kernels.halves import packed_size
from mlx_gptoss.kernels.layout import MAX_BATCH, MXFP4, PICKS_PER_SIMDGROUP, chunk_values
from mlx_gptoss.kernels.tuning import Rows, Tuning
from mlx_gptoss.weights import Experts

SUMS_PER_SIMDGROUP = 32
POWERS_OF_TWO = (1, 2, 4, 8, 16)


@dataclass(frozen=True, slots=True)
class ExpertWork:
    """Rows of `columns` weights in `format`, times the activations of `batch` sequences, each with `top_k` experts;
    floats, or halves where `packed`."""

    format: int
    columns: int
    top_k: int
    batch: int
    packed: bool


@dataclass(frozen=True, slots=True)
class ExpertForm:
    """How it is done: the rows, the text (see `load_kernel`), and whether activations go through threadgroup memory."""

    rows: Rows
    text: str
    staged: bool


def gate_up_form(kernel: str, work: ExpertWork, tuning: Tuning) -> ExpertForm:
    """Of the kernel that multiplies one activation a sequence. Raises KernelError where packed ones do not fit."""
    candidates = tuning.gate_up_several, tuning.gate_up_alone, tuning.gate_up
    return _form(kernel, candidates, work, tuning, activations=1, ends=2)


def down_form(kernel: str, work: ExpertWork, tuning: Tuning) -> ExpertForm:
    """Of the kernel that multiplies one activation an expert. Raises KernelError where packed ones do not fit."""
    candidates = tuning.down_several, tuning.down_alone, tuning.down
    return _form(kernel, candidates, work, tuning, activations=work.top_k, ends=1)


def fits_halves(columns: int, inner: int, top_k: int, tuning: Tuning, batch: int = 1) -> bool:
    """Whether, with this tuning, experts [2 inner, columns] and [N, inner] take the activations of `batch` sequences
    packed."""
    if not tuning.halves:
        return False
    if batch > 1:
        gate_up, down = tuning.gate_up_several, tuning.down_several
        return _takes_several(gate_up, columns, top_k, batch, 2) and _takes_several(down, inner, top_k, batch, 1)
    room, down = tuning.staged_bytes, tuning.down_alone
    return (
        _staged(tuning.gate_up_alone, MXFP4, columns, 1, True, room) is not None
        and _staged(down, MXFP4, inner, top_k, True, room) is not None
        and down is not None
        and down.share == 1
    )


def takes_halves(gate_up: Experts, down: Experts, top_k: int, tuning: Tuning, batch: int = 1) -> bool:
    """Whether the experts of `batch` sequences are to get their activations packed (see `pack_activation`)."""
    packed = gate_up.blocks is not None and down.blocks is not None
    return packed and fits_halves(gate_up.columns, down.columns, top_k, tuning, batch)


def _form(
    kernel: str,
    candidates: tuple[Rows | None, Rows | None, Rows],
    work: ExpertWork,
    tuning: Tuning,
    *,
    activations: int,
    ends: int,
) -> ExpertForm:
    """`candidates`: for several packed sequences, for one, and for everything else. `activations`: of one sequence.
    `ends`: see `_takes_several`."""
    several, alone, otherwise = candidates
    in_halves = tuning.halves and work.format == MXFP4
    if work.packed and work.batch > 1:
        if several is None or not (in_halves and _takes_several(several, work.columns, work.top_k, work.batch, ends)):
            raise _unfit(several, kernel)
        return ExpertForm(several, f"{kernel}.batch_halves", staged=False)
    alone = alone if work.batch == 1 else None
    staged = _staged(alone, work.format, work.columns, activations, work.packed, tuning.staged_bytes)
    if work.packed:
        if staged is None or not in_halves:
            raise _unfit(alone, kernel)
        return ExpertForm(staged, f"{kernel}.halves", staged=True)
    return ExpertForm(staged or otherwise, kernel, staged=staged is not None)


def _staged(
    rows: Rows | None, weight_format: int, columns: int, activations: int, packed: bool, room: int
) -> Rows | None:
    """`rows` where `activations` of `columns` floats, or of packed halves, fit in `room` bytes of threadgroup memory, a
    row of the weight is one block of a simdgroup, and no simdgroup is left without an activation; else None."""
    if rows is None or rows.share > activations:
        return None
    if activations * (2 * packed_size(columns) if packed else 4 * columns) > room:
        return None
    return rows if 32 * rows.unroll >= columns // chunk_values(weight_format) else None


def _takes_several(rows: Rows | None, columns: int, top_k: int, batch: int, ends: int) -> bool:
    """Whether `rows` are whole blocks of a simdgroup, each lane of which has a pick and ends up to `ends` results (2:
    pairs of rows) of any batch."""
    if rows is None or rows.share > 1 or rows.rows not in POWERS_OF_TWO:
        return False
    if 32 * rows.unroll < columns // chunk_values(MXFP4):
        return False
    results = rows.passes * rows.rows
    if results % ends or results > SUMS_PER_SIMDGROUP:
        return False
    return MAX_BATCH * results <= ends * SUMS_PER_SIMDGROUP and batch * top_k <= PICKS_PER_SIMDGROUP


def _unfit(rows: Rows | None, kernel: str) -> KernelError:
    return KernelError(
        "packed activations do not fit the tuning", expected="see `takes_halves`", got=str(rows), where=kernel
    )
