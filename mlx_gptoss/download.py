"""Files over HTTP that resume: what has arrived is kept in a `.part` file, also when the program is killed."""

from __future__ import annotations

import errno
import hashlib
import logging
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import IO, Final

import httpx

from mlx_gptoss.errors import DownloadError, InsufficientDiskError

PIECE_BYTES: Final = 1 << 20
ATTEMPTS: Final = 5
"""Failures in a row, without a byte between them, after which a download gives up."""
FIRST_PAUSE_S: Final = 1.0
"""Before trying again; each further pause is twice as long."""
_TIMEOUT: Final = httpx.Timeout(30.0, connect=15.0)
_LATER: Final = frozenset({408, 429, 500, 502, 503, 504})
_AGAIN: Final = "Run the same command again: it resumes where it stopped."
_LOG = logging.getLogger(__name__)


class RefusedError(DownloadError):
    """The server will not give a file: its HTTP status, and the code that hubs add to it ("" for none)."""

    def __init__(self, url: str, response: httpx.Response) -> None:
        said = response.headers.get("X-Error-Message") or response.reason_phrase
        super().__init__(f"cannot download {url}", got=f"{response.status_code} {said}")
        self.status = response.status_code
        self.code = str(response.headers.get("X-Error-Code") or "")


class Downloader:
    """Fetches files from one server. A context manager; not safe to use from several threads at once.

    `headers` go with every request; the authorization among them not to another host that a request is redirected to.
    """

    def __init__(self, headers: Mapping[str, str]) -> None:
        self._client = httpx.Client(headers=dict(headers), timeout=_TIMEOUT, follow_redirects=True)

    def __enter__(self) -> Downloader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._client.close()

    def fetch(
        self, url: str, target: Path, *, size: int, sha256: str = "", progress: Callable[[int], None] | None = None
    ) -> None:
        """Brings `url` to the file `target`, which appears whole or not at all.

        `size` in bytes and `sha256` (hexadecimal, "" when unknown) are what the file must have. `progress` gets the
        bytes that are here. Raises DownloadError and InsufficientDiskError; what has arrived stays for the next call,
        unless it is wrong.
        """
        part = part_of(target)
        try:
            with part.open("ab") as sink:
                if sink.tell() > size:
                    sink.truncate(0)
                self._fill(url, sink, size, progress)
            if sha256 and _hash_of(part) != sha256:
                part.unlink()
                raise DownloadError(
                    f"{target.name} arrived damaged",
                    expected=f"SHA-256 {sha256[:16]}…",
                    hint="Run the same command again: this file starts over.",
                )
            part.replace(target)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise InsufficientDiskError(
                    f"the disk filled up while downloading {target.name}",
                    where=str(target.parent),
                    hint=f"Free some space. {_AGAIN}",
                ) from error
            raise DownloadError(
                f"cannot write {target.name}", got=error.strerror or str(error), where=str(target.parent)
            ) from error

    def _fill(self, url: str, sink: IO[bytes], size: int, progress: Callable[[int], None] | None) -> None:
        failures = 0
        while (had := sink.seek(0, 2)) < size:
            try:
                self._receive(url, sink, size, progress)
                problem = "the connection ended early"
            except httpx.HTTPError as error:
                problem = str(error) or type(error).__name__
            here = sink.seek(0, 2)
            if here >= size:
                break
            failures = 1 if here > had else failures + 1
            if failures >= ATTEMPTS:
                raise DownloadError(f"cannot download {url}", got=problem, hint=f"Check the network. {_AGAIN}")
            if failures == 1:
                _LOG.warning("the download was interrupted at %d%%, trying again: %s", 100 * here // size, problem)
            time.sleep(FIRST_PAUSE_S * 2 ** (failures - 1))
        if progress is not None:
            progress(size)

    def _receive(self, url: str, sink: IO[bytes], size: int, progress: Callable[[int], None] | None) -> None:
        """Appends what one response brings. Raises httpx.HTTPError for what may pass, DownloadError for the rest."""
        here = sink.tell()
        headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={here}-"} if here else {})
        with self._client.stream("GET", url, headers=headers) as response:
            if response.status_code in _LATER:
                raise httpx.HTTPStatusError(
                    f"the server answered {response.status_code}", request=response.request, response=response
                )
            if response.status_code not in (200, 206):
                raise RefusedError(url, response)
            if response.status_code == 206 and not response.headers.get("Content-Range", "").startswith(
                f"bytes {here}-"
            ):
                raise httpx.RemoteProtocolError("the server sent another part of the file than was asked for")
            if here and response.status_code == 200:
                sink.truncate(0)  # a server that cannot send a part begins anew
                here = 0
            for piece in response.iter_bytes(PIECE_BYTES):
                here += len(piece)
                if here > size:
                    sink.truncate(0)
                    raise DownloadError(f"cannot download {url}", expected=f"{size} bytes", got="more")
                sink.write(piece)
                if progress is not None:
                    progress(here)


def part_of(target: Path) -> Path:
    """Where the beginning of a file is kept until it is whole."""
    return target.with_name(f"{target.name}.part")


def is_file_with(path: Path, size: int, sha256: str) -> bool:
    """Whether a file has this size and content."""
    return path.is_file() and path.stat().st_size == size and _hash_of(path) == sha256


def _hash_of(path: Path) -> str:
    with path.open("rb") as source:
        return hashlib.file_digest(source, "sha256").hexdigest()
