"""Runs a kernel on the CPU and reports what it did."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from tests.bench.dtypes import Array, ElementType, element_type, to_floats, to_numpy
from tests.bench.faults import ShaderCompileError, ShaderFaultError
from tests.bench.lines import line_of
from tests.bench.memory import GuardedBuffer, Side, allocate, element_bits, fill
from tests.bench.native import FAULT_KINDS, Buffer, Launch, Runtime, runtime
from tests.bench.rewrite import execution_unit
from tests.bench.spec import KernelSpec, MetalText, Template, generate
from tests.bench.toolchain import TEXT_NAME, build_kernel, key, parse_diagnostics

Schedule: TypeAlias = Literal["forward", "reverse", "random"]
Size3: TypeAlias = tuple[int, int, int]
_SCHEDULES = {"forward": 0, "reverse": 1, "random": 2}
# Inputs above this size are not copied between guard pages in `fast` runs.
_COPY_LIMIT = 1 << 20
THREADGROUP_LIMIT = 32768
_ALIGNMENT = 16


@dataclass(frozen=True, slots=True)
class RunResult:
    """What a launch left: outputs (storage arrays: bfloat16 as uint16, bool as uint8) and, if counted, its traffic.

    The dictionaries are keyed by buffer name and empty unless `count_bytes` was set. `threadgroup_bytes` is the largest
    amount of threadgroup memory a threadgroup used; `synchronisations` counts meetings of simdgroups and threadgroups.
    """

    outputs: list[Array]
    output_types: list[ElementType]
    threadgroups: int
    synchronisations: int
    threadgroup_bytes: int
    bytes_read: dict[str, int] = field(default_factory=dict)
    bytes_written: dict[str, int] = field(default_factory=dict)
    unique_read: dict[str, int] = field(default_factory=dict)
    unique_written: dict[str, int] = field(default_factory=dict)
    loads: dict[str, int] = field(default_factory=dict)
    stores: dict[str, int] = field(default_factory=dict)
    launches: int = 1

    def floats(self, index: int) -> NDArray[np.float32]:
        """Output `index` as float32."""
        return to_floats(self.outputs[index], self.output_types[index])


@dataclass(slots=True)
class _Bound:
    """A parameter's memory during a launch. `owner` keeps borrowed memory alive."""

    name: str
    address: int
    size: int
    writable: bool
    guarded: GuardedBuffer | None = None
    owner: object = None
    shadow: Array | None = None


@functools.lru_cache(maxsize=4096)
def _compiled(unit: str, text: str, function: str, checked: bool) -> Path:
    path = build_kernel(unit, key(unit, str(checked)), checked)
    if isinstance(path, str):
        found = parse_diagnostics(path, text, ("error", "fatal error"))
        if not found:
            raise ShaderCompileError(function, parse_diagnostics(f"{function}:0:0: error: {path}", text, ("error",)))
        raise ShaderCompileError(function, found)
    return path


@functools.lru_cache(maxsize=4096)
def _generated(
    spec: KernelSpec,
    inputs: tuple[tuple[tuple[int, ...], ElementType], ...],
    outputs: tuple[ElementType, ...],
    template: Template,
) -> tuple[MetalText, str]:
    text = generate(spec, inputs, outputs, template)
    return text, execution_unit(text)


