"""What a model name means, and where its folder is: the step from `--model X` to a model folder that loads."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mlx_gptoss.errors import CheckpointError, ModelNotFoundError
from mlx_gptoss.registry import Registry, canonical_name

DEMO = "demo"
Progress = Callable[[int, int], None]


def looks_like_path(name: str | Path) -> bool:
    """Whether a name is meant as a folder: a Path, `.`/`..`, `~`, an absolute path, or something that exists."""
    if isinstance(name, Path):
        return True
    return name.startswith(("/", "./", "../", "~")) or name in {".", ".."} or Path(name).is_dir()


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
        return _resolve_folder(Path(name).expanduser(), registry, progress)
    target = registry.target(str(name))
    folder = registry.model_folder(target)
    if (folder / "manifest.json").is_file():
        return folder
    if target == DEMO:
        return _install_demo(folder, registry, progress)
    staging = registry.download_folder(target)
    if folder.is_dir() and (staging / "config.json").is_file():
        raise ModelNotFoundError(
            f"model {name!r} is only half converted", hint=f"Finish it with `mlx-gptoss pull {name}`."
        )
    return registry.find(str(name)).path


def _resolve_folder(folder: Path, registry: Registry, progress: Progress | None) -> Path:
    if not folder.is_dir():
        raise ModelNotFoundError(f"no folder {folder}", hint="Name a model folder, or a model such as 20b or demo.")
    if (folder / "manifest.json").is_file():
        return folder
    if not any(folder.glob("*.safetensors")):
        raise CheckpointError(
            "not a model folder",
            expected="manifest.json, or a checkpoint that can be converted",
            got=", ".join(sorted(entry.name for entry in folder.iterdir())[:6]) or "an empty folder",
            where=str(folder),
        )
    return convert_source(folder, _converted_twin(folder, registry), progress=progress)


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


def _install_demo(folder: Path, registry: Registry, progress: Progress | None) -> Path:
    import shutil

    from mlx_gptoss.demo import unpack_demo

    source = unpack_demo(registry.download_folder(DEMO))
    convert_source(source, folder, progress=progress)
    shutil.rmtree(source, ignore_errors=True)
    return folder
