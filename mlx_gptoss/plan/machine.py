"""The machine to plan for: this one, or one that a user describes."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from pathlib import Path

from mlx_gptoss.errors import InvalidRequestError
from mlx_gptoss.plan.chips import GIB, Chip, default_working_set, find_chip

_MOST_GIB = 65_536
"""Memory of a machine that somebody may describe."""


@dataclass(frozen=True, slots=True)
class Machine:
    """Memory in bytes. `working_set` is what a model and its caches may take without swapping or being refused.

    `chip` is None where no cost model applies (anything but Apple's GPUs). `described` machines are not this one.
    """

    name: str
    memory: int
    working_set: int
    chip: Chip | None
    described: bool = False

    @property
    def metal(self) -> bool:
        return self.chip is not None


def described_machine(chip: str, memory_gib: float | None) -> Machine:
    """A machine by chip and memory, with macOS's default limit."""
    if memory_gib is not None and not 0 < memory_gib <= _MOST_GIB:
        raise InvalidRequestError(
            "memory is out of range", param="memory", expected=f"above 0, at most {_MOST_GIB} GB", got=str(memory_gib)
        )
    found = find_chip(chip, memory_gib)
    size = int((memory_gib if memory_gib is not None else found.memory_gib[-1]) * GIB)
    return Machine(f"{found.name}, {size / GIB:g} GB", size, default_working_set(size), found, described=True)


def this_machine() -> Machine:
    """The machine that runs this."""
    if platform.system() == "Darwin" and platform.machine() == "arm64":
        return _this_mac()
    import mlx.core as mx

    if mx.default_device().type == mx.DeviceType.gpu:
        info = mx.device_info()
        total = int(info.get("total_memory", info.get("memory_size", 0)) or 0)
        free = int(info.get("free_memory", total) or total)
        return Machine(str(info.get("device_name", "GPU")), total, int(free * 0.95), None)
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return Machine(f"{platform.machine()} CPU", total, int(_available(total) * 0.9), None)


def _this_mac() -> Machine:
    import mlx.core as mx

    info = mx.device_info()
    memory = int(info["memory_size"])
    # What this process holds already (another loaded model) is gone from the limit.
    limit = max(0, int(info["max_recommended_working_set_size"]) - mx.get_active_memory())
    try:
        chip: Chip | None = find_chip(str(info.get("device_name", "")), memory / GIB)
    except InvalidRequestError:
        chip = None
    return Machine(f"{info.get('device_name', 'Apple GPU')}, {memory / GIB:g} GB", memory, limit, chip)


def _available(total: int) -> int:
    """What Linux could give a new program without swapping, within the control group's bound if there is one."""
    available = total
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                available = int(line.split()[1]) * 1024
        limit = Path("/sys/fs/cgroup/memory.max").read_text().strip()
        if limit.isdecimal():
            available = min(available, int(limit))
    except OSError:
        return available
    return available
