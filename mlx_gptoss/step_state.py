"""What a decode step needs to know of positions, carried on the device from step to step.

A small array that comes from the host every step costs more than it holds: MLX's CUDA build puts it in managed memory,
whose page the first kernel that reads it waits for. So a step's numbers are advanced on the device, and come from the
host only when they cannot be foreseen: after a merge of tails, or when other sequences take part.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import mlx.core as mx
import numpy as np

from mlx_gptoss.rope import RotaryTable

SPAN = 64
"""Positions whose rotations a sequence's table holds."""
_LENGTHS = 8
_ROTATION = 5


@dataclass(frozen=True, slots=True)
class Position:
    """Of one sequence before a step: positions written, valid keys of a full layer's main cache and of its tail, and
    the main cache's capacity."""

    offset: int
    n_main: int
    n_tail: int
    capacity: int

    def after(self) -> Position:
        """After the step, if its key goes to the tail."""
        return Position(self.offset + 1, self.n_main, self.n_tail + 1, self.capacity)


@dataclass(frozen=True, slots=True)
class StepState:
    """numbers: int32 [S, 8], row s the `cache_lengths` of sequence s and in [5] its row of rotations; rotations:
    float32 [S * SPAN, 64], cosines and sines times the concentration (see RotaryTable)."""

    numbers: mx.array
    rotations: mx.array

    def lengths(self) -> list[mx.array]:
        """int32 [8] of each sequence: views."""
        count = self.numbers.shape[0]
        return [mx.as_strided(self.numbers, (_LENGTHS,), (1,), row * _LENGTHS) for row in range(count)]

    def rope(self) -> mx.array:
        """float32 [S, 64] of this step's positions."""
        rows = mx.as_strided(self.numbers, (self.numbers.shape[0],), (_LENGTHS,), _ROTATION)
        return mx.take(self.rotations, rows, axis=0)

    def next_numbers(self) -> mx.array:
        """The numbers of the step after this one."""
        return self.numbers + mx.array([1, 0, 1, 0, 0, 1, 0, 0], dtype=mx.int32)


class CarriedState:
    """The state of the step to come, kept where the last one left it."""

    def __init__(self, rope: RotaryTable) -> None:
        self._rope = rope
        self._foreseen: tuple[Position, ...] = ()
        self._left = 0
        self._state: StepState | None = None

    def state(self, positions: Sequence[Position]) -> StepState:
        """For sequences at `positions`: the one carried here, if they are where it was foreseen, else a new one."""
        if self._state is None or self._left < 1 or self._foreseen != tuple(positions):
            self._state = self._upload(positions)
            self._left = SPAN
        return self._state

    def carry(self, positions: Sequence[Position], numbers: mx.array) -> None:
        """After a step from `positions`, whose `next_numbers` were `numbers`."""
        if self._state is not None:
            self._state = StepState(numbers, self._state.rotations)
            self._foreseen = tuple(position.after() for position in positions)
            self._left -= 1

    def _upload(self, positions: Sequence[Position]) -> StepState:
        numbers = np.zeros((len(positions), _LENGTHS), dtype=np.int32)
        for row, at in enumerate(positions):
            numbers[row, :6] = (at.offset, at.n_main, at.n_tail, at.capacity, row, row * SPAN)
        ahead = np.concatenate([np.arange(at.offset, at.offset + SPAN, dtype=np.float32) for at in positions])
        return StepState(mx.array(numbers), mx.array(self._rope.rotations(ahead)))
