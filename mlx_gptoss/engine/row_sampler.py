"""What sampling needs to know of one request, on the host: its random stream and its penalties."""

from __future__ import annotations

import secrets
from collections import Counter, deque
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mlx_gptoss.request import SamplingParams

_MASK64 = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15
_LONGEST_CONTEXT = 1 << 20
_COLDEST = 1e-30
"""Below this temperature a draw is greedy: its inverse would overflow float32."""


@dataclass(frozen=True, slots=True)
class LogitEdit:
    """Changes to some logits of a row, each id once: positive logits are divided by their factor and negative ones
    multiplied, then the shift is added."""

    ids: npt.NDArray[np.int32]
    factors: npt.NDArray[np.float32]
    shifts: npt.NDArray[np.float32]


class RowSampler:
    """The sampling state of one request. `observe` its tokens in order; presence and frequency penalties count
    generated tokens, the repetition penalty looks at the last `repetition_context` of prompt and answer."""

    def __init__(self, params: SamplingParams, prompt_ids: Iterable[int] = ()) -> None:
        self.params = params
        self.greedy = params.temperature < _COLDEST or params.top_k == 1
        self._seed = secrets.randbits(64) if params.seed is None else _mix(int(params.seed) & _MASK64)
        self._drawn = 0
        self._counts: Counter[int] = Counter()
        self._recent: deque[int] = deque(prompt_ids, maxlen=min(max(params.repetition_context, 0), _LONGEST_CONTEXT))
        self._fixed = bool(params.logit_bias)
        self.penalised = params.repetition_penalty != 1 or params.presence_penalty != 0 or params.frequency_penalty != 0
        """Whether the next draw depends on the tokens before it."""
        self._bias_only = self._make_edit() if self._fixed and not self.penalised else None

    def uniform(self) -> float:
        """The number in [0, 1) for the next token: a function of the seed and the token's index alone."""
        return (_mix((self._seed + (self._drawn + 1) * _GOLDEN) & _MASK64) >> 11) * 2.0**-53

    def step(self) -> None:
        """A token was drawn: the next one uses the next number of the stream."""
        self._drawn += 1

    def rewind(self, drawn: int) -> None:
        """Goes back to where `drawn` tokens had been drawn."""
        self._drawn = drawn

    def observe(self, token_id: int) -> None:
        """Takes a generated token into account."""
        if self.penalised:
            self._counts[token_id] += 1
            self._recent.append(token_id)

    def edit(self) -> LogitEdit | None:
        """The penalties and biases of the next token, None when there are none."""
        return self._make_edit() if self.penalised else self._bias_only

    def _make_edit(self) -> LogitEdit | None:
        params = self.params
        repeated = set(self._recent) if params.repetition_penalty != 1 else set()
        counted = self._counts if params.presence_penalty or params.frequency_penalty else Counter[int]()
        ids = sorted({*repeated, *counted, *params.logit_bias})
        if not ids:
            return None
        factors = [params.repetition_penalty if token in repeated else 1.0 for token in ids]
        shifts = [
            params.logit_bias.get(token, 0.0)
            - counted[token] * params.frequency_penalty
            - (params.presence_penalty if counted[token] else 0.0)
            for token in ids
        ]
        return LogitEdit(
            np.array(ids, dtype=np.int32), np.array(factors, dtype=np.float32), np.array(shifts, dtype=np.float32)
        )


def _mix(value: int) -> int:
    """The output function of SplitMix64 (Steele, Lea and Flood, 2014)."""
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _MASK64
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK64
    return value ^ (value >> 31)
