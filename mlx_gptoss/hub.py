"""Bring a checkpoint from the Hugging Face hub (or a server that speaks its protocol) into a model folder."""

from __future__ import annotations

import contextlib
import fnmatch
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from mlx_gptoss import __version__
from mlx_gptoss.config import ModelConfig
from mlx_gptoss.download import Downloader, RefusedError, is_file_with, part_of
from mlx_gptoss.errors import ConfigError, DownloadError, GptOssError, InsufficientDiskError
from mlx_gptoss.folder import read_manifest
from mlx_gptoss.registry import Registry, canonical_name, read_json, write_json
from mlx_gptoss.turn_lock import turn_lock

CONFIG_NAME = "config.json"
WANTED = (
    CONFIG_NAME,
    "generation_config.json",
    "*.safetensors",
    "model.safetensors.index.json",
    "chat_template.jinja",
    "LICENSE*",
    "USAGE_POLICY*",
)
# A conversion writes as many bytes as it reads; the margin covers headers, padding and the journal.
DISK_MARGIN_BYTES = 64 << 20
_RECORD = ".downloaded.json"
"""In the staging folder: which content its files have, or will have when they are whole."""
_LONGEST_PULL_S = 7 * 24 * 3600.0


@dataclass(frozen=True, slots=True)
class PullProgress:
    """`phase` is "download" or "convert"; bytes done and in all; the file being worked on."""

    phase: str
    completed: int
    total: int
    file: str = ""


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """One file of a hub repository: its name there, its size in bytes and its content hash, if told."""

    name: str
    size: int
    digest: str = ""


@dataclass(frozen=True, slots=True)
class RemoteModel:
    """What a hub repository offers at one revision (`commit` is the full hash)."""

    name: str
    commit: str
    files: tuple[RemoteFile, ...]

    @property
    def size_bytes(self) -> int:
        return sum(file.size for file in self.files)


Progress = Callable[[PullProgress], None]


def _offline() -> bool:
    return os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "ON", "YES", "TRUE"}


def _needs_permission(name: str) -> DownloadError:
    return DownloadError(
        f"{name} needs permission",
        hint=f"Accept its terms at https://huggingface.co/{name}, then log in with `hf auth login`.",
    )


def _download_error(name: str, error: Exception) -> DownloadError:
    from huggingface_hub import errors as hub_errors

    if isinstance(error, hub_errors.GatedRepoError):
        return _needs_permission(name)
    if isinstance(error, hub_errors.RevisionNotFoundError):
        return DownloadError(f"{name} has no such revision", hint="Leave --revision out for the newest.")
    if isinstance(error, hub_errors.RepositoryNotFoundError):
        return DownloadError(
            f"the hub has no model {name}", hint="Check the spelling; private models need `hf auth login`."
        )
    return DownloadError(
        f"cannot download {name}",
        got=f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no detail'}"[:300],
        hint="Check the network, then run the same command again: it resumes where it stopped.",
    )


def look_up(name: str, *, revision: str | None = None, endpoint: str | None = None) -> RemoteModel:
    """Ask the hub which files a model has. Only what a conversion needs is listed (no `original/`, no `metal/`)."""
    from huggingface_hub import HfApi

    repository = canonical_name(name)
    if "/" not in repository:
        raise DownloadError(f"{name} is not a hub id", expected="owner/name, for example openai/gpt-oss-20b")
    if _offline():
        raise DownloadError(f"cannot download {repository}: HF_HUB_OFFLINE is set", hint="Unset it and try again.")
    try:
        info = HfApi(endpoint=endpoint).model_info(repository, revision=revision, files_metadata=True)
    except Exception as error:
        raise _download_error(repository, error) from error
    files = tuple(
        RemoteFile(sibling.rfilename, int(sibling.size or 0), str(getattr(sibling.lfs, "sha256", "") or ""))
        for sibling in info.siblings or ()
        if "/" not in sibling.rfilename and any(fnmatch.fnmatch(sibling.rfilename, pattern) for pattern in WANTED)
    )
    untold = [sibling.rfilename for sibling in info.siblings or () if sibling.size is None]
    if any(file.name in untold for file in files):
        raise DownloadError(f"the hub does not say how large the files of {repository} are", got=", ".join(untold[:5]))
    if not any(file.name == CONFIG_NAME for file in files) or not any(
        file.name.endswith(".safetensors") for file in files
    ):
        raise ConfigError(
            f"{repository} is not a checkpoint that can be converted",
            expected="config.json and *.safetensors",
            got=", ".join(sorted(sibling.rfilename for sibling in info.siblings or ())[:8]) or "no files",
        )
    return RemoteModel(repository, str(info.sha or revision or "main"), files)