def run_kernel(
    spec: KernelSpec,
    inputs: Sequence[object],
    *,
    template: Template = (),
    grid: Size3,
    threadgroup: Size3,
    output_shapes: Sequence[Sequence[int]],
    output_dtypes: Sequence[object],
    init_value: float | None = None,
    schedule: Schedule = "forward",
    seed: int = 0,
    count_bytes: bool = False,
    checked: bool = False,
    allow_unwritten: bool = False,
    guard: Side | Literal["fast"] = "end",
    timeout_s: float = 60.0,
    threadgroup_limit: int = THREADGROUP_LIMIT,
) -> RunResult:
    """Executes one launch as `mx.fast.metal_kernel` would.

    `guard` places every buffer against the page that faults behind ("end") or before ("start") it; "fast" leaves large
    inputs where they are. `threadgroup_limit` is the bytes of threadgroup memory that the GPU has, Apple's unless said
    otherwise. Raises ShaderCompileError and ShaderFaultError.
    """
    spec = KernelSpec(
        spec.name,
        tuple(spec.input_names),
        tuple(spec.output_names),
        spec.source,
        spec.header,
        spec.ensure_row_contiguous,
        spec.atomic_outputs,
    )
    arrays = [to_numpy(value) for value in inputs]
    if len(arrays) != len(spec.input_names):
        raise ValueError(f"{spec.name} takes {len(spec.input_names)} inputs, got {len(arrays)}")
    if spec.ensure_row_contiguous:
        arrays = [(a if a.ndim == 0 else np.ascontiguousarray(a), kind) for a, kind in arrays]
    kinds = tuple(element_type(d) for d in output_dtypes)
    shapes = tuple((tuple(a.shape), kind) for a, kind in arrays)
    text, unit = _generated(spec, shapes, kinds, tuple(template))
    level = (1 if count_bytes or checked else 0) | (2 if checked else 0)
    path = _compiled(unit, text.text, text.function, level > 0)
    machine = runtime()
    bound: list[_Bound] = []
    try:
        for (array, kind), name in zip(arrays, spec.input_names, strict=True):
            bound.append(_bind_input(machine, array, kind, name, guard, level > 0))
        for shape, kind, name in zip(output_shapes, kinds, spec.output_names, strict=True):
            bound.append(_bind_output(machine, tuple(shape), kind, name, guard, level > 0, init_value))
        launch = _launch(
            machine,
            path,
            text,
            arrays,
            bound,
            grid,
            threadgroup,
            schedule,
            seed,
            level,
            init_value,
            timeout_s,
            threadgroup_limit,
        )
        outputs = bound[len(arrays) :]
        results = [
            _guarded(b).array(kind, tuple(shape)) for b, kind, shape in zip(outputs, kinds, output_shapes, strict=True)
        ]
        if init_value is None and not allow_unwritten:
            for b, kind, array in zip(outputs, kinds, results, strict=True):
                _check_written(text, b, kind, array)
        return _result(results, list(kinds), launch, bound, count_bytes)
    finally:
        for b in bound:
            if b.guarded is not None:
                machine.unmap(b.guarded.base, b.guarded.mapped)


def _guarded(bound: _Bound) -> GuardedBuffer:
    if bound.guarded is None:
        raise ValueError(f"{bound.name} has no memory of its own")
    return bound.guarded


