"""Abuse of a running server: while it lasts, other clients are answered, and nothing of it is left afterwards."""

import contextlib
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx2
import pytest

from serve_app.api.exports import MAX_SEGMENT_WORDS, PATH
from serve_app.api.forms import MAX_FIELD_BYTES
from testing import media
from testing.open_requests import FORM, FORM_HEAD
from testing.paths import ROOT
from testing.server import Server, held_bytes, serve_run

pytestmark = [pytest.mark.serve, pytest.mark.long]

ABUSE_S = 15.0
WARM_UP_S = 5.0
ASK_EVERY_S = 0.1
MAX_ANSWER_S = 0.5
MAX_GROWTH_BYTES = 50_000_000
CLIENTS = 8
UPLOADS = 16
MAX_REQUESTS = 64
"""Fewer than the uploads of all clients, which are no requests at work."""

Send = Callable[[Server, float], None]
"""One client of an abuse, which goes on until a time of the monotonic clock."""


def exporting(segments: list[dict[str, Any]], leaves_after_s: float | None = None) -> Send:
    """Sends an export again and again; with `leaves_after_s` without waiting for the response."""
    cues = {"max_lines": 10, "max_line_chars": 500, "max_cue_s": 60}
    body = json.dumps({"response_format": "srt", "duration": 1, "segments": segments, **cues}).encode()

    def send(server: Server, until_s: float) -> None:
        with httpx2.Client(base_url=server.url, timeout=leaves_after_s or 300) as client:
            while time.monotonic() < until_s:
                with contextlib.suppress(httpx2.TimeoutException):
                    response = client.post(PATH, content=body, headers={"content-type": "application/json"})
                    assert response.status_code in (200, 400, 429), response.text

    return send


def uploading(head: bytes, piece: bytes, pause_s: float) -> Send:
    """Holds UPLOADS open, and sends a piece of each from time to time."""
    request = "POST /v1/audio/transcriptions HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n"
    start = f"{request}Content-Type: {FORM['content-type']}\r\n\r\n".encode()

    def send(server: Server, until_s: float) -> None:
        address = ("127.0.0.1", server.client.base_url.port or 80)
        with contextlib.ExitStack() as stack:
            connections = [stack.enter_context(socket.create_connection(address)) for _ in range(UPLOADS)]
            for connection in connections:
                connection.sendall(start + chunk(head))
            while time.monotonic() < until_s:
                for connection in connections:
                    with contextlib.suppress(OSError):
                        connection.sendall(chunk(piece))
                time.sleep(pause_s)

    return send


def chunk(data: bytes) -> bytes:
    return f"{len(data):x}\r\n".encode() + data + b"\r\n" if data else b""


WORD = {"word": "a", "start": 0, "end": 0, "probability": 1}
WITH_WORDS = {"start": 0, "end": 0, "text": "a", "words": [WORD] * MAX_SEGMENT_WORDS}
AT_ONE_INSTANT = {"start": 0, "end": 0, "text": "a " * 20_000}
FIELD = b'--x\r\nContent-Disposition: form-data; name="keywords[]"\r\n\r\n'
LARGE_FIELDS = (FIELD + bytes(60_000) + b"\r\n") * (MAX_FIELD_BYTES // 65_000)
ABUSES: dict[str, Send] = {
    "exports of words at one instant": exporting([AT_ONE_INSTANT]),
    "the same, from clients that leave": exporting([AT_ONE_INSTANT], leaves_after_s=1),
    "exports with the most words": exporting([WITH_WORDS] * 9),
    "silent uploads": uploading(b"", b"", 1.0),
    "uploads of one byte a second": uploading(FORM_HEAD, b"x", 1.0),
    "the same, with the largest fields": uploading(LARGE_FIELDS + FORM_HEAD, b"x", 1.0),
}


ARGS = {"limits": {"max_requests": MAX_REQUESTS}}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serve_run(ROOT / "configs" / "demo.yaml", tmp_path_factory.mktemp("abuse"), args=ARGS) as server:
        server.wait_for_state("digits", "ready")
        for _ in range(20):
            server.transcribe(media.wav(media.tone(2)))
        yield server


@pytest.mark.parametrize("name", ABUSES)
def test_others_are_answered(server: Server, name: str) -> None:
    (ingress,) = server.processes("ingress")
    # The first time, Python and its libraries take memory that they keep.
    with abusing(server, ABUSES[name], WARM_UP_S):
        pass
    wait_until_idle(server)
    before_bytes = held_bytes(ingress)
    answers_s: list[float] = []
    statuses: set[int] = set()
    is_over = threading.Event()

    def ask() -> None:
        with httpx2.Client(base_url=server.url, timeout=60) as client:
            while not is_over.wait(ASK_EVERY_S):
                began_s = time.monotonic()
                statuses.add(client.get("/health").status_code)
                answers_s.append(time.monotonic() - began_s)

    with ThreadPoolExecutor(1) as client:
        asking = client.submit(ask)
        with abusing(server, ABUSES[name], ABUSE_S):
            time.sleep(ABUSE_S / 2)
            own = server.transcribe(media.wav(media.tone(2)))
        is_over.set()
        asking.result()
    wait_until_idle(server)
    grown_bytes = held_bytes(ingress) - before_bytes
    print(f"{name}: {len(answers_s)} answers, the slowest after {max(answers_s):.2f} s, {grown_bytes / 1e6:.0f} MB more")
    assert own.status_code == 200, own.text
    assert statuses == {200}
    assert max(answers_s) < MAX_ANSWER_S
    assert grown_bytes < MAX_GROWTH_BYTES


@contextlib.contextmanager
def abusing(server: Server, send: Send, seconds: float) -> Iterator[None]:
    """CLIENTS clients abuse the server while the block runs, for so many seconds."""
    until_s = time.monotonic() + seconds
    with ThreadPoolExecutor(CLIENTS) as clients:
        abuses = [clients.submit(send, server, until_s) for _ in range(CLIENTS)]
        yield
        for abuse in abuses:
            abuse.result()


def wait_until_idle(server: Server) -> None:
    """Wait until the ingress has nothing to do: work for clients that are gone must have ended within seconds."""
    (ingress,) = server.processes("ingress")
    until_s = time.monotonic() + 60
    while ingress.cpu_percent(interval=1.0) > 30:
        assert time.monotonic() < until_s, "it goes on"
