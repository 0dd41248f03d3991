"""How many kernels a step launches: the operations of its graph that are more than another view of their input."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import mlx.core as mx

# Operations that give their input's buffer another shape, or nothing at all to the device.
VIEWS = frozenset(
    {
        "AsStrided",
        "Broadcast",
        "BroadcastAxes",
        "Copy",
        "Depends",
        "ExpandDims",
        "Flatten",
        "NumberOfElements",
        "Reshape",
        "Slice",
        "Split",
        "Squeeze",
        "StopGradient",
        "Transpose",
        "Unflatten",
        "View",
    }
)


def count_launches(step: Callable[[mx.array], mx.array | list[mx.array]], token_ids: mx.array) -> Counter[str]:
    """Traces `step(token_ids)` without running it; how often each operation that is no view occurs.

    On a GPU each is one launch. A CPU splits fused operations such as RMS norm into their parts.
    """
    counts: Counter[str] = Counter()

    def note(event: dict[str, Any]) -> None:
        if event["type"] == "primitive" and event["name"] not in VIEWS:
            counts[str(event["name"])] += 1

    mx.export_function(note, step, token_ids)
    return counts
