"""The executor's C interface through ctypes. One launch at a time in a process."""

from __future__ import annotations

import ctypes
import functools
import sys
import threading
from collections.abc import Callable
from pathlib import Path

from tests.bench.toolchain import runtime_library

FAULT_KINDS = {
    1: "fault",
    2: "divergence",
    3: "threadgroup_memory",
    4: "inactive_lane",
    5: "arithmetic",
    6: "timeout",
    7: "out_of_bounds",
    8: "uninitialised",
    9: "race",
    10: "read_only",
    11: "stack",
    12: "misaligned",
}


class Buffer(ctypes.Structure):
    """`Buffer` of runtime/launch.h."""

    _fields_ = (
        ("data", ctypes.c_void_p),
        ("size", ctypes.c_uint64),
        ("writable", ctypes.c_uint32),
        ("initialised", ctypes.c_uint32),
        ("shadow", ctypes.c_void_p),
        ("order", ctypes.c_void_p),
        ("bytes_read", ctypes.c_uint64),
        ("bytes_written", ctypes.c_uint64),
        ("loads", ctypes.c_uint64),
        ("stores", ctypes.c_uint64),
    )


class Launch(ctypes.Structure):
    """`Launch` of runtime/launch.h."""

    _fields_ = (
        ("entry", ctypes.c_void_p),
        ("arguments", ctypes.c_void_p),
        ("grid", ctypes.c_uint32 * 3),
        ("group", ctypes.c_uint32 * 3),
        ("schedule", ctypes.c_uint32),
        ("checked", ctypes.c_uint32),
        ("seed", ctypes.c_uint64),
        ("timeout_ns", ctypes.c_uint64),
        ("buffers", ctypes.POINTER(Buffer)),
        ("buffer_count", ctypes.c_uint32),
        ("threadgroup_limit", ctypes.c_uint32),
        ("status", ctypes.c_uint32),
        ("synchronisations", ctypes.c_uint64),
        ("threadgroup_bytes", ctypes.c_uint64),
        ("fault_address", ctypes.c_uint64),
        ("fault_code", ctypes.c_uint64),
        ("fault_line", ctypes.c_uint32),
        ("fault_threadgroup", ctypes.c_uint32 * 3),
        ("fault_lane", ctypes.c_uint32),
        ("fault_simdgroup", ctypes.c_uint32),
        ("fault_write", ctypes.c_uint32),
        ("fault_size", ctypes.c_uint32),
        ("message", ctypes.c_char * 2048),
    )


class _Alarm(threading.Thread):
    """Calls `interrupt` after `seconds` and, should that have come too early, every tenth of a second until `stop`."""

    def __init__(self, seconds: float, interrupt: Callable[[], None]) -> None:
        super().__init__(daemon=True)
        self._seconds = seconds
        self._interrupt = interrupt
        self._done = threading.Event()
        self._guard = threading.Lock()

    def run(self) -> None:
        seconds = self._seconds
        while not self._done.wait(seconds):
            with self._guard:
                if not self._done.is_set():
                    self._interrupt()
            seconds = 0.1

    def stop(self) -> None:
        with self._guard:
            self._done.set()


class Runtime:
    """The loaded executor."""

    def __init__(self) -> None:
        if sys.platform != "darwin":
            ctypes.CDLL("libm.so.6", mode=ctypes.RTLD_GLOBAL)
        self._library = ctypes.CDLL(str(runtime_library()), mode=ctypes.RTLD_GLOBAL)
        self._launch: Callable[..., int] = self._library.bench_launch
        self._library.bench_launch.argtypes = [ctypes.POINTER(Launch)]
        self._library.bench_map.argtypes = [ctypes.c_uint64]
        self._library.bench_map.restype = ctypes.c_void_p
        self._library.bench_unmap.argtypes = [ctypes.c_void_p, ctypes.c_uint64]
        self._interrupt: Callable[[], None] = self._library.bench_interrupt
        self._lock = threading.Lock()
        self._entries: dict[Path, tuple[ctypes.CDLL, int]] = {}

    def entry(self, path: Path) -> int:
        """Address of a compiled kernel's entry."""
        if path not in self._entries:
            library = ctypes.CDLL(str(path))
            address = ctypes.cast(library.msl_entry, ctypes.c_void_p).value or 0
            self._entries[path] = (library, address)
        return self._entries[path][1]

    def map(self, size: int) -> int:
        """`size` bytes (whole pages) between two pages that fault."""
        address = self._library.bench_map(size)
        if not address:
            raise MemoryError(f"cannot map {size} bytes")
        return int(address)

    def unmap(self, address: int, size: int) -> None:
        """Gives back what `map` gave."""
        self._library.bench_unmap(address, size)

    def launch(self, launch: Launch, timeout_s: float) -> None:
        """Runs a launch; `launch.status` says how it ended."""
        with self._lock:
            alarm = _Alarm(timeout_s, self._interrupt)
            alarm.start()
            try:
                status = self._launch(ctypes.byref(launch))
            finally:
                alarm.stop()
        if status != 0:
            raise MemoryError("the shader bench cannot map the lanes' stacks")


@functools.cache
def runtime() -> Runtime:
    """The executor, loaded once in a process."""
    return Runtime()
