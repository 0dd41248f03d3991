"""The demo's model folder: made on first use, and made again when the package brings another checkpoint."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path
from typing import Final

from mlx_gptoss.demo import demo_bytes, demo_revision, unpack_demo
from mlx_gptoss.errors import CheckpointError, GptOssError, InsufficientDiskError
from mlx_gptoss.folder import is_model_folder, read_manifest
from mlx_gptoss.names import DEMO, Progress, convert_source
from mlx_gptoss.registry import Registry
from mlx_gptoss.turn_lock import turn_lock

_MARGIN_BYTES: Final = 16 << 20
_LOG = logging.getLogger(__name__)


def demo_folder(registry: Registry, progress: Progress | None = None) -> Path:
    """The model folder of this package's demo checkpoint, converted first if need be.

    A folder made of another checkpoint is replaced as a whole, never written into: a process that has it open keeps
    what it has. Where that fails, the older one answers and a warning says why. Several processes at once take turns.
    Raises CheckpointError for a damaged package, InsufficientDiskError, and GptOssError where nothing can be written.
    """
    folder, revision = registry.model_folder(DEMO), demo_revision()
    if _revision_of(folder) == revision:
        return folder
    try:
        with turn_lock(registry.lock_file(DEMO), "preparing the demo checkpoint"):
            if _revision_of(folder) != revision:
                _install(folder, revision, registry, progress)
    except GptOssError as error:
        if not _is_usable(folder):
            raise
        _LOG.warning("the demo checkpoint cannot be brought up to date, the installed one is used: %s", error)
    return folder


def _install(folder: Path, revision: str, registry: Registry, progress: Progress | None) -> None:
    fresh, old = folder.with_name(f".{DEMO}.new"), folder.with_name(f".{DEMO}.old")
    if _revision_of(fresh) != revision:
        _check_disk(folder, registry.download_folder(DEMO))
        source = unpack_demo(registry.download_folder(DEMO))
        convert_source(source, fresh, progress=progress, revision=revision, overwrite=True)
    try:
        shutil.rmtree(old, ignore_errors=True)
        if folder.exists():
            folder.rename(old)
        fresh.rename(folder)
    except OSError as error:
        raise GptOssError(
            "cannot put the demo's model folder in place", got=error.strerror or str(error), where=str(folder)
        ) from error
    for rest in (old, registry.download_folder(DEMO)):
        shutil.rmtree(rest, ignore_errors=True)


def _check_disk(folder: Path, unpacked: Path) -> None:
    """Refuse before the first byte what cannot be unpacked and converted. Raises InsufficientDiskError."""
    probe = folder
    while not probe.exists():
        probe = probe.parent
    there = sum(path.stat().st_size for path in unpacked.iterdir()) if unpacked.is_dir() else 0
    needed, free = 2 * demo_bytes() - there + _MARGIN_BYTES, shutil.disk_usage(probe).free
    if free < needed:
        raise InsufficientDiskError(
            "not enough disk space for the demo",
            expected=f"{needed / 1e9:.2f} GB free while it is made",
            got=f"{free / 1e9:.2f} GB",
            where=str(probe),
            hint="Free some space or set MLX_GPTOSS_HOME to a larger disk.",
        )


def _revision_of(folder: Path) -> str | None:
    """The checkpoint that a folder was made of; None when it is no sound model folder."""
    try:
        return read_manifest(folder).source.revision if is_model_folder(folder) else None
    except CheckpointError:
        return None


def _is_usable(folder: Path) -> bool:
    try:
        read_manifest(folder)
    except CheckpointError:
        return False
    return True
