"""The self-check: every kernel has a case that passes on the bench, and each way to fail switches off one kernel."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from pathlib import Path

import mlx.core as mx
import pytest

from mlx_gptoss.errors import KernelError
from mlx_gptoss.kernels import check, selfcheck
from mlx_gptoss.kernels.backend import StockBackend
from mlx_gptoss.kernels.cases import CASES, build_case
from mlx_gptoss.kernels.check import KernelReport, check_kernel
from mlx_gptoss.kernels.selfcheck import machine_key, self_check
from mlx_gptoss.kernels.shapes import Shapes
from mlx_gptoss.kernels.source import KernelSource, kernel_names, load_kernel
from mlx_gptoss.kernels.tuning import Rows, packaged_tuning
from mlx_gptoss.kernels.user_tuning import on_trial
from tests.bench.backend import BenchBackend
from tests.kernels.faulty_backend import VICTIM, FaultyBackend
from tests.kernels.prefill_backend import device_or_bench

SMALL = Shapes(
    hidden=64, inner=64, experts=8, top_k=2, heads=8, kv_heads=2, window=16, vocabulary=512, tokens=20, keys=64
)
PAIR = (VICTIM, "prefill_topk")


def test_every_kernel_that_ships_has_a_case() -> None:
    assert sorted(CASES) == list(kernel_names())


@pytest.mark.parametrize("kernel", CASES)
def test_every_kernel_passes_at_small_shapes(kernel: str) -> None:
    report = check_kernel(kernel, SMALL, device_or_bench(), measure=False)
    assert report.status == "ok", report.reason


HALVES_TUNING = packaged_tuning("bench").having(
    halves=True,
    gate_up_alone=Rows(1, 2, 2, passes=2),
    down_alone=Rows(1, 2, 1),
    gate_up_several=Rows(2, 2, 2, passes=2),
    down_several=Rows(1, 2, 1),
    qkv_halves=Rows(2, 2, 2, stagers=1),
    out_halves=Rows(1, 2, 2),
)
HALVED = ["qkv_rope", "attention_out", "router", "moe_gate_up", "moe_down"]


@pytest.mark.parametrize("kernel", HALVED)
def test_what_is_done_in_halves_is_checked(kernel: str, monkeypatch: pytest.MonkeyPatch) -> None:
    backend = BenchBackend()
    with on_trial(backend.family, HALVES_TUNING):
        assert build_case(kernel, SMALL, backend).packed is not None
        report = check_kernel(kernel, SMALL, backend, measure=False)
        assert report.status == "ok", report.reason
        # Halves are not that exact.
        monkeypatch.setattr(check, "HALVES", 1e-9)
        report = check_kernel(kernel, SMALL, backend, measure=False)
        assert report.status == "off"
        assert "disagrees with its twin" in report.reason


@pytest.mark.parametrize(("kernel", "outputs"), [("router", 2), ("moe_gate_up", 3), ("moe_down", 1)])
@pytest.mark.parametrize(
    ("without", "forms"),
    [(set(), [1, 3]), ({"gate_up_alone"}, [3]), ({"down_several"}, [1]), ({"down_alone", "gate_up_several"}, [])],
)
def test_packed_steps_of_one_and_of_several_are_each_compared(
    kernel: str, outputs: int, without: set[str], forms: list[int]
) -> None:
    backend = BenchBackend()
    with on_trial(backend.family, HALVES_TUNING.having(**dict.fromkeys(without))):
        packed = build_case(kernel, SMALL, backend).packed
        assert (packed is not None) == bool(forms)
        if packed is not None:
            assert len(packed(backend)) == outputs * len(forms)


@pytest.mark.parametrize("text", ["prefill_moe_down", "prefill_moe_down.together"])
def test_every_text_of_a_kernel_is_part_of_its_key(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    backend = FaultyBackend("none")
    before = machine_key(backend, SMALL, ["prefill_moe_down"]), machine_key(backend, SMALL, ["router"])

    def changed(name: str) -> KernelSource:
        source = load_kernel(name)
        return replace(source, digest="other") if name == text else source

    monkeypatch.setattr(selfcheck, "load_kernel", changed)
    after = machine_key(backend, SMALL, ["prefill_moe_down"]), machine_key(backend, SMALL, ["router"])
    assert after[0] != before[0]
    assert after[1] == before[1]


def test_a_report_carries_times_and_a_comparison() -> None:
    report = check_kernel(VICTIM, SMALL, FaultyBackend("none"))
    assert report.status == "ok"
    assert report.microseconds is not None
    assert report.microseconds > 0
    assert report.gigabytes_per_second is not None
    assert report.speedup is not None
    assert KernelReport.from_dict(json.loads(json.dumps(report.to_dict()))) == report


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ("wrong", "disagrees with its twin by 1.0e-02"),
        ("nan", "not finite"),
        ("text", "undeclared"),
        ("shape", "disagrees with its twin by inf"),
    ],
)
def test_a_fault_switches_its_kernel_off_and_no_other(fault: str, reason: str) -> None:
    backend = FaultyBackend(fault)
    report = check_kernel(VICTIM, SMALL, backend, measure=False)
    assert report.status == "off"
    assert reason in report.reason
    assert "\n" not in report.reason
    assert check_kernel("prefill_topk", SMALL, backend, measure=False).status == "ok"


@pytest.mark.parametrize(
    ("fault", "limit", "reason"), [("crashing", 60.0, "SIGABRT"), ("hanging", 12.0, "no result after 12 s")]
)
def test_a_kernel_that_hangs_or_crashes_takes_nothing_along(
    fault: str, limit: float, reason: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    check = self_check(
        FaultyBackend("none"),
        SMALL,
        kernels=PAIR,
        spec=f"tests.kernels.faulty_backend:{fault}",
        time_limit_s=limit,
        folder=tmp_path,
    )
    assert check.disabled == {VICTIM}
    assert reason in check.reports[0].reason
    assert check.reports[1].status == "ok"
    assert isinstance(check.backend_for(VICTIM), StockBackend)
    assert check.backend_for("prefill_topk") is check.backend
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == 1
    assert VICTIM in lines[0]


def test_a_back_end_that_does_not_start_turns_every_kernel_off(tmp_path: Path) -> None:
    check = self_check(
        FaultyBackend("none"), SMALL, kernels=PAIR, spec="tests.kernels.faulty_backend:missing", folder=tmp_path
    )
    assert check.disabled == set(PAIR)
    assert all("no such device" in report.reason for report in check.reports)


def counting(monkeypatch: pytest.MonkeyPatch) -> list[Shapes]:
    runs: list[Shapes] = []

    def fake(_spec: str, shapes: Shapes, kernels: tuple[str, ...], **_: object) -> list[KernelReport]:
        runs.append(shapes)
        return [KernelReport(kernel, "ok", max_error=0.0) for kernel in kernels]

    monkeypatch.setattr(selfcheck, "run_checks", fake)
    return runs


def test_results_are_kept_until_something_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = counting(monkeypatch)
    backend = FaultyBackend("none")
    for _ in range(2):
        assert not self_check(backend, SMALL, kernels=PAIR, folder=tmp_path).disabled
    assert len(runs) == 1
    self_check(backend, replace(SMALL, hidden=96), kernels=PAIR, folder=tmp_path)
    self_check(backend, SMALL, kernels=PAIR, folder=tmp_path, fresh=True)
    monkeypatch.setattr(backend, "family", "other")
    self_check(backend, SMALL, kernels=PAIR, folder=tmp_path)
    assert len(runs) == 4


@pytest.mark.parametrize("damage", [b"", b"{", b'{"reports": [{"kernel": 3}]}', b'{"reports": []}', b"\xff\xfe"])
def test_a_damaged_result_is_checked_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: bytes) -> None:
    runs = counting(monkeypatch)
    backend = FaultyBackend("none")
    self_check(backend, SMALL, kernels=PAIR, folder=tmp_path)
    (path,) = tmp_path.iterdir()
    path.write_bytes(damage)
    self_check(backend, SMALL, kernels=PAIR, folder=tmp_path)
    assert len(runs) == 2


def test_a_folder_that_cannot_be_written_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    counting(monkeypatch)
    blocked = tmp_path / "file"
    blocked.write_text("not a folder")
    assert not self_check(FaultyBackend("none"), SMALL, kernels=PAIR, folder=blocked / "deeper").disabled


def test_stock_needs_no_check_and_unknown_kernels_are_refused(tmp_path: Path) -> None:
    assert self_check(StockBackend(), SMALL, folder=tmp_path).reports == ()
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(KernelError, match="no such kernel"):
        self_check(FaultyBackend("none"), SMALL, kernels=("router", "nonsense"), folder=tmp_path)
    assert mx.default_device() is not None
