"""The device's memory while an engine runs: kept wired, watched, and given back before the system must take it.

On a Mac the GPU shares memory with everything else. Weights that are not wired are paged out under pressure, and a
GPU that asks for more than the system can wire brings the whole machine down. So the limit is set once after loading,
and every step looks at what is left: first freed buffers go, then stored conversations, then prefill takes smaller
chunks, and last new requests are turned away.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Final, Protocol

import mlx.core as mx
import numpy as np

from mlx_gptoss.engine.pace import LARGEST_CHUNK, SMALLEST_CHUNK
from mlx_gptoss.engine.row_sampler import RowSampler
from mlx_gptoss.engine.sampling import Sampler
from mlx_gptoss.engine.token_model import TokenModel
from mlx_gptoss.request import SamplingParams

NEAR_SHARE: Final = 0.90
FULL_SHARE: Final = 0.97
"""Of the working set: from here on memory is given back, and from here on nothing new is taken on."""
POSITION_BYTES: Final = 256 << 10
"""Activations of one prefill position, all experts' intermediates included (estimate for both released models)."""
LARGEST_CACHE: Final = 2 << 30
SMALLEST_CACHE: Final = 128 << 20
WARM_TOKENS: Final = 256
"""Long enough that nearly every expert of both released models is picked once."""


class Device(Protocol):
    """What can be asked of a device's memory; bytes everywhere."""

    def working_set(self) -> int | None:
        """The most that may be in use without paging or failing; None where the system's own paging is the bound."""
        ...

    def active(self) -> int:
        """In use by arrays."""
        ...

    def cached(self) -> int:
        """Freed and kept for reuse."""
        ...

    def set_wired_limit(self, limit: int) -> None:
        """Keeps up to `limit` bytes resident."""
        ...

    def set_cache_limit(self, limit: int) -> None:
        """Keeps at most `limit` freed bytes."""
        ...

    def clear_cache(self) -> None:
        """Gives all freed buffers back."""
        ...


class MlxDevice:
    """The device MLX runs on."""

    def __init__(self) -> None:
        self._metal = mx.metal.is_available()
        self._working_set: int | None = None
        if mx.default_device().type == mx.DeviceType.gpu:
            info = mx.device_info()
            size = info.get("max_recommended_working_set_size", info.get("total_memory", 0))
            self._working_set = int(size or 0) or None

    def working_set(self) -> int | None:
        return self._working_set

    def active(self) -> int:
        return mx.get_active_memory()

    def cached(self) -> int:
        return mx.get_cache_memory()

    def set_wired_limit(self, limit: int) -> None:
        # Elsewhere device memory is resident anyway.
        if self._metal:
            mx.set_wired_limit(limit)

    def set_cache_limit(self, limit: int) -> None:
        mx.set_cache_limit(limit)

    def clear_cache(self) -> None:
        mx.clear_cache()


class Pressure(IntEnum):
    """How close memory is to its end."""

    NONE = 0
    NEAR = 1
    FULL = 2


class DeviceMemory:
    """Sets a device's limits and says how much room is left. Used from the engine's thread."""

    def __init__(self, device: Device | None = None) -> None:
        self.device: Device = MlxDevice() if device is None else device

    def prepare(self, growth: int) -> None:
        """After loading: wires what is in use plus `growth` bytes of caches and activations, as far as the system
        allows, and bounds the freed buffers kept for reuse by the room left."""
        limit = self.device.working_set()
        if limit is None:
            return
        needed = self.device.active() + growth
        self.device.set_wired_limit(min(needed, limit))
        self.device.set_cache_limit(max(SMALLEST_CACHE, min(LARGEST_CACHE, (limit - needed) // 2)))

    def headroom(self) -> int | None:
        """Bytes left below the working set, freed buffers counted as room; None without a bound."""
        limit = self.device.working_set()
        return None if limit is None else max(0, limit - self.device.active())

    def pressure(self) -> Pressure:
        """Where memory stands. Near the limit freed buffers are given back first."""
        limit = self.device.working_set()
        if limit is None:
            return Pressure.NONE
        active, cached = self.device.active(), self.device.cached()
        if cached and active + cached > NEAR_SHARE * limit:
            self.device.clear_cache()
        if active > FULL_SHARE * limit:
            return Pressure.FULL
        return Pressure.NEAR if active > NEAR_SHARE * limit else Pressure.NONE

    def chunk_limit(self) -> int:
        """Prompt positions that one pass may take: their activations fit into half of the room left."""
        room = self.headroom()
        if room is None:
            return LARGEST_CHUNK
        positions = room // 2 // POSITION_BYTES // SMALLEST_CHUNK * SMALLEST_CHUNK
        return max(SMALLEST_CHUNK, min(LARGEST_CHUNK, positions))

    def warm_up(self, model: TokenModel) -> None:
        """One short prompt, one decode step and one draw: the first request finds kernels compiled and weights in
        memory. Nothing where the device has no memory of its own to fill."""
        if self.device.working_set() is None:
            return None
        while True:
            try:
                return self._run_once(model)
            except Exception as error:
                if not model.mend(error):
                    raise

    def _run_once(self, model: TokenModel) -> None:
        # Ids far apart, so that their experts differ.
        ids = (np.arange(WARM_TOKENS, dtype=np.int64) * 7919 % model.config.used_vocab_size).astype(np.int32)
        cache = model.make_cache()
        tokens = min(WARM_TOKENS, self.chunk_limit(), model.config.max_position_embeddings - 1)
        mx.eval(model.prefill(mx.array(ids[None, :tokens]), cache, need_logits=True))
        logits = model.decode(mx.array(ids[:1]), [cache])
        mx.eval(Sampler(backend=model.draw_backend).sample(logits, [RowSampler(SamplingParams())]).arrays())
        self.device.clear_cache()
