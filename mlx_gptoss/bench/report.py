"""What a run found: lines for people as they come, one JSON object for machines, the record of a machine."""

from __future__ import annotations

import datetime
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import mlx.core as mx

from mlx_gptoss import __version__
from mlx_gptoss.bench.spec import BenchSpec, Ceiling, Measurement
from mlx_gptoss.plan.machine import this_machine

HEADER = (
    f"{'engine':11}{'phase':8}{'tokens':>7}{'batch':>6}{'tok/s':>9}{'GB/s':>8}{'TFLOP/s':>9}"
    f"{'ceiling':>8}{'memory':>9}{'launches':>9}{'host us':>9}{'wait us':>9}"
)


@dataclass(frozen=True, slots=True)
class Report:
    """A finished run. `failures` says what broke an engine, by its name; what it had measured before is there."""

    spec: BenchSpec
    ceiling: Ceiling
    measurements: tuple[Measurement, ...]
    failures: Mapping[str, str] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "schema": 1,
            "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d"),
            "machine": machine_record(),
            # Results are made to be shared: the model's name, not where it lies.
            "spec": self.spec.to_dict() | {"folder": self.spec.folder and Path(self.spec.folder).name},
            "ceiling": asdict(self.ceiling),
            "measurements": [measurement.to_dict(self.ceiling) for measurement in self.measurements],
        } | ({"failures": dict(self.failures)} if self.failures else {})


def machine_record() -> dict[str, Any]:
    """What a reader of the numbers needs to know about the machine."""
    info = mx.device_info() if mx.default_device().type == mx.DeviceType.gpu else {}
    return {
        "device": str(info.get("device_name", platform.processor() or platform.machine())),
        "architecture": str(info.get("architecture", platform.machine())),
        "memory_bytes": int(info.get("memory_size", info.get("total_memory", 0)) or this_machine().memory),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "mlx": str(getattr(mx, "__version__", "unknown")),
        "mlx_gptoss": __version__,
    }


def model_label(spec: BenchSpec) -> str:
    """The model of a spec, for people."""
    if spec.folder is not None:
        return Path(spec.folder).name
    layers = "" if spec.layers is None else f", {spec.layers} layers"
    return f"random {spec.random}{layers}, {spec.precisions.label}"


def ceiling_line(ceiling: Ceiling) -> str:
    """The first line of a report."""
    return (
        f"ceiling: copy {ceiling.copy_bytes_s / 1e9:.0f} GB/s, matrix product {ceiling.matmul_flops / 1e12:.3g} TFLOP/s"
    )


def line(measurement: Measurement, ceiling: Ceiling) -> str:
    """One line under `HEADER`."""
    m = measurement
    decode = m.phase == "decode"
    flops = "" if decode else _short(m.flops / m.seconds / 1e12)
    host = f"{m.host_seconds * 1e6:.0f}" if decode else ""
    wait = f"{m.wait_seconds * 1e6:.0f}" if decode else ""
    read = _short(m.bytes_per_second / 1e9)
    launches = str(m.launches) if m.launches else ""
    return (
        f"{m.engine:11}{m.phase:8}{m.length:>7}{m.batch:>6}{m.tokens_per_second:>9.4g}{read:>8}"
        f"{flops:>9}{m.share(ceiling):>8.1%}{m.peak_bytes / 1e9:>6.2f} GB{launches:>9}{host:>9}{wait:>9}".rstrip()
    )


def _short(figure: float) -> str:
    """Three digits, and never as wide as a column."""
    return f"{figure:.3g}" if figure >= 0.001 else "<0.001"


def ratios(measurements: Sequence[Measurement]) -> list[str]:
    """Lines of how many times faster we are wherever both engines were measured."""
    peers = {(m.phase, m.length, m.batch): m for m in measurements if m.engine == "mlx-lm"}
    lines = []
    for ours in measurements:
        peer = peers.get((ours.phase, ours.length, ours.batch))
        if ours.engine == "mlx-gptoss" and peer is not None:
            lines.append(
                f"{ours.phase} {ours.length} x{ours.batch}: {peer.seconds / ours.seconds:.2f} times mlx-lm "
                f"({ours.tokens_per_second:.4g} against {peer.tokens_per_second:.4g} tok/s)"
            )
    return lines
