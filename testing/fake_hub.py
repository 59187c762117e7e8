"""A fake Hugging Face hub on 127.0.0.1: it serves one file of one repository at some revisions, and can fail in all the ways of
the real hub.

huggingface_hub uses it in processes with `HF_ENDPOINT=hub.endpoint` and an empty `HF_HOME`.
"""

import hashlib
import json
import re
import socket
import struct
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar, Literal, Self, cast
from urllib.parse import quote, unquote

Mode = Literal["whole", "slow", "breaking", "resetting", "stalling", "silent", "no repository", "no file", "gated", "down"]

ERRORS: dict[Mode, tuple[int, str]] = {
    "no repository": (404, "RepoNotFound"),
    "gated": (401, "GatedRepo"),
}
"""HTTP status and `X-Error-Code` of the modes in which each request fails."""

PATH = re.compile(
    r"(/api/models)?/(?P<repository>[^/]+/[^/]+)/(?P<verb>resolve|tree)/(?P<revision>[^/?]+)(/(?P<file>[^?]*))?(\?.*)?"
)
"""Of a file (`resolve`) and of the list of files (`tree`); slashes in a revision are escaped."""

COMMIT = "0123456789abcdef0123456789abcdef01234567"
REVISIONS = {"main": COMMIT}
PIECE_BYTES = 64 * 1024
"""Bytes per write of a response's body."""


@dataclass(frozen=True, slots=True)
class Request:
    """One request to the hub."""

    method: str
    path: str
    first_byte: int
    """First byte of the requested range; 0 without a Range header."""
    token: str | None


class FakeHub:
    """The hub; it runs while its context is open. `mode` may be changed at any time and applies to later requests:

    - `whole`: sends the file at full speed
    - `slow`: sends the file at `bytes_per_s`
    - `breaking`, `resetting`: closes or resets the connection of a GET after `limit_bytes`; if `breaks` is set, only the next
      `breaks` times
    - `stalling`: sends `limit_bytes` of a GET, then nothing more, and keeps the connection open
    - `silent`: accepts requests and never answers
    - `no repository`, `no file`, `gated`: answers with the error that the real hub sends; so it does in every mode for another
      repository, file or revision than its own
    - `down`: refuses connections; only as the initial mode
    """

    def __init__(
        self,
        file: Path,
        mode: Mode = "whole",
        *,
        repository: str = "nvidia/parakeet-tdt-0.6b-v2",
        file_name: str | None = None,
        revisions: Mapping[str, str] = REVISIONS,
        bytes_per_s: int = 1_000_000,
        limit_bytes: int = 1_000_000,
        breaks: int | None = None,
        port: int = 0,
    ) -> None:
        self.mode = mode
        self.bytes_per_s = bytes_per_s
        self.limit_bytes = limit_bytes
        self.breaks = breaks
        self.requests: list[Request] = []
        """All requests so far, oldest first."""
        self.content = file.read_bytes()
        self.etag = hashlib.sha256(self.content).hexdigest()
        self.repository = repository
        self.file_name = file_name or f"{repository.split('/')[1]}.nemo"
        """Path of the file in the repository; as a rule the one that a source without a file means."""
        self.revisions = revisions
        """Commit by branch, tag or commit."""
        self.closing = threading.Event()
        self._server = _Server(self, port)
        self.endpoint = f"http://127.0.0.1:{self._server.server_port}"
        """The value for HF_ENDPOINT."""
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)

    def __enter__(self) -> Self:
        if self.mode == "down":
            self._server.server_close()
        else:
            self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.closing.set()
        if self._thread.is_alive():
            self._server.shutdown()
            self._thread.join()
        self._server.server_close()

    @property
    def gets(self) -> list[Request]:
        """The requests that download the file; huggingface_hub also sends others."""
        paths = {f"/{self.repository}/resolve/{quote(revision, safe='')}/{self.file_name}" for revision in self.revisions}
        return [request for request in self.requests if request.method == "GET" and request.path in paths]

    def breaks_connection(self) -> bool:
        """Whether to break the connection of the current GET; counts `breaks` down."""
        if self.mode not in ("breaking", "resetting") or self.breaks == 0:
            return False
        if self.breaks is not None:
            self.breaks -= 1
        return True


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, hub: FakeHub, port: int) -> None:
        super().__init__(("127.0.0.1", port), _Handler)
        self.hub = hub

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Logs nothing: clients that disconnect are part of the tests."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout: ClassVar[float] = 60.0

    @property
    def hub(self) -> FakeHub:
        return cast(_Server, self.server).hub

    def log_message(self, format: str, *args: Any) -> None:
        """Logs nothing: `FakeHub.requests` has the requests."""

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        hub = self.hub
        byte_range = self.headers.get("Range")
        first = int(byte_range.removeprefix("bytes=").split("-")[0]) if byte_range else 0
        hub.requests.append(Request(self.command, self.path, first, self.headers.get("Authorization")))
        if hub.mode == "silent":
            hub.closing.wait()
            self.close_connection = True
        elif hub.mode in ERRORS:
            self._send_error(*ERRORS[hub.mode])
        else:
            self._route(byte_range, first)

    def _route(self, byte_range: str | None, first: int) -> None:
        hub, asked = self.hub, PATH.fullmatch(self.path)
        if asked is None or asked["repository"] != hub.repository:
            self._send_error(404, "RepoNotFound")
        elif (revision := unquote(asked["revision"])) not in hub.revisions:
            self._send_error(404, "RevisionNotFound")
        elif asked["verb"] == "tree":
            self._send_file_list()
        elif asked["file"] != hub.file_name or hub.mode == "no file":
            self._send_error(404, "EntryNotFound")
        else:
            self.send_response(206 if byte_range else 200)
            self.send_header("ETag", f'"{hub.etag}"')
            self.send_header("X-Repo-Commit", hub.revisions[revision])
            self.send_header("Accept-Ranges", "bytes")
            self.send_header("Content-Length", str(len(hub.content) - first))
            if byte_range:
                self.send_header("Content-Range", f"bytes {first}-{len(hub.content) - 1}/{len(hub.content)}")
            self.end_headers()
            if self.command == "GET":
                self._send(memoryview(hub.content)[first:])

    def _send_file_list(self) -> None:
        names = ["README.md"] if self.hub.mode == "no file" else ["README.md", self.hub.file_name]
        entries = [{"type": "file", "path": name, "size": 1, "oid": self.hub.etag[:40]} for name in names]
        content = json.dumps(entries).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def _send_error(self, status: int, code: str) -> None:
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _send(self, content: memoryview) -> None:
        hub = self.hub
        if hub.breaks_connection():
            self._send_pieces(content[: hub.limit_bytes])
            self.close_connection = True
            if hub.mode == "resetting":
                # Let the client read first: a reset discards the data that it has not read yet.
                time.sleep(0.2)
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                self.connection.close()
        elif hub.mode == "stalling":
            self._send_pieces(content[: hub.limit_bytes])
            hub.closing.wait()
            self.close_connection = True
        else:
            self._send_pieces(content)

    def _send_pieces(self, content: memoryview) -> None:
        for piece in _pieces(content):
            if self.hub.mode == "slow" and self.hub.closing.wait(len(piece) / self.hub.bytes_per_s):
                return
            self.wfile.write(piece)


def _pieces(content: memoryview) -> Iterator[memoryview]:
    for start in range(0, len(content), PIECE_BYTES):
        yield content[start : start + PIECE_BYTES]
