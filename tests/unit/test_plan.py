"""The planner: bytes against published figures, what fits, advice that works when followed, refusals before loading."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from mlx_gptoss.cli.plan_cmd import plan as plan_command
from mlx_gptoss.cli.pull_cmd import pull as pull_command
from mlx_gptoss.convert import PRESETS
from mlx_gptoss.errors import DownloadError, InsufficientMemoryError, InvalidRequestError
from mlx_gptoss.hub import RemoteFile, RemoteModel
from mlx_gptoss.plan.chips import CHIPS, GIB, default_working_set, find_chip
from mlx_gptoss.plan.costs import APPLE, CostModel, decode_seconds, launches, prefill_tokens_per_second
from mlx_gptoss.plan.footprint import Precisions, footprint, kv_bytes, released_config, token_bytes
from mlx_gptoss.plan.guard import bounded_context, check_download, check_fits, engine_bounds, folder_bounds
from mlx_gptoss.plan.machine import Machine, described_machine
from mlx_gptoss.plan.planner import (
    CHOICES,
    LIMIT_CONTEXT,
    MODELS,
    SMALLEST_CONTEXT,
    SYSTEM_BYTES,
    WORKSPACE_BYTES,
    advice,
    largest_context,
    plan,
)
from tests.tiny import tiny_config, write_model_folder

SMALL = released_config("openai/gpt-oss-20b")
LARGE = released_config("openai/gpt-oss-120b")
EIGHT = Precisions("q8", "q8", "q8")
MXFP8 = Precisions("mxfp8", "mxfp8", "mxfp8")
POWER = st.floats(min_value=1.0, max_value=1e3)


@pytest.mark.parametrize(
    ("config", "precisions", "gigabytes"),
    [(SMALL, Precisions(), 13.76), (SMALL, EIGHT, 12.08), (LARGE, Precisions(), 65.2), (LARGE, EIGHT, 63.3)],
    ids=["20b_bf16", "20b_8bit", "120b_bf16", "120b_8bit"],
)
def test_weights_take_the_known_bytes(config: object, precisions: Precisions, gigabytes: float) -> None:
    assert footprint(config, precisions).total / 1e9 == pytest.approx(gigabytes, rel=2e-3)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("config", "precisions", "megabytes"),
    [(SMALL, Precisions(), 3708), (SMALL, EIGHT, 2568), (LARGE, Precisions(), 5003), (LARGE, EIGHT, 3564)],
    ids=["20b_bf16", "20b_8bit", "120b_bf16", "120b_8bit"],
)
def test_a_token_reads_the_known_bytes(config: object, precisions: Precisions, megabytes: float) -> None:
    """Against a count made tensor by tensor: experts, attention and head, without the K/V."""
    read = token_bytes(config, precisions, 0)  # type: ignore[arg-type]
    assert read / 1e6 == pytest.approx(megabytes, rel=1e-2)


def test_footprint_is_what_a_folder_holds(tmp_path: Path) -> None:
    config = tiny_config(head_dim=64)
    write_model_folder(tmp_path / "model", config)
    bounds = folder_bounds(
        Machine("test", 1 << 40, 1 << 40, None), tmp_path / "model", context=None, max_batch=8, prefix_cache_bytes=7
    )
    assert (bounds.context, bounds.max_batch, bounds.prefix_cache_bytes) == (config.max_position_embeddings, 8, 7)
    from mlx_gptoss.plan.guard import folder_bytes

    assert folder_bytes(tmp_path / "model") == pytest.approx(footprint(config, Precisions()).total, rel=1e-3)


def test_the_cache_grows_by_the_full_layers_alone() -> None:
    assert kv_bytes(SMALL, 1001) - kv_bytes(SMALL, 1000) == 24 * 1024
    assert kv_bytes(LARGE, 1001) - kv_bytes(LARGE, 1000) == 36 * 1024
    assert kv_bytes(SMALL, 10) == 10 * 48 * 1024


def test_a_batch_reads_each_expert_once_at_most() -> None:
    one, many = token_bytes(SMALL, Precisions(), 0), token_bytes(SMALL, Precisions(), 0, 1000)
    everything = footprint(SMALL, Precisions())
    assert one < many <= everything.total - everything.embedding
    assert token_bytes(SMALL, Precisions(), 0, 2) < 2 * one


def test_launches_of_both_models() -> None:
    assert launches(SMALL) <= 7 * 24 + 8
    assert launches(LARGE) <= 7 * 36 + 8


@pytest.mark.parametrize(("spoken", "name"), [("m4-max", "m4-max"), ("Apple M4 Max", "m4-max"), ("M1", "m1")])
def test_chips_by_any_name(spoken: str, name: str) -> None:
    assert find_chip(spoken).name == name


def test_memory_tells_the_smaller_max_chip() -> None:
    assert find_chip("Apple M4 Max", 36).name == "m4-max-32"
    assert find_chip("Apple M3 Max", 96).gpu_cores == 30
    assert find_chip("Apple M4 Max", 64).name == "m4-max"


def test_unknown_chips_list_the_known() -> None:
    with pytest.raises(InvalidRequestError, match="m4-max"):
        find_chip("m9")


@pytest.mark.parametrize(("gib", "gigabytes"), [(16, 11.45), (64, 51.5), (96, 77.3), (128, 103.1)])
def test_default_working_sets_as_seen_on_macs(gib: int, gigabytes: float) -> None:
    assert default_working_set(gib * GIB) / 1e9 == pytest.approx(gigabytes, rel=5e-3)


def test_the_planner_and_the_converter_mean_the_same_presets() -> None:
    assert set(CHOICES) == set(PRESETS)
    for name, preset in PRESETS.items():
        choice = CHOICES[name]
        assert (preset.attention, preset.embedding, preset.head) == (choice.attention, choice.embedding, choice.head)


def test_presets_fit_the_machines_they_are_named_for() -> None:
    (large,) = [f for f in plan(described_machine("m2", 24)) if (f.model, f.choice) == (MODELS["20b"], "24gb")]
    assert large.fits
    assert large.context == SMALL.max_position_embeddings
    (small,) = [f for f in plan(described_machine("m1-pro", 16)) if (f.model, f.choice) == (MODELS["20b"], "16gb")]
    assert small.wired_limit_mb is not None
    assert small.wired_context >= LIMIT_CONTEXT


@pytest.mark.parametrize(
    "machine",
    [described_machine(chip.name, gib) for chip in CHIPS for gib in chip.memory_gib],
    ids=lambda machine: machine.name,
)
def test_advice_works_when_followed(machine: Machine) -> None:
    """On every Mac sold: a model that fits loads with the context named, and a raised limit makes the rest load."""
    fits = plan(machine)
    for entry in fits:
        config = released_config(entry.model)
        if entry.fits:
            assert bounded_context(machine, config, entry.weight_bytes, None) == entry.context
        else:
            with pytest.raises(InsufficientMemoryError):
                bounded_context(machine, config, entry.weight_bytes, None)
        if entry.wired_limit_mb is not None:
            raised = replace(machine, working_set=entry.wired_limit_mb << 20)
            assert raised.working_set <= machine.memory - SYSTEM_BYTES + (1 << 20)
            assert bounded_context(raised, config, entry.weight_bytes, None) >= entry.wired_context > entry.context
    lines = advice(machine, fits)
    assert {line.split(":")[0] for line in lines} == set(MODELS)


def test_a_16_gb_mac_gets_a_way_to_run_20b() -> None:
    machine = described_machine("m1-pro", 16)
    (line,) = [line for line in advice(machine, plan(machine)) if line.startswith("20b")]
    assert "sudo sysctl iogpu.wired_limit_mb=" in line
    assert "--for 16gb" in line


def test_an_8_gb_mac_gets_none() -> None:
    machine = described_machine("m1", 8)
    assert all("does not fit" in line for line in advice(machine, plan(machine)))


@given(free=st.integers(min_value=0, max_value=8 * GIB))
def test_the_largest_context_is_the_largest(free: int) -> None:
    context = largest_context(SMALL, free)
    assert context == 0 or kv_bytes(SMALL, context) <= free
    if context < SMALL.max_position_embeddings:
        assert kv_bytes(SMALL, context + 1024) > free


@given(bandwidth=POWER, gap=st.floats(0, 1e-4), context=st.integers(0, 131_072), batch=st.integers(1, 16))
def test_decode_never_beats_the_bus(bandwidth: float, gap: float, context: int, batch: int) -> None:
    model = CostModel(efficiency=0.8, gap_s=gap, prefill_utilisation=0.5)
    seconds = decode_seconds(bandwidth * 1e9, model, SMALL, EIGHT, context, batch)
    assert seconds >= token_bytes(SMALL, EIGHT, context, batch) / (bandwidth * 1e9)
    assert seconds <= decode_seconds(bandwidth * 1e9, model, SMALL, EIGHT, context + 1, batch)


def test_faster_chips_are_faster() -> None:
    slow, fast = find_chip("m1"), find_chip("m4-max")
    for config in (SMALL, LARGE):
        assert prefill_tokens_per_second(fast, APPLE, config, Precisions(), 2048) > prefill_tokens_per_second(
            slow, APPLE, config, Precisions(), 2048
        )


def test_a_context_asked_for_is_given_or_refused() -> None:
    weights = footprint(SMALL, EIGHT).total
    machine = Machine("test", 16 * GIB, weights + WORKSPACE_BYTES + kv_bytes(SMALL, 10_000), None)
    assert bounded_context(machine, SMALL, weights, 10_000) == 10_000
    with pytest.raises(InsufficientMemoryError, match="10001 tokens does not fit"):
        bounded_context(machine, SMALL, weights, 10_001)
    assert bounded_context(machine, SMALL, weights, None) == 9 * 1024
    roomy = replace(machine, working_set=100 * GIB)
    assert bounded_context(roomy, SMALL, weights, 10**9) == SMALL.max_position_embeddings


def test_refusals_say_what_to_do() -> None:
    mac = described_machine("m1-pro", 16)
    weights = footprint(SMALL, CHOICES["16gb"]).total
    with pytest.raises(InsufficientMemoryError, match=r"iogpu\.wired_limit_mb=\d+"):
        check_fits(mac, SMALL, weights, SMALLEST_CONTEXT)
    with pytest.raises(InsufficientMemoryError, match="mlx-gptoss plan"):
        check_fits(replace(mac, chip=None), SMALL, weights, SMALLEST_CONTEXT)


@given(
    room=st.integers(0, 6 * GIB),
    context=st.one_of(st.none(), st.integers(16, 131_072)),
    max_batch=st.integers(1, 16),
    stored=st.integers(0, 4 * GIB),
)
def test_engine_bounds_stay_within_memory(room: int, context: int | None, max_batch: int, stored: int) -> None:
    weights = footprint(SMALL, EIGHT).total
    machine = Machine("test", 64 * GIB, weights + WORKSPACE_BYTES + room, None)
    try:
        bounds = engine_bounds(machine, SMALL, weights, context=context, max_batch=max_batch, prefix_cache_bytes=stored)
    except InsufficientMemoryError:
        assert kv_bytes(SMALL, SMALLEST_CONTEXT if context is None else context) > room
        return
    assert kv_bytes(SMALL, bounds.context) + bounds.prefix_cache_bytes <= room
    assert 1 <= bounds.max_batch <= max_batch
    assert 0 <= bounds.prefix_cache_bytes <= stored
    assert context is None or bounds.context == context


def test_downloads_are_refused_before_the_first_byte() -> None:
    server = Machine("test", 16 * GIB, int(12.8e9), None)
    with pytest.raises(InsufficientMemoryError, match=r"--for 24gb.*--force"):
        check_download(server, MODELS["20b"], 13_800_000_000)
    check_download(server, MODELS["20b"], 13_800_000_000, "16gb")
    with pytest.raises(InsufficientMemoryError, match=r"--for 16gb.*wired_limit_mb"):
        check_download(described_machine("m1-pro", 16), MODELS["20b"], 13_800_000_000)
    with pytest.raises(InsufficientMemoryError, match="someone/else"):
        check_download(server, "someone/else", 60_000_000_000)
    check_download(server, "someone/else", 6_000_000_000)


def test_pull_refuses_before_the_download_unless_forced(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    remote = RemoteModel(MODELS["20b"], "0" * 40, (RemoteFile("model.safetensors", 13_800_000_000),))

    def download(*_: object, **__: object) -> Path:
        raise DownloadError("the download began")

    monkeypatch.setenv("MLX_GPTOSS_HOME", str(tmp_path))
    monkeypatch.setattr("mlx_gptoss.hub.look_up", lambda *_, **__: remote)
    monkeypatch.setattr("mlx_gptoss.hub.check_disk", lambda *_: None)
    monkeypatch.setattr("mlx_gptoss.hub.download", download)
    monkeypatch.setattr("mlx_gptoss.cli.pull_cmd.this_machine", lambda: Machine("test", 16 * GIB, int(12.8e9), None))
    refused = CliRunner().invoke(pull_command, ["20b"])
    assert isinstance(refused.exception, InsufficientMemoryError)
    for arguments in (["20b", "--force"], ["20b", "--for", "16gb"]):
        assert isinstance(CliRunner().invoke(pull_command, arguments).exception, DownloadError)


def test_the_table_is_80_columns_wide() -> None:
    result = CliRunner().invoke(plan_command, ["--chip", "m3-ultra"])
    assert result.exit_code == 0
    table = result.output.split("\n\n")[1].splitlines()
    assert len(table) == 1 + 2 * len(CHOICES) + 1
    assert max(len(line) for line in table) <= 80
    assert "advice" not in table[0]


def test_the_plan_as_json() -> None:
    result = CliRunner().invoke(plan_command, ["--chip", "M4 Max", "--memory", "64", "--json"])
    data = json.loads(result.output)
    assert data["memory_bytes"] == 64 * GIB
    by_choice = {(entry["model"], entry["choice"]): entry for entry in data["fits"]}
    assert by_choice[MODELS["20b"], "max-quality"]["fits"]
    assert not by_choice[MODELS["120b"], "max-quality"]["fits"]
    assert by_choice[MODELS["20b"], "24gb"]["decode_tps"] > by_choice[MODELS["20b"], "max-quality"]["decode_tps"]
    assert any("wired_limit_mb" in line for line in data["advice"])


@pytest.mark.parametrize("arguments", [["--memory", "64"], ["--chip", "m9"], ["--chip", "m4", "--memory", "-1"]])
def test_impossible_machines_are_refused(arguments: list[str]) -> None:
    assert CliRunner().invoke(plan_command, arguments).exit_code != 0


@pytest.mark.parametrize("memory", ["0", "nan", "inf", "1e400", "1e9", "-inf"])
def test_impossible_memory_is_one_clear_error(memory: str) -> None:
    refused = CliRunner().invoke(plan_command, ["--chip", "m4-max", "--memory", memory])
    assert isinstance(refused.exception, InvalidRequestError)
    assert "memory is out of range" in str(refused.exception)
