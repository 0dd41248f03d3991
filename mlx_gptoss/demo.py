"""The demo checkpoint that comes with the package: a tiny, trained gpt-oss for trying everything without a download.

It is a toy: it adds, calls tools, answers in JSON and finds facts in its own small world (see training/README.md).
"""

from __future__ import annotations

import errno
import hashlib
import json
import lzma
import os
import tarfile
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import IO, Final

from mlx_gptoss.errors import CheckpointError, InsufficientDiskError

_CHUNK: Final = 1 << 20
_HINT: Final = "Reinstall mlx-gptoss."


@dataclass(frozen=True, slots=True)
class _File:
    size: int
    sha256: str


def unpack_demo(target: Path) -> Path:
    """Unpack the demo checkpoint into the folder `target` (made when missing) and return `target`.

    The folder has the layout of the released checkpoints on Hugging Face: config.json and model.safetensors, 216 MB,
    a second or two. Files that are there and whole are kept; each other one appears only when it is whole, and
    config.json last.

    Raises CheckpointError when the packed checkpoint is missing or damaged, InsufficientDiskError for a full disk.
    """
    files = _described()
    missing = {name for name, file in files.items() if not _is_whole(target / name, file)}
    if not missing:
        return target
    try:
        target.mkdir(parents=True, exist_ok=True)
        _extract(target, files, missing)
    except (tarfile.TarError, lzma.LZMAError, EOFError) as error:
        raise CheckpointError("the demo checkpoint in this package is damaged", got=str(error), hint=_HINT) from error
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise InsufficientDiskError(
                "no space left to unpack the demo checkpoint", expected="250 MB", where=str(target)
            ) from error
        raise CheckpointError("cannot unpack the demo checkpoint", got=str(error), where=str(target)) from error
    return target


def demo_archive() -> Path:
    """Where the packed checkpoint is in this installation."""
    return Path(str(resources.files("mlx_gptoss.data") / "demo.tar.xz"))


def demo_revision() -> str:
    """What tells this package's demo checkpoint from another's: a hash of its files' hashes, 40 hexadecimal digits."""
    files = _described()
    named = "".join(f"{name} {files[name].sha256}\n" for name in sorted(files))
    return hashlib.sha256(named.encode()).hexdigest()[:40]


def demo_bytes() -> int:
    """Bytes of the unpacked checkpoint."""
    return sum(file.size for file in _described().values())


def _described() -> Mapping[str, _File]:
    """Names, sizes and hashes of the files in the archive, in the order they are packed."""
    path = demo_archive().with_name("demo.json")
    try:
        described = json.loads(path.read_text("utf-8"))
        return {name: _File(int(file["bytes"]), str(file["sha256"])) for name, file in described["files"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(
            "the demo checkpoint in this package is missing or damaged", got=str(error), where=str(path), hint=_HINT
        ) from error


def _is_whole(path: Path, file: _File) -> bool:
    try:
        if path.stat().st_size != file.size:
            return False
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest() == file.sha256
    except OSError:
        return False


def _extract(target: Path, files: Mapping[str, _File], missing: set[str]) -> None:
    left = set(missing)
    with lzma.open(demo_archive()) as packed, tarfile.open(fileobj=packed, mode="r|") as tar:
        for entry in tar:
            file = files.get(entry.name)
            content = tar.extractfile(entry) if file is not None and entry.isfile() else None
            if file is None or content is None or entry.size != file.size:
                raise CheckpointError(
                    "the demo checkpoint in this package is damaged",
                    got=f"an unexpected entry {entry.name!r}",
                    hint=_HINT,
                )
            if entry.name in left:
                _write(target / entry.name, content, file)
                left.discard(entry.name)
    if left:
        raise CheckpointError(
            "the demo checkpoint in this package is damaged", got=f"no {', '.join(sorted(left))} in it", hint=_HINT
        )


def _write(path: Path, content: IO[bytes], file: _File) -> None:
    """Copy `content` beside `path`, check it, and put it in place; nothing is left behind when that fails."""
    digest = hashlib.sha256()
    handle, partial = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".partial", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as sink:
            while chunk := content.read(_CHUNK):
                digest.update(chunk)
                sink.write(chunk)
        if digest.hexdigest() != file.sha256:
            raise CheckpointError(
                "the demo checkpoint in this package is damaged",
                expected=f"SHA-256 {file.sha256[:16]}…",
                got=f"{digest.hexdigest()[:16]}…",
                where=path.name,
                hint=_HINT,
            )
        Path(partial).chmod(0o644)
        Path(partial).replace(path)
    finally:
        Path(partial).unlink(missing_ok=True)
