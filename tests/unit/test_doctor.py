"""`mlx-gptoss doctor`: what it says of machines, kernels and folders, good and bad."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from mlx_gptoss import doctor
from mlx_gptoss.cli.doctor_cmd import doctor as command
from mlx_gptoss.errors import KernelError
from mlx_gptoss.kernels.backend import Backend
from mlx_gptoss.kernels.check import KernelReport
from mlx_gptoss.kernels.selfcheck import SelfCheck
from mlx_gptoss.kernels.shapes import Shapes
from tests.kernels.faulty_backend import FaultyBackend
from tests.tiny import tiny_config, write_model_folder

GOOD = KernelReport("router", "ok", "", 1e-6, 12.5, 800.0, 3.2)
BAD = KernelReport("head", "off", "the kernel disagrees with its twin by 3.0e-01 (at most 1e-04)", 0.3)


@pytest.fixture
def with_kernels(monkeypatch: pytest.MonkeyPatch) -> list[Shapes]:
    """A machine with a GPU on which one kernel is off."""
    asked: list[Shapes] = []

    def check(backend: Backend, shapes: Shapes, **_: object) -> SelfCheck:
        asked.append(shapes)
        return SelfCheck(backend, (GOOD, BAD))

    monkeypatch.setattr(doctor, "backend_named", lambda _name: FaultyBackend("none"))
    monkeypatch.setattr(doctor, "self_check", check)
    return asked


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tiny"
    write_model_folder(folder, tiny_config())
    return folder


def test_without_kernels_the_machine_is_described() -> None:
    result = CliRunner().invoke(command, ["--backend", "stock"])
    assert result.exit_code == 0, result.output
    for word in ("device", "memory", "GiB in all", "versions", "mlx-gptoss", "none here"):
        assert word in result.output


@pytest.mark.parametrize("name", ["metal", "cuda"])
def test_times_that_are_the_hosts_are_said_to_be(
    with_kernels: list[Shapes], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(FaultyBackend, "name", name)
    result = CliRunner().invoke(command, [])
    assert "12.5" in result.output
    assert ("The host takes longer to launch" in result.output) == (name == "cuda")


def test_json_has_everything() -> None:
    result = CliRunner().invoke(command, ["--backend", "stock", "--json"])
    data = json.loads(result.output)
    assert data["healthy"] is True
    assert data["backend"] == "stock"
    assert data["kernels"] == []
    assert data["model"] is None
    assert data["memory"]["total"] > 2**28
    assert set(data) >= {"device", "architecture", "system", "versions", "family"}


def test_a_kernel_that_is_off_has_a_row_a_line_and_an_exit_code(with_kernels: list[Shapes]) -> None:
    result = CliRunner().invoke(command, [])
    assert result.exit_code == 1
    assert "1 of 2 on" in result.output
    assert "head is off: the kernel disagrees" in result.output
    row = next(line for line in result.output.splitlines() if line.startswith("router"))
    assert all(line == line.rstrip() for line in result.output.splitlines())
    assert row.split() == ["router", "ok", "1.0e-06", "12.5", "800", "3.2"]
    assert with_kernels == [Shapes()]


def test_kernels_are_checked_at_the_models_shapes(with_kernels: list[Shapes], model: Path) -> None:
    diagnosis = doctor.diagnose(model)
    assert diagnosis.model is not None
    assert diagnosis.model.problem == ""
    assert diagnosis.model.size_bytes > 0
    (shapes,) = with_kernels
    assert shapes.hidden != Shapes().hidden


@pytest.mark.parametrize("damage", ["manifest", "config", "shard", "nothing_there"])
def test_a_damaged_folder_is_named_not_raised(tmp_path: Path, damage: str) -> None:
    folder = tmp_path / "model"
    if damage != "nothing_there":
        write_model_folder(folder, tiny_config())
    if damage == "manifest":
        (folder / "manifest.json").write_text("{")
    if damage == "config":
        (folder / "config.json").unlink()
    if damage == "shard":
        shard = next(folder.glob("*.safetensors"))
        shard.write_bytes(shard.read_bytes()[:-1])
    result = CliRunner().invoke(command, [str(folder), "--backend", "stock", "--json"])
    assert result.exit_code == 1
    data = json.loads(result.output)
    assert data["healthy"] is False
    assert str(folder) in data["model"]["problem"]


def test_a_model_may_be_named_either_way_but_once(model: Path) -> None:
    said = [
        CliRunner().invoke(command, [*named, "--backend", "stock", "--json"])
        for named in ([str(model)], ["-m", str(model)], [str(model), "-m", "demo"])
    ]
    assert [result.exit_code for result in said] == [0, 0, 2]
    assert json.loads(said[0].output)["model"] == json.loads(said[1].output)["model"]
    assert "name one model" in said[2].output


def test_a_back_end_this_machine_lacks_is_refused() -> None:
    result = CliRunner().invoke(command, ["--backend", "metal"])
    assert isinstance(result.exception, KernelError)


def test_a_kernel_that_does_not_exist_is_refused_on_every_back_end() -> None:
    with pytest.raises(KernelError, match=r"no such kernel.*router.*nope"):
        doctor.diagnose(backend="stock", kernels=("router", "nope"))


def test_the_folder_says_how_its_weights_are_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mlx_gptoss import loader
    from mlx_gptoss.doctor import examine_folder
    from tests.tiny import tiny_config, write_model_folder

    folder = tmp_path / "model"
    write_model_folder(folder, tiny_config())
    for wraps, said in ((True, "wrapped"), (False, "read")):
        monkeypatch.setattr(loader, "can_wrap", lambda wraps=wraps: wraps)
        assert examine_folder(folder).loading == said
