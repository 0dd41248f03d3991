"""A local server that speaks as much of the Hugging Face hub's protocol as `huggingface_hub` needs for a pull."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class FakeHub:
    """Repositories by name; each is a folder. Counts what was sent, and can fail on purpose."""

    repositories: dict[str, Path] = field(default_factory=dict)
    gated: set[str] = field(default_factory=set)
    requests: list[tuple[str, str, str | None]] = field(default_factory=list)
    bytes_sent: dict[str, int] = field(default_factory=dict)
    cut_after: dict[str, int] = field(default_factory=dict)
    refusals: dict[str, list[int]] = field(default_factory=dict)
    """Statuses to answer with first, by file."""
    no_ranges: bool = False
    wrong_ranges: bool = False
    damaged: set[str] = field(default_factory=set)
    elsewhere: bool = False
    """Files come by way of another host name."""
    tokens: list[tuple[str, str | None]] = field(default_factory=list)
    """Host name and authorization of each request for a file."""
    endpoint: str = ""


def _handler(hub: FakeHub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *arguments: object) -> None:  # noqa: A002  # the base class's name
            return

        def _json(self, status: int, value: object, headers: dict[str, str] | None = None) -> None:
            body = json.dumps(value).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            for name, text in (headers or {}).items():
                self.send_header(name, text)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def do_HEAD(self) -> None:
            self._serve()

        def do_GET(self) -> None:
            self._serve()

        def _serve(self) -> None:
            path = unquote(urlsplit(self.path).path)
            hub.requests.append((self.command, path, self.headers.get("Range")))
            parts = path.strip("/").split("/")
            if parts[:2] == ["api", "models"] and len(parts) >= 4:
                self._model_info("/".join(parts[2:4]))
            elif len(parts) >= 5 and parts[2] == "resolve" and hub.elsewhere and self._host() == "127.0.0.1":
                self.send_response(302)
                self.send_header("Location", hub.endpoint.replace("127.0.0.1", "localhost") + path)
                self.send_header("Content-Length", "0")
                self.end_headers()
                hub.tokens.append((self._host(), self.headers.get("Authorization")))
            elif len(parts) >= 5 and parts[2] == "resolve":
                hub.tokens.append((self._host(), self.headers.get("Authorization")))
                self._file("/".join(parts[:2]), "/".join(parts[4:]))
            else:
                self._json(404, {"error": "not found"})

        def _host(self) -> str:
            return (self.headers.get("Host") or "").split(":")[0]

        def _model_info(self, name: str) -> None:
            if name not in hub.repositories:
                self._json(404, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"})
                return
            siblings = [
                {
                    "rfilename": str(path.relative_to(hub.repositories[name])),
                    "size": path.stat().st_size,
                    "lfs": {"sha256": _digest(path), "size": path.stat().st_size, "pointerSize": 1},
                }
                for path in sorted(hub.repositories[name].rglob("*"))
                if path.is_file()
            ]
            self._json(200, {"id": name, "modelId": name, "sha": COMMIT, "siblings": siblings, "tags": []})

        def _file(self, name: str, file: str) -> None:
            if name in hub.gated:
                self._json(403, {"error": "gated"}, {"X-Error-Code": "GatedRepo"})
                return
            path = hub.repositories.get(name, Path("/nowhere")) / file
            if not path.is_file():
                self._json(404, {"error": "Entry not found"}, {"X-Error-Code": "EntryNotFound"})
                return
            data = path.read_bytes()
            if hub.refusals.get(file):
                self._json(hub.refusals[file].pop(0), {"error": "not now"})
                return
            if file in hub.damaged:
                data = bytes([data[0] ^ 1]) + data[1:]
            start = 0
            ranged = None if hub.no_ranges else self.headers.get("Range")
            if ranged:
                start = int(ranged.removeprefix("bytes=").split("-")[0])
            body = data[start:]
            self.send_response(206 if ranged else 200)
            self.send_header("ETag", f'"{_digest(path)}"')
            self.send_header("X-Repo-Commit", COMMIT)
            self.send_header("X-Linked-Size", str(len(data)))
            self.send_header("X-Linked-Etag", f'"{_digest(path)}"')
            self.send_header("Accept-Ranges", "bytes")
            self.send_header("Content-Length", str(len(body)))
            if ranged:
                shift = 1 if hub.wrong_ranges else 0
                self.send_header("Content-Range", f"bytes {start + shift}-{len(data) - 1}/{len(data)}")
            self.end_headers()
            if self.command == "HEAD":
                return
            cut = hub.cut_after.pop(file, None)
            sent = body if cut is None else body[:cut]
            # Counted first: a test may look as soon as the client has the bytes.
            hub.bytes_sent[file] = hub.bytes_sent.get(file, 0) + len(sent)
            self.wfile.write(sent)
            if cut is not None:
                self.wfile.flush()
                self.close_connection = True
                self.connection.close()

    return Handler


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@contextmanager
def fake_hub() -> Iterator[FakeHub]:
    """Serve on a free loopback port while the context lasts."""
    hub = FakeHub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(hub))
    server.daemon_threads = True
    hub.endpoint = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
