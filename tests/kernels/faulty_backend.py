"""Back ends that go wrong on purpose, for the self-check. The good launches answer as the shader bench does."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import replace

import mlx.core as mx

from mlx_gptoss.kernels.backend import Size3, Template
from mlx_gptoss.kernels.source import KernelSource
from tests.bench.backend import BenchBackend

VICTIM = "prefill_moe_sum"


class FaultyBackend:
    """The bench, except that launches of `victim` do `fault`."""

    name = "bench"
    family = "bench"

    def __init__(self, fault: str, victim: str = VICTIM) -> None:
        self.fault = fault
        self.victim = victim
        self.bench = BenchBackend(guard="fast")

    def launch(
        self,
        kernel: KernelSource,
        inputs: Sequence[mx.array],
        template: Template,
        grid: Size3,
        threadgroup: Size3,
        output_shapes: Sequence[tuple[int, ...]],
        output_dtypes: Sequence[mx.Dtype],
    ) -> list[mx.array]:
        if kernel.name == self.victim and self.fault == "hang":
            time.sleep(3600)
        if kernel.name == self.victim and self.fault == "crash":
            os.abort()
        if kernel.name == self.victim and self.fault == "text":
            kernel = replace(kernel, source=kernel.source + "undeclared(1);", digest="broken")
        outputs = self.bench.launch(kernel, inputs, template, grid, threadgroup, output_shapes, output_dtypes)
        if kernel.name == self.victim and self.fault == "wrong":
            outputs = [outputs[0] * 1.01, *outputs[1:]]
        if kernel.name == self.victim and self.fault == "nan":
            outputs = [mx.where(mx.arange(outputs[0].shape[-1]) == 3, mx.nan, outputs[0]), *outputs[1:]]
        if kernel.name == self.victim and self.fault == "shape":
            outputs = [outputs[0][:-1], *outputs[1:]]
        return outputs


def good() -> FaultyBackend:
    return FaultyBackend("none")


def hanging() -> FaultyBackend:
    return FaultyBackend("hang")


def crashing() -> FaultyBackend:
    return FaultyBackend("crash")


def from_environment() -> FaultyBackend:
    """The fault and victim that FAULTY_BACKEND names, as "fault:victim"."""
    fault, _, victim = os.environ["FAULTY_BACKEND"].partition(":")
    return FaultyBackend(fault, victim)


def missing() -> FaultyBackend:
    raise RuntimeError("no such device")
