"""The packaged o200k ranks: unpacked once into the user's cache folder, hash-checked on every use, never downloaded."""

from __future__ import annotations

import hashlib
import lzma
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path
from typing import Final

import platformdirs

from mlx_gptoss.errors import InternalError

FILE_NAME: Final = "o200k_base.tiktoken"
FILE_SHA256: Final = "446a9538cb6c348e3516120d7c08b09f57c36495e2acfffe59a5bf8b0cfb1a2d"


def default_cache_folder() -> Path:
    """Where the unpacked file lives between runs (3.6 MB)."""
    return Path(platformdirs.user_cache_dir("mlx-gptoss", appauthor=False)) / "vocabulary"


@contextmanager
def vocabulary_folder(cache_folder: Path | None = None) -> Iterator[Path]:
    """A folder that holds a verified `o200k_base.tiktoken`, for as long as the context lasts.

    Uses `cache_folder` (default: the user's cache) when it can be written or already holds the right file; otherwise a
    temporary folder that is removed afterwards. Raises InternalError when the packaged data is damaged.
    """
    folder = default_cache_folder() if cache_folder is None else cache_folder
    if _is_genuine(folder / FILE_NAME) or _store(folder, _unpack()):
        yield folder
        return
    with tempfile.TemporaryDirectory(prefix="mlx-gptoss-vocabulary-") as name:
        temporary = Path(name)
        (temporary / FILE_NAME).write_bytes(_unpack())
        yield temporary


def _is_genuine(path: Path) -> bool:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest() == FILE_SHA256
    except OSError:
        return False


def _unpack() -> bytes:
    packed = files("mlx_gptoss.data").joinpath(FILE_NAME + ".xz")
    try:
        data = lzma.decompress(packed.read_bytes())
    except (OSError, lzma.LZMAError, EOFError) as error:
        raise InternalError(
            "the packaged vocabulary cannot be read", got=str(error), hint="Reinstall mlx-gptoss."
        ) from error
    digest = hashlib.sha256(data).hexdigest()
    if digest != FILE_SHA256:
        raise InternalError(
            "the packaged vocabulary is corrupt", expected=FILE_SHA256, got=digest, hint="Reinstall mlx-gptoss."
        )
    return data


def _store(folder: Path, data: bytes) -> bool:
    """Write the file under its name in one step; False when the folder cannot be written."""
    temporary: str | None = None
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(prefix=f".{FILE_NAME}.", dir=folder)
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        Path(temporary).chmod(0o644)
        Path(temporary).replace(folder / FILE_NAME)
    except OSError:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)
        return False
    return True
