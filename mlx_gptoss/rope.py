"""Rotary position embedding with YaRN, in float32 from tables.

Angles reach 131,072 radians, where a GPU's fast cosine is worthless and bfloat16 holds no phase at all. So cosines
and sines come from a table: angle = float32(position * inverse frequency), as OpenAI's reference rounds it, then an
exact cosine. The table also carries YaRN's concentration, so that it never passes through bfloat16.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import mlx.core as mx
import numpy as np
import numpy.typing as npt

from mlx_gptoss.config import ModelConfig

_FIRST_TABLE = 4096


def inverse_frequencies(config: ModelConfig) -> npt.NDArray[np.float32]:
    """Radians per position of each rotated pair: float32 [head_dim / 2], every step rounded as in the reference.

    YaRN (arXiv 2309.00071): pairs that turn more than `beta_fast` times over the original context keep their
    frequency, those below `beta_slow` turns are slowed by `factor`, and a linear ramp over the pair index blends.
    """
    pairs = config.head_dim // 2
    one = np.float32(1.0)
    exponents = np.arange(0, config.head_dim, 2, dtype=np.float32) / np.float32(config.head_dim)
    periods = np.power(np.float32(config.rope_theta), exponents, dtype=np.float32)
    plain = one / periods
    yarn = config.yarn
    if yarn is None or yarn.factor <= 1.0:
        return np.asarray(plain, dtype=np.float32)
    low, high = (
        _pair_at(config, yarn.original_max_position_embeddings, beta) for beta in (yarn.beta_fast, yarn.beta_slow)
    )
    if yarn.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0.0), min(high, config.head_dim - 1.0)
    if low == high:
        high += 0.001
    slowed = one / (np.float32(yarn.factor) * periods)
    ramp = (np.arange(pairs, dtype=np.float32) - np.float32(low)) / np.float32(high - low)
    keep = one - np.clip(ramp, np.float32(0), one)
    return np.asarray(slowed * (one - keep) + plain * keep, dtype=np.float32)


def _pair_at(config: ModelConfig, positions: int, turns: float) -> float:
    """The (fractional) pair index that makes `turns` turns over `positions` positions."""
    return config.head_dim / 2 * math.log(positions / (turns * 2 * math.pi)) / math.log(config.rope_theta)


class RotaryTable:
    """cos and sin of every position, times the concentration: two float32 arrays [positions, head_dim / 2].

    Grows by doubling as positions are asked for, up to `max_position_embeddings` (33 MB at 131,072).
    """

    def __init__(self, config: ModelConfig) -> None:
        self.inverse_frequencies = inverse_frequencies(config)
        self.concentration = config.yarn.concentration if config.yarn is not None else 1.0
        self._limit = config.max_position_embeddings
        self._cos, self._sin = self._build(0)

    def rotations(self, positions: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """[count, head_dim]: the cosines, then the sines of any positions, times the concentration."""
        angles = (positions[:, None] * self.inverse_frequencies).astype(np.float64)
        table = np.concatenate([np.cos(angles), np.sin(angles)], axis=-1) * self.concentration
        return table.astype(np.float32)

    def _build(self, positions: int) -> tuple[mx.array, mx.array]:
        angles = np.arange(positions, dtype=np.float32)[:, None] * self.inverse_frequencies
        exact = angles.astype(np.float64)
        scale = self.concentration
        return (
            mx.array((np.cos(exact) * scale).astype(np.float32)),
            mx.array((np.sin(exact) * scale).astype(np.float32)),
        )

    def tables(self, positions: int) -> tuple[mx.array, mx.array]:
        """(cos, sin), each float32 [>= positions, head_dim / 2]."""
        have = self._cos.shape[0]
        if positions > have:
            self._cos, self._sin = self._build(max(positions, min(self._limit, max(_FIRST_TABLE, 2 * have))))
        return self._cos, self._sin

    def span(self, start: int, length: int) -> tuple[mx.array, mx.array]:
        """(cos, sin) of consecutive positions, each [length, head_dim / 2]."""
        cos, sin = self.tables(start + length)
        end = start + length
        return cos[start:end], sin[start:end]

    def rows(self, positions: Sequence[int]) -> tuple[mx.array, mx.array]:
        """(cos, sin) of one position per row, each [rows or 1, 1, 1, head_dim / 2] (or the last
        two axes alone where all rows agree), to broadcast over heads."""
        if len(set(positions)) == 1:
            return self.span(positions[0], 1)
        cos, sin = self.tables(max(positions) + 1)
        index = mx.array(list(positions), dtype=mx.int32)
        return mx.take(cos, index, axis=0)[:, None, None, :], mx.take(sin, index, axis=0)[:, None, None, :]


def rotate(x: mx.array, cos: mx.array, sin: mx.array, dtype: mx.Dtype) -> mx.array:
    """Rotates the pairs (i, i + D/2) of x [B, heads, L, D] in float32 and rounds once to `dtype`."""
    half = x.shape[-1] // 2
    first, second = x[..., :half], x[..., half:]
    return mx.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1).astype(dtype)