def check_disk(model: RemoteModel, registry: Registry) -> None:
    """Refuse before the first byte when the disk cannot hold the download and the model folder together."""
    staging = registry.download_folder(model.name)
    places = ((file, staging / file.name) for file in model.files)
    present = sum(min(max(_size(place), _size(part_of(place))), file.size) for file, place in places)
    needed = 2 * model.size_bytes - present + DISK_MARGIN_BYTES
    probe = registry.home
    while not probe.exists():
        probe = probe.parent
    free = shutil.disk_usage(probe).free
    if free < needed:
        raise InsufficientDiskError(
            f"not enough disk space for {model.name}",
            expected=f"{needed / 1e9:.1f} GB free",
            got=f"{free / 1e9:.1f} GB",
            where=str(registry.home),
            hint="Free some space or set MLX_GPTOSS_HOME to a larger disk.",
        )


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def download(
    model: RemoteModel,
    registry: Registry,
    *,
    endpoint: str | None = None,
    progress: Progress | None = None,
) -> Path:
    """Download what is missing into the staging folder; what was interrupted resumes. Returns the folder.

    What is there of another revision is replaced. The config comes first: a model that is no gpt-oss costs no more.
    Raises ConfigError, DownloadError and InsufficientDiskError.
    """
    from huggingface_hub import get_token, hf_hub_url

    staging = registry.download_folder(model.name)
    staging.mkdir(parents=True, exist_ok=True)
    finished = 0
    token = get_token()
    headers = {"User-Agent": f"mlx-gptoss/{__version__}"} | ({"Authorization": f"Bearer {token}"} if token else {})
    with Downloader(headers) as downloader:
        for file in sorted(model.files, key=lambda item: (item.name != CONFIG_NAME, item.size)):

            def arrived(here: int, before: int = finished, name: str = file.name) -> None:
                if progress is not None:
                    progress(PullProgress("download", before + here, model.size_bytes, name))

            target = staging / file.name
            if not _is_here(file, model.commit, staging):
                url = hf_hub_url(model.name, file.name, revision=model.commit, endpoint=endpoint)
                try:
                    downloader.fetch(url, target, size=file.size, sha256=file.digest, progress=arrived)
                except RefusedError as error:
                    if error.code == "GatedRepo" or error.status in (401, 403):
                        raise _needs_permission(model.name) from error
                    raise
            if file.name == CONFIG_NAME:
                _check_config(target)
            finished += file.size
            arrived(0, finished)
    return staging


def _is_here(file: RemoteFile, commit: str, staging: Path) -> bool:
    """Whether a file is in the staging folder, whole and as this revision has it. What belongs to another one is
    deleted: files of two revisions may have the same size."""
    target, wanted = staging / file.name, file.digest or commit
    record = read_json(staging / _RECORD)
    known = record.get(file.name)
    if _size(target) == file.size and target.is_file() and known == wanted:
        return True
    kept = known is None and file.digest != "" and is_file_with(target, file.size, file.digest)
    if not kept:
        target.unlink(missing_ok=True)
    if known not in (None, wanted) or not (known or file.digest):
        part_of(target).unlink(missing_ok=True)
    write_json(staging / _RECORD, record | {file.name: wanted})
    return kept


def _check_config(path: Path) -> None:
    try:
        ModelConfig.from_file(path)
    except ConfigError:
        for leftover in (path, path.parent / _RECORD):
            leftover.unlink()
        with contextlib.suppress(OSError):  # what else is there stays
            path.parent.rmdir()
        raise


def _is_stored_as(folder: Path, precision: dict[str, str]) -> bool:
    """Whether a model folder's matrices have these precisions already (keys as for `pull`)."""
    matrices = {"attention": "layers.0.qkv", "embedding": "embed", "head": "head"}
    manifest = read_manifest(folder)
    return all(manifest.format_of(matrices[part]).format == wanted for part, wanted in precision.items())


def pull(
    name: str,
    *,
    registry: Registry | None = None,
    revision: str | None = None,
    endpoint: str | None = None,
    keep_download: bool = False,
    progress: Progress | None = None,
    precision: dict[str, str] | None = None,
    accept: Callable[[RemoteModel], None] | None = None,
    waiting: Callable[[], None] | None = None,
) -> Path:
    """Download a checkpoint, convert it, make it the default, and return its model folder.

    `accept` sees what would be downloaded before the first byte and may refuse by raising. `precision` goes to
    the converter (keys `attention`, `embedding`, `head`). The staged download is deleted once the model folder is
    complete, unless `keep_download`. While somebody else pulls the same model, this waits for them, calling `waiting`
    now and then. What `progress` or `waiting` raise ends the pull; what has arrived stays for the next one.
    """
    registry = registry if registry is not None else Registry()
    with turn_lock(registry.lock_file(name), f"pulling {name}", wait_s=_LONGEST_PULL_S, waiting=waiting):
        return _pull(name, registry, revision, endpoint, keep_download, progress, precision, accept)


def _pull(
    name: str,
    registry: Registry,
    revision: str | None,
    endpoint: str | None,
    keep_download: bool,
    progress: Progress | None,
    precision: dict[str, str] | None,
    accept: Callable[[RemoteModel], None] | None,
) -> Path:
    from mlx_gptoss.names import convert_source

    target = registry.model_folder(name)
    stored = (target / "manifest.json").is_file() and _is_stored_as(target, precision or {})
    if stored and revision is None:
        registry.set_default(name)
        return target
    model = look_up(name, revision=revision, endpoint=endpoint)
    if stored and read_manifest(target).source.revision == model.commit:
        registry.set_default(name)
        return target
    if accept is not None:
        accept(model)
    check_disk(model, registry)
    staging = download(model, registry, endpoint=endpoint, progress=progress)

    def converting(completed: int, total: int) -> None:
        if progress is not None:
            progress(PullProgress("convert", completed, total))

    try:
        convert_source(
            staging,
            target,
            progress=converting,
            precision=precision,
            revision=model.commit,
            overwrite=(target / "manifest.json").is_file(),
        )
    except OSError as error:
        raise GptOssError("the conversion failed", got=str(error), where=str(target)) from error
    if not keep_download:
        shutil.rmtree(staging, ignore_errors=True)
    registry.set_default(model.name)
    return target
