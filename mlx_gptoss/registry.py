"""The models on this machine: where they live, what they are called, which one is the default.

$MLX_GPTOSS_HOME (or the platform's user data folder)
├── models/<org>--<name>/     model folders
├── downloads/<org>--<name>/  hub files waiting for conversion; resumable
├── locks/<name>.lock         held while a model is being made on first use
├── aliases/<name>.json       names that stand for a model, with a system prompt and parameters of their own
└── state.json                the default model
"""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import platformdirs

from mlx_gptoss.errors import GptOssError, InvalidRequestError, ModelNotFoundError

SHORT_NAMES: Mapping[str, str] = {
    "demo": "demo",
    "20b": "openai/gpt-oss-20b",
    "120b": "openai/gpt-oss-120b",
    "gpt-oss": "openai/gpt-oss-20b",
    "gpt-oss-20b": "openai/gpt-oss-20b",
    "gpt-oss-120b": "openai/gpt-oss-120b",
    "gpt-oss:latest": "openai/gpt-oss-20b",
    "gpt-oss:20b": "openai/gpt-oss-20b",
    "gpt-oss:120b": "openai/gpt-oss-120b",
}
DEFAULT_VARIABLE = "MLX_GPTOSS_MODEL"
HOME_VARIABLE = "MLX_GPTOSS_HOME"
# File systems take 255 bytes a name; a suffix and the two letters of a separator must fit as well.
_LONGEST_NAME = 200
_PART = r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}"
_NAME = re.compile(rf"(?:{_PART}/)?{_PART}(?::{_PART})?")


@dataclass(frozen=True, slots=True)
class InstalledModel:
    """A model folder. `name` is what users call it; `size_bytes` what it takes on disk; `modified` a Unix time."""

    name: str
    path: Path
    size_bytes: int
    modified: float


@dataclass(frozen=True, slots=True)
class Alias:
    """A name that stands for another model, with its own system prompt and default request parameters."""

    name: str
    source: str
    system: str | None = None
    parameters: Mapping[str, Any] = field(default_factory=dict)


def canonical_name(name: str) -> str:
    """The full name behind a short one: `20b` is `openai/gpt-oss-20b`. Raises InvalidRequestError on a bad name."""
    stripped = name.strip()
    short = stripped.removesuffix(":latest") if stripped not in SHORT_NAMES else stripped
    if short in SHORT_NAMES:
        return SHORT_NAMES[short]
    if not _NAME.fullmatch(short) or ".." in short or len(short) > _LONGEST_NAME:
        raise InvalidRequestError(
            "not a model name",
            param="model",
            expected="a folder, demo, 20b, 120b or a hub id such as openai/gpt-oss-20b",
            got=repr(name[:100]),
        )
    return short


def is_built_in(name: str) -> bool:
    """Whether a name is one of ours, such as demo or 20b: it means that model wherever it is said."""
    return name.strip().removesuffix(":latest") in SHORT_NAMES


