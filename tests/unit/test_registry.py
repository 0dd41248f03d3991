"""Names, folders and aliases of installed models."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlx_gptoss import names
from mlx_gptoss.errors import CheckpointError, GptOssError, InvalidRequestError, ModelNotFoundError
from mlx_gptoss.folder import read_manifest
from mlx_gptoss.registry import Alias, Registry, canonical_name
from tests.tiny import tiny_config, write_hf_checkpoint


@pytest.fixture
def registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Registry:
    monkeypatch.delenv("MLX_GPTOSS_MODEL", raising=False)
    return Registry(tmp_path)


def install(registry: Registry, name: str, size: int = 10) -> Path:
    folder = registry.model_folder(name)
    folder.mkdir(parents=True)
    (folder / "model-00001-of-00001.safetensors").write_bytes(b"x" * size)
    (folder / "manifest.json").write_text("{}")
    return folder


@pytest.mark.parametrize(
    ("short", "full"),
    [
        ("20b", "openai/gpt-oss-20b"),
        ("gpt-oss:20b", "openai/gpt-oss-20b"),
        ("gpt-oss", "openai/gpt-oss-20b"),
        ("gpt-oss:120b", "openai/gpt-oss-120b"),
        ("demo", "demo"),
        ("demo:latest", "demo"),
        ("someone/fine-tune.v2", "someone/fine-tune.v2"),
    ],
)
def test_short_names(short: str, full: str) -> None:
    assert canonical_name(short) == full


@pytest.mark.parametrize(
    "name",
    ["", "..", "../x", "a/../b", "a/b/c", "a b", "/etc", "é", "a" * 200, "a" * 90 + "/" + "b" * 90 + ":" + "c" * 90],
)
def test_bad_names_are_refused(name: str) -> None:
    with pytest.raises(InvalidRequestError):
        canonical_name(name)


@given(st.text(max_size=40))
def test_a_name_never_leaves_the_home_folder(name: str) -> None:
    registry = Registry(Path("/home/models-root"))
    try:
        folder = registry.model_folder(name)
    except InvalidRequestError:
        return
    assert folder.parent == Path("/home/models-root/models")


def test_only_complete_folders_are_models(registry: Registry) -> None:
    install(registry, "20b")
    registry.model_folder("a/half").mkdir(parents=True)
    assert [model.name for model in registry.models()] == ["openai/gpt-oss-20b"]
    with pytest.raises(ModelNotFoundError, match="pull"):
        registry.find("a/half")


def test_default_is_environment_then_last_pulled(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ModelNotFoundError, match="demo"):
        registry.default_name()
    install(registry, "20b")
    registry.set_default("20b")
    assert registry.default_name() == "openai/gpt-oss-20b"
    monkeypatch.setenv("MLX_GPTOSS_MODEL", "demo")
    assert registry.default_name() == "demo"


def test_remove_frees_and_forgets(registry: Registry) -> None:
    folder = install(registry, "20b", size=1000)
    registry.set_default("20b")
    assert registry.remove("gpt-oss:20b") >= 1000
    assert not folder.exists()
    with pytest.raises(ModelNotFoundError):
        registry.default_name()


def test_aliases_inherit_and_are_removed_alone(registry: Registry) -> None:
    install(registry, "20b")
    registry.set_alias(Alias("pirate", "20b", "Talk like a pirate.", {"temperature": 0.5}))
    registry.set_alias(Alias("calm-pirate", "pirate", None, {"top_p": 0.9}))
    alias = registry.alias("calm-pirate")
    assert alias is not None
    assert (alias.source, alias.system) == ("openai/gpt-oss-20b", "Talk like a pirate.")
    assert alias.parameters == {"temperature": 0.5, "top_p": 0.9}
    assert registry.find("pirate").name == "openai/gpt-oss-20b"
    assert [entry.name for entry in registry.aliases()] == ["calm-pirate", "pirate"]
    registry.remove("pirate")
    assert registry.alias("pirate") is None
    assert registry.find("20b")


def test_a_model_that_other_names_stand_for_stays(registry: Registry) -> None:
    folder = install(registry, "20b")
    registry.set_alias(Alias("copy", "20b"))
    with pytest.raises(InvalidRequestError, match="copy"):
        registry.remove("20b")
    assert (folder / "manifest.json").is_file()
    registry.remove("copy")
    registry.remove("20b")
    assert not folder.exists()


def test_an_alias_cannot_hide_a_model(registry: Registry) -> None:
    install(registry, "20b")
    with pytest.raises(InvalidRequestError):
        registry.set_alias(Alias("20b", "20b"))
    with pytest.raises(ModelNotFoundError):
        registry.set_alias(Alias("mine", "a/absent"))


@pytest.mark.parametrize("name", ["modèle", "a..b", "...x", "日本", "x" * 80])
def test_a_checkpoint_folder_may_have_any_name(
    name: str, registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = tmp_path / "mine" / name
    checkpoint.mkdir(parents=True)
    (checkpoint / "model.safetensors").write_bytes(b"")
    monkeypatch.setattr(names, "convert_source", lambda source, target, *, progress: target)
    target = names.resolve_model(checkpoint, registry=registry)
    assert target == registry.model_folder(target.name)


def test_unreadable_state_says_which_file(registry: Registry) -> None:
    (registry.home / "state.json").write_text("{")
    with pytest.raises(GptOssError, match=r"state\.json"):
        registry.default_name()


def checkpoint(folder: Path, manifest: bool = True) -> Path:
    folder.mkdir(parents=True)
    (folder / ("manifest.json" if manifest else "model.safetensors")).write_text("{}")
    return folder


@pytest.mark.parametrize("built_in", ["demo", "20b", "gpt-oss", "gpt-oss-20b", "gpt-oss:latest", "demo:latest"])
def test_a_built_in_name_means_that_model_whatever_lies_here(
    built_in: str, registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    checkpoint(tmp_path / built_in)
    assert not names.looks_like_path(built_in)
    for written in (f"./{built_in}", f"{built_in}/", str(tmp_path / built_in)):
        assert names.resolve_model(written, registry=registry).resolve() == tmp_path / built_in


def test_another_name_is_the_folder_that_holds_weights_here(
    registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    installed = install(registry, "someone/tune")
    (tmp_path / "someone" / "tune").mkdir(parents=True)
    (tmp_path / "empty").mkdir()
    (tmp_path / "deep" / "er" / "still").mkdir(parents=True)
    assert names.resolve_model("someone/tune", registry=registry) == installed
    checkpoint(tmp_path / "openai" / "gpt-oss-20b")
    assert names.resolve_model("openai/gpt-oss-20b", registry=registry) == Path("openai/gpt-oss-20b")
    for nothing in ("empty", "deep/er/still"):
        with pytest.raises(CheckpointError, match="not a model folder"):
            names.resolve_model(nothing, registry=registry)


@pytest.mark.parametrize(
    "name", ["x" * 5000, "/" + "x" * 5000, "~nobody-of-that-name/model", "no\0thing", "", "/", "//"]
)
def test_a_name_that_no_file_system_takes_is_one_clear_error(name: str, registry: Registry) -> None:
    with pytest.raises(GptOssError):
        names.resolve_model(name, registry=registry)


def test_a_second_first_use_waits_for_the_first(
    registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write_hf_checkpoint(tmp_path / "source", tiny_config(), seed=1)
    found: list[Path] = []
    users = [
        threading.Thread(target=lambda: found.append(names.resolve_model(source, registry=registry))) for _ in range(3)
    ]
    for user in users:
        user.start()
    for user in users:
        user.join(60)
    assert len(found) == 3
    assert len(set(found)) == 1
    assert read_manifest(found[0]).tensors
