"""A sequence's cache as plain numpy arrays and back, for keeping it outside the device's memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import mlx.core as mx
import numpy as np
import numpy.typing as npt

from mlx_gptoss.cache import FullLayerCache, SequenceCache, SlidingLayerCache, Snapshot

Arrays = dict[str, npt.NDArray[Any]]


def pack(cache: SequenceCache, snapshots: Sequence[Snapshot]) -> Arrays:
    """Copies of the used positions and of all rings; bfloat16 travels as its 16-bit patterns. Evaluates."""
    arrays: dict[str, mx.array] = {}
    for index, layer in enumerate(cache.layers):
        if isinstance(layer, FullLayerCache):
            arrays[f"layers.{index}.k"], arrays[f"layers.{index}.v"] = layer.view()
        else:
            arrays[f"layers.{index}.k"], arrays[f"layers.{index}.v"] = layer.ring_k, layer.ring_v
    for number, snapshot in enumerate(snapshots):
        for ring, (keys, values) in enumerate(snapshot.rings):
            arrays[f"snapshots.{number}.{ring}.k"] = keys
            arrays[f"snapshots.{number}.{ring}.v"] = values
    packed = {name: np.array(_bits(array)) for name, array in arrays.items()}
    places = [(cache.offset, cache.written), *((snapshot.offset, snapshot.written) for snapshot in snapshots)]
    packed["places"] = np.array(places, dtype=np.int64)
    return packed


def unpack(empty: SequenceCache, arrays: Mapping[str, npt.NDArray[Any]]) -> tuple[SequenceCache, tuple[Snapshot, ...]]:
    """Fills an empty cache of the same model with what `pack` gave."""
    places = [(int(offset), int(written)) for offset, written in arrays["places"]]
    dtype = empty.dtype
    (offset, written), rings = places[0], 0
    for index, layer in enumerate(empty.layers):
        keys, values = (_values(arrays[f"layers.{index}.{part}"], dtype) for part in "kv")
        if isinstance(layer, SlidingLayerCache):
            layer.ring_k, layer.ring_v = keys, values
            rings += 1
        elif offset:
            layer.append(keys, values)
    empty.advance(written)
    empty.trim(written - offset)
    snapshots = []
    for number, (offset, written) in enumerate(places[1:]):
        pairs = tuple(
            (
                _values(arrays[f"snapshots.{number}.{ring}.k"], dtype),
                _values(arrays[f"snapshots.{number}.{ring}.v"], dtype),
            )
            for ring in range(rings)
        )
        snapshots.append(Snapshot(offset, pairs, written))
    return empty, tuple(snapshots)


def _bits(array: mx.array) -> mx.array:
    return mx.contiguous(array).view(mx.uint16) if array.dtype == mx.bfloat16 else array


def _values(array: npt.NDArray[Any], dtype: mx.Dtype) -> mx.array:
    return mx.array(array).view(mx.bfloat16) if dtype == mx.bfloat16 else mx.array(array)