def _bind_input(machine: Runtime, array: Array, kind: ElementType, name: str, guard: str, checked: bool) -> _Bound:
    size = _extent(array, kind)
    # A GPU's buffers start on pages; MLX's on CPUs on 8 bytes.
    borrowable = array.flags.c_contiguous and array.ctypes.data % _ALIGNMENT == 0
    if guard == "fast" and not checked and size > _COPY_LIMIT and borrowable:
        return _Bound(name, array.ctypes.data, size, False, None, array, np.zeros(size, np.uint8) if checked else None)
    buffer = allocate(machine, size, "start" if guard == "start" else "end")
    if size:
        flat = np.lib.stride_tricks.as_strided(array, (size // kind.size,), (kind.size,))
        buffer.bytes_view().view(kind.storage)[:] = flat
    return _Bound(name, buffer.address, size, False, buffer, None, np.zeros(size, np.uint8) if checked else None)


def _extent(array: Array, kind: ElementType) -> int:
    """Bytes from the first to the last element of an array with non-negative strides."""
    if array.size == 0:
        return 0
    return int(sum((n - 1) * s for n, s in zip(array.shape, array.strides, strict=True))) + kind.size


def _bind_output(
    machine: Runtime,
    shape: tuple[int, ...],
    kind: ElementType,
    name: str,
    guard: str,
    checked: bool,
    init: float | None,
) -> _Bound:
    size = int(np.prod(shape, dtype=np.int64)) * kind.size
    buffer = allocate(machine, size, "start" if guard == "start" else "end")
    fill(buffer, kind, kind.poison if init is None else element_bits(kind, init))
    return _Bound(name, buffer.address, size, True, buffer, None, np.zeros(size, np.uint8) if checked else None)


def _launch(
    machine: Runtime,
    path: Path,
    text: MetalText,
    arrays: Sequence[tuple[Array, ElementType]],
    bound: Sequence[_Bound],
    grid: Size3,
    threadgroup: Size3,
    schedule: Schedule,
    seed: int,
    checked: int,
    init_value: float | None,
    timeout_s: float,
    threadgroup_limit: int,
) -> Launch:
    extra: list[Array] = []
    pointers: list[int] = []
    for p in text.parameters:
        if p.role == "input":
            pointers.append(bound[p.buffer].address)
        elif p.role == "output":
            pointers.append(bound[len(arrays) + p.buffer].address)
        elif p.role != "attribute":
            array, kind = arrays[p.buffer]
            extra.append(_metadata(p.role, array, kind))
            pointers.append(extra[-1].ctypes.data)
    packed = (ctypes.c_void_p * max(1, len(pointers)))(*pointers)
    buffers = (Buffer * max(1, len(bound)))()
    for i, b in enumerate(bound):
        buffers[i] = Buffer(b.address, b.size, b.writable, not b.writable or init_value is not None)
        if b.shadow is not None:
            buffers[i].shadow = b.shadow.ctypes.data
    launch = Launch()
    launch.entry = machine.entry(path)
    launch.arguments = ctypes.cast(packed, ctypes.c_void_p)
    for i in range(3):
        launch.grid[i] = grid[i]
        launch.group[i] = min(threadgroup[i], grid[i])
    lanes = launch.group[0] * launch.group[1] * launch.group[2]
    if not 0 < lanes <= 1024:
        raise ShaderFaultError(text.function, "launch", f"a threadgroup of {lanes} threads: Metal allows 1 to 1024")
    launch.schedule = _SCHEDULES[schedule]
    launch.checked = checked
    launch.seed = seed
    launch.timeout_ns = int(timeout_s * 1e9)
    launch.buffers = buffers
    launch.buffer_count = len(bound)
    launch.threadgroup_limit = threadgroup_limit
    machine.launch(launch, timeout_s)
    if launch.status:
        raise _fault(path, text, launch, bound)
    for b in bound:
        if b.guarded is not None:
            offset = b.guarded.overrun()
            if offset is not None:
                raise ShaderFaultError(
                    text.function, "out_of_bounds", "write outside a buffer", buffer=b.name, offset=offset
                )
    return launch


def _metadata(role: str, array: Array, kind: ElementType) -> Array:
    if role == "shape":
        return np.array(array.shape, np.int32)
    if role == "strides":
        return np.array([s // kind.size for s in array.strides], np.int64)
    return np.array([array.ndim], np.int32)


def _fault(path: Path, text: MetalText, launch: Launch, bound: Sequence[_Bound]) -> ShaderFaultError:
    kind = FAULT_KINDS[launch.status]
    message = bytes(launch.message).decode(errors="replace")
    buffer, offset = None, None
    if kind in ("fault", "out_of_bounds", "read_only", "uninitialised", "race"):
        buffer, offset = _nearest(launch.fault_address, bound)
        message = message or "access outside every buffer"
        if buffer is None and kind == "fault":
            message += f" at address {launch.fault_address:#x}"
    message = message or {
        "arithmetic": "integer division by zero",
        "timeout": "ran longer than its limit",
        "stack": "a lane ran out of private memory",
        "misaligned": "access not aligned to its width",
    }.get(kind, kind)
    lines = text.text.split("\n")
    line = launch.fault_line or None
    if line is None and launch.fault_code:
        line = line_of(path, launch.fault_code, TEXT_NAME)
    group = launch.fault_threadgroup
    return ShaderFaultError(
        text.function,
        kind,
        message,
        buffer=buffer,
        offset=offset,
        line=line,
        source=lines[line - 1] if line and line <= len(lines) else "",
        threadgroup=(group[0], group[1], group[2]),
        simdgroup=launch.fault_simdgroup if launch.fault_simdgroup != 0xFFFFFFFF else None,
        lane=launch.fault_lane if kind != "divergence" else None,
    )


def _nearest(address: int, bound: Sequence[_Bound]) -> tuple[str | None, int | None]:
    """The buffer next to a faulting address, within a mebibyte, and the offset from its start."""
    best: tuple[int, str, int] | None = None
    for b in bound:
        distance = max(b.address - address, address - (b.address + b.size) + 1, 0)
        if distance < 1 << 20 and (best is None or distance < best[0]):
            best = (distance, b.name, address - b.address)
    return (best[1], best[2]) if best else (None, None)


def _check_written(text: MetalText, bound: _Bound, kind: ElementType, array: Array) -> None:
    """Raises for elements that still hold the poison (one-byte types need the exact record of a checked run)."""
    if bound.shadow is not None:
        missing = np.flatnonzero((bound.shadow & 2) == 0) // kind.size
    elif kind.size == 1:
        return
    else:
        missing = np.flatnonzero(array.reshape(-1).view(f"u{kind.size}") == kind.poison)
    if missing.size:
        count = len(np.unique(missing))
        raise ShaderFaultError(
            text.function,
            "unwritten",
            f"{count} of {array.size} elements were never written, the first is element {int(missing[0])}",
            buffer=bound.name,
            offset=int(missing[0]) * kind.size,
        )


def _result(
    outputs: list[Array], kinds: list[ElementType], launch: Launch, bound: Sequence[_Bound], count: bool
) -> RunResult:
    groups = 1
    for i in range(3):
        groups *= -(-launch.grid[i] // launch.group[i])
    base = RunResult(outputs, kinds, groups, launch.synchronisations, launch.threadgroup_bytes)
    if not count:
        return base
    for i, b in enumerate(bound):
        record = launch.buffers[i]
        base.bytes_read[b.name] = record.bytes_read
        base.bytes_written[b.name] = record.bytes_written
        base.loads[b.name] = record.loads
        base.stores[b.name] = record.stores
        if b.shadow is not None:
            base.unique_read[b.name] = int(np.count_nonzero(b.shadow & 1))
            base.unique_written[b.name] = int(np.count_nonzero(b.shadow & 2))
    return base
