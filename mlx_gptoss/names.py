"""What a model name means, and where its folder is: the step from `--model X` to a model folder that loads."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mlx_gptoss.errors import CheckpointError, InvalidRequestError, ModelNotFoundError
from mlx_gptoss.registry import Registry, canonical_name, is_built_in
from mlx_gptoss.turn_lock import turn_lock

DEMO = "demo"
Progress = Callable[[int, int], None]


def looks_like_path(name: str | Path) -> bool:
    """Whether a name is meant as a folder rather than looked up among the models.

    A Path is, and text that is written as one: `.`, `..`, `~...`, `/...`, `./...`, `../...` or with a `/` at its end.
    A built-in name (demo, 20b, ...) is not, whatever lies in the current folder. Any other text is when a folder of
    that name holds a model or a checkpoint.
    """
    if isinstance(name, Path):
        return True
    if name.startswith(("/", "./", "../", "~")) or name.endswith("/") or name in {".", ".."}:
        return True
    return not is_built_in(name) and _holds_weights(Path(name))


def _holds_weights(folder: Path) -> bool:
    try:
        return (folder / "manifest.json").is_file() or any(folder.glob("*.safetensors"))
    except (OSError, ValueError):  # a name that no file system takes
        return False


def convert_source(
    source: Path,
    target: Path,
    *,
    progress: Progress | None = None,
    precision: dict[str, str] | None = None,
    revision: str | None = None,
    overwrite: bool = False,
) -> Path:
    """Convert a checkpoint into a model folder with the ordinary converter. `progress` gets bytes done, in all.
    `overwrite` replaces another model in `target`."""
    from mlx_gptoss.convert import convert

    options: dict[str, Any] = dict(precision or {})
    convert(source, target, progress=progress, revision=revision, overwrite=overwrite, **options)
    return target


def resolve_model(
    name: str | Path | None = None, *, registry: Registry | None = None, progress: Progress | None = None
) -> Path:
    """The model folder that a name stands for; None is the default model.

    A folder that is a checkpoint rather than a model folder is converted on first use, into the registry, and so
    is the demo checkpoint that comes with the package. Nothing is downloaded.

    Raises ModelNotFoundError when nothing of that name is here, CheckpointError when a folder is no checkpoint.
    """
    registry = registry if registry is not None else Registry()
    if name is None:
        name = registry.default_name()
    if looks_like_path(name):
        return _resolve_folder(as_folder(name), registry, progress)
    try:
        return _resolve_name(str(name), registry, progress)
    except (ModelNotFoundError, InvalidRequestError):
        if name and not is_built_in(str(name)) and _is_folder(Path(name)):
            return _resolve_folder(Path(name), registry, progress)
        raise


def as_folder(name: str | Path) -> Path:
    """The path that a name is, with `~` expanded. Raises ModelNotFoundError for the home of nobody."""
    try:
        return Path(name).expanduser()
    except RuntimeError as error:
        raise ModelNotFoundError(f"no folder {name}", got=str(error)) from error


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except OSError:  # longer than a file system takes
        return False


def _resolve_name(name: str, registry: Registry, progress: Progress | None) -> Path:
    target = registry.target(name)
    if target == DEMO:
        from mlx_gptoss.demo_folder import demo_folder

        return demo_folder(registry, progress)
    folder = registry.model_folder(target)
    if (folder / "manifest.json").is_file():
        return folder
    if folder.is_dir() and (registry.download_folder(target) / "config.json").is_file():
        raise ModelNotFoundError(
            f"model {name!r} is only half converted", hint=f"Finish it with `mlx-gptoss pull {name}`."
        )
    return registry.find(name).path


def _resolve_folder(folder: Path, registry: Registry, progress: Progress | None) -> Path:
    if not _is_folder(folder):
        hint = "Name a model folder, or a model such as 20b or demo."
        if folder.suffix == ".gguf":
            hint = f"Convert the file first: `mlx-gptoss convert {folder} FOLDER`."
        raise ModelNotFoundError(f"no folder {folder}", hint=hint)
    if (folder / "manifest.json").is_file():
        return folder
    if not any(folder.glob("*.safetensors")):
        raise CheckpointError(
            "not a model folder",
            expected="manifest.json, or a checkpoint that can be converted",
            got=", ".join(sorted(entry.name for entry in folder.iterdir())[:6]) or "an empty folder",
            where=str(folder),
        )
    twin = _converted_twin(folder, registry)
    if not (twin / "manifest.json").is_file():
        with turn_lock(registry.lock_file(twin.name), f"converting {folder}"):
            convert_source(folder, twin, progress=progress)
    return twin


def _converted_twin(folder: Path, registry: Registry) -> Path:
    """Where the conversion of a checkpoint folder is kept: one place for each absolute path and content stamp."""
    import hashlib

    stamp = hashlib.sha256(str(folder.resolve()).encode())
    for entry in sorted(folder.iterdir()):
        if entry.is_file():
            status = entry.stat()
            stamp.update(f"{entry.name}:{status.st_size}:{status.st_mtime_ns}".encode())
    # What a model name may consist of: ASCII, and no two dots in a row.
    label = re.sub(r"[^A-Za-z0-9_.-]|\.(?=\.)", "-", folder.resolve().name)
    return registry.home / "models" / canonical_name(f"local-{label[:40]}-{stamp.hexdigest()[:12]}")