def home_folder() -> Path:
    """Where models live: `$MLX_GPTOSS_HOME`, else the platform's user data folder."""
    override = os.environ.get(HOME_VARIABLE)
    return Path(override).expanduser() if override else Path(platformdirs.user_data_dir("mlx-gptoss", appauthor=False))


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write a small JSON file so that readers see the old content or the new, never half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as sink:
            json.dump(value, sink, indent=1)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def read_json(path: Path) -> dict[str, Any]:
    """A small JSON object of ours; an unreadable one is an error that says which file to delete."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except OSError as error:
        raise GptOssError(
            "a settings file cannot be read", got=error.strerror or str(error), where=str(path)
        ) from error
    except ValueError as error:
        raise GptOssError(
            "a settings file is unreadable", got=str(error), where=str(path), hint="Delete it and try again."
        ) from error
    return value if isinstance(value, dict) else {}


class Registry:
    """The models and aliases below one home folder. Cheap to make; reads the disk at each call."""

    def __init__(self, home: Path | None = None) -> None:
        self.home = home if home is not None else home_folder()

    # -- folders ------------------------------------------------------------------------------------------------

    def model_folder(self, name: str) -> Path:
        """Where the model of that canonical name is, or would be."""
        return self.home / "models" / canonical_name(name).replace("/", "--").replace(":", "@")

    def download_folder(self, name: str) -> Path:
        return self.home / "downloads" / canonical_name(name).replace("/", "--").replace(":", "@")

    def lock_file(self, name: str) -> Path:
        """What to lock while the model of that name is being made."""
        return self.home / "locks" / f"{self.model_folder(name).name}.lock"

    def models(self) -> list[InstalledModel]:
        """Every complete model folder, newest first."""
        found = []
        root = self.home / "models"
        for path in sorted(root.iterdir()) if root.is_dir() else []:
            if path.name.startswith("."):
                continue  # a folder that is being made, or was replaced
            try:
                modified = (path / "manifest.json").stat().st_mtime
                size = sum(entry.stat().st_size for entry in path.iterdir() if entry.is_file())
            except OSError:
                # Not complete, or being deleted while we look.
                continue
            name = path.name.replace("--", "/", 1).replace("@", ":")
            found.append(InstalledModel(name, path, size, modified))
        return sorted(found, key=lambda model: -model.modified)

    def find(self, name: str) -> InstalledModel:
        """The installed model behind a name or alias. Raises ModelNotFoundError with the next step."""
        wanted = self.target(name)
        for model in self.models():
            if model.name == wanted:
                return model
        hint = f"Get it with `mlx-gptoss pull {name}`, or try `--model demo`."
        if "/" not in wanted:
            hint = "A model is a folder, demo, 20b, 120b or a hub id such as openai/gpt-oss-20b."
        raise ModelNotFoundError(f"model {name!r} is not on this machine", hint=hint)

    def remove(self, name: str) -> int:
        """Delete a model (or just the alias of that name) and what was downloaded for it; bytes freed.

        A model that other names stand for stays: whoever copied it was promised that the copy answers.
        """
        if self.alias(name) is not None:
            path = self._alias_path(name)
            freed = path.stat().st_size
            path.unlink()
            return freed
        model = self.find(name)
        copies = [alias.name for alias in self.aliases() if alias.source == model.name]
        if copies:
            raise InvalidRequestError(
                f"other names stand for {model.name}: {', '.join(copies)[:200]}",
                param="model",
                hint="Delete them first.",
            )
        # The manifest goes first: a folder without one never loads, wherever deletion is interrupted.
        (model.path / "manifest.json").unlink()
        shutil.rmtree(model.path)
        shutil.rmtree(self.download_folder(model.name), ignore_errors=True)
        if self.state().get("default") == model.name:
            write_json(self.home / "state.json", {})
        return model.size_bytes

    # -- aliases ------------------------------------------------------------------------------------------------

    def _alias_path(self, name: str) -> Path:
        return self.home / "aliases" / (canonical_name(name).replace("/", "--").replace(":", "@") + ".json")

    def alias(self, name: str) -> Alias | None:
        """The alias of that name, or None."""
        record = read_json(self._alias_path(name))
        if not isinstance(record.get("source"), str):
            return None
        parameters = record.get("parameters")
        system = record.get("system")
        return Alias(
            name=canonical_name(name),
            source=record["source"],
            system=system if isinstance(system, str) else None,
            parameters=parameters if isinstance(parameters, dict) else {},
        )

    def aliases(self) -> list[Alias]:
        """Every alias, by name."""
        root = self.home / "aliases"
        paths = sorted(root.glob("*.json")) if root.is_dir() else []
        found = [self.alias(path.stem.replace("--", "/", 1).replace("@", ":")) for path in paths]
        return [alias for alias in found if alias is not None]

    def set_alias(self, alias: Alias) -> None:
        """Create or replace an alias. Its source must exist; an alias of an alias inherits what it does not set."""
        if any(model.name == canonical_name(alias.name) for model in self.models()):
            raise InvalidRequestError("a model of that name exists", param="model", got=repr(alias.name))
        parent = self.alias(alias.source)
        source = parent.source if parent is not None else self.find(alias.source).name
        system = alias.system if alias.system is not None or parent is None else parent.system
        inherited = dict(parent.parameters) if parent is not None else {}
        record = {"source": source, "system": system, "parameters": {**inherited, **alias.parameters}}
        write_json(self._alias_path(alias.name), record)

    def target(self, name: str) -> str:
        """The canonical model name behind a name or alias."""
        alias = self.alias(name)
        return canonical_name(alias.source if alias is not None else name)

    # -- default ------------------------------------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        return read_json(self.home / "state.json")

    def set_default(self, name: str) -> None:
        write_json(self.home / "state.json", {"default": canonical_name(name)})

    def default_name(self) -> str:
        """The model to use when none is named: the environment's, else the one last pulled."""
        named = os.environ.get(DEFAULT_VARIABLE)
        if named:
            return named
        stored = self.state().get("default")
        if isinstance(stored, str) and self.model_folder(stored).joinpath("manifest.json").is_file():
            return stored
        raise ModelNotFoundError(
            "no model has been pulled yet",
            hint=f"Get one with `mlx-gptoss pull 20b`, name one in {DEFAULT_VARIABLE}, or try `--model demo`.",
        )
