"""The examples for nginx and Caddy in front of the running server: TLS, the prefix, uploads, WebSockets, events, addresses."""

import contextlib
import json
import re
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urljoin, urlsplit

import numpy as np
import psutil
import pytest
from websockets.sync.client import connect

from serve_app.api.exports import MAX_EXPORTS_PER_ADDRESS
from serve_app.api.exports import PATH as EXPORT_PATH
from serve_app.api.websocket import PATH as STREAM_PATH
from testing import media
from testing.digit_strings import SAMPLE_RATE, DigitString
from testing.reverse_proxy import KINDS, PREFIX, ReverseProxy, program, reverse_proxy
from testing.server import Server
from tests.server.demo.test_uploads import BOUNDARY, form_with_large_wav

pytestmark = [pytest.mark.serve]

UPLOAD_BYTES = 24_000_000
MAX_SEEN_BYTES = UPLOAD_BYTES // 3
"""What the server must have stored when two thirds of the upload are sent; proxies keep some hundred kB in memory."""

EXPORT = {"segments": [{"start": 0, "end": 1, "text": "One."}], "duration": 1, "response_format": "text"}
UNTIL_S = 30.0


@pytest.fixture(scope="module", params=KINDS)
def proxy(request: pytest.FixtureRequest, server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ReverseProxy]:
    if program(request.param) is None:
        pytest.skip(f"{request.param} is not installed (Debian: apt install {request.param})")
    pytest.importorskip("cryptography", reason="needs `cryptography` to make a certificate")
    with reverse_proxy(request.param, server, tmp_path_factory.mktemp(request.param)) as proxy:
        yield proxy


def until(holds: Callable[[], bool], problem: str) -> None:
    deadline = time.monotonic() + UNTIL_S
    while not holds():
        assert time.monotonic() < deadline, problem
        time.sleep(0.05)


def open_files_bytes(process: psutil.Process, folder: str) -> int:
    """Size of the files below that folder that a process has open, those without a name included."""
    total = 0
    for descriptor in Path(f"/proc/{process.pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            if str(descriptor.readlink()).startswith(folder):
                total += descriptor.stat().st_size
    return total


def test_a_large_upload_is_stored_by_the_server_alone(server: Server, proxy: ReverseProxy, strings: list[DigitString]) -> None:
    """It has what was sent so far before the rest is, and the proxy keeps no file of it."""
    (ingress,) = server.processes("ingress")
    pieces = list(form_with_large_wav(strings[3], UPLOAD_BYTES))
    sent = 0

    def body() -> Iterator[bytes]:
        nonlocal sent
        for piece in pieces:
            if sent > 2 * MAX_SEEN_BYTES:
                stored = lambda: open_files_bytes(ingress, str(server.temporary)) > MAX_SEEN_BYTES  # noqa: E731
                until(stored, "the server does not get the upload while it is sent")
                assert open_files_bytes(proxy.process, str(proxy.folder)) < MAX_SEEN_BYTES
            yield piece
            sent += len(piece)

    headers = {
        "Content-Type": f"multipart/form-data; boundary={BOUNDARY}",
        "Content-Length": str(sum(len(piece) for piece in pieces)),
    }
    with proxy.client() as client:
        answer = client.post("/v1/audio/transcriptions", content=body(), headers=headers)
    assert (answer.status_code, answer.json()["text"]) == (200, strings[3].text)


def test_an_upload_that_is_too_large_is_refused_while_it_is_sent(proxy: ReverseProxy) -> None:
    headers = {"Content-Type": "multipart/form-data; boundary=x", "Content-Length": "9000000000"}
    with opened(proxy, f"POST {PREFIX}/v1/audio/transcriptions", headers) as connection:
        connection.settimeout(0.05)
        answer = b""
        for _ in range(200):
            connection.sendall(bytes(1_000))
            with contextlib.suppress(TimeoutError):
                answer = connection.recv(1_000)
                break
    assert answer.startswith(b"HTTP/1.1 413 ")


def test_a_websocket(proxy: ReverseProxy, strings: list[DigitString]) -> None:
    url = proxy.url.replace("https", "wss") + STREAM_PATH
    with connect(url, ssl=proxy.certificates) as socket:
        socket.send(json.dumps({"encoding": "pcm_s16le"}))
        socket.send(media.pcm(strings[3].samples, "pcm_s16le"))
        socket.send("END")
        messages = [json.loads(message) for message in socket]
    assert " ".join(message["text"] for message in messages if message["type"] == "segment") == strings[3].text


def test_events_arrive_one_by_one(server: Server, proxy: ReverseProxy) -> None:
    """The first one does before the job, which has minutes of audio, is cancelled. That the last one tells of it shows so."""
    noise = media.wav(np.random.default_rng(0).normal(0, 0.05, 1200 * SAMPLE_RATE // 2), SAMPLE_RATE // 2)
    job = server.client.post("/v1/jobs", files={"file": ("noise.wav", noise)}).json()
    with proxy.client() as client, client.stream("GET", f"/v1/jobs/{job['id']}/events") as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        lines = answer.iter_lines()
        assert next(lines).strip()
        assert server.client.delete(f"/v1/jobs/{job['id']}").status_code == 200
        data = [json.loads(line.removeprefix("data: ")) for line in lines if line.startswith("data: ")]
    assert data[-1]["state"] == "cancelled"


def test_the_page_below_the_prefix(proxy: ReverseProxy) -> None:
    with proxy.client() as client:
        redirection = client.get(proxy.url)
        assert urljoin(proxy.url, redirection.headers["location"]) == f"{proxy.url}/"
        page = client.get("/")
        assert "<title>" in page.text
        links = re.findall(r'(?:href|src)="([^"#]+)"', page.text)
        assert {"static/app.js", "docs"} <= set(links)
        for link in links:
            assert client.get(urljoin(f"{proxy.url}/", link)).status_code == 200, link
        description = re.findall(r"url: '([^']+)'", client.get("/docs").text)
        assert description == [f"{PREFIX}/openapi.json"]
        assert client.get(urljoin(proxy.url, description[0])).json()["servers"] == [{"url": PREFIX}]


def test_limits_count_the_address_of_the_client(proxy: ReverseProxy) -> None:
    """Whatever the client says of itself. The server trusts the address that nginx connects from, and this machine, where Caddy
    is."""
    mine, others = "127.0.0.2", "127.0.0.3"
    headers = {"Content-Type": "application/json", "Content-Length": "100"}
    with contextlib.ExitStack() as stack, proxy.client(mine) as client, proxy.client(others) as other:
        unfinished = list[socket.socket]()

        def begin() -> None:
            invented = headers | {"X-Forwarded-For": f"192.0.2.{len(unfinished)}"}
            unfinished.append(stack.enter_context(opened(proxy, f"POST {PREFIX}{EXPORT_PATH}", invented, mine)))

        def is_refused() -> bool:
            if client.post(EXPORT_PATH, json=EXPORT, headers={"X-Forwarded-For": "192.0.2.99"}).status_code == 429:
                return True
            begin()  # This one may have had the place of an unfinished one, which then was refused.
            return False

        for _ in range(MAX_EXPORTS_PER_ADDRESS):
            begin()
        until(is_refused, "exports of one address are not counted together")
        assert other.post(EXPORT_PATH, json=EXPORT).text == "One.\n"
        for connection in unfinished:
            connection.sendall(bytes(100))
        answers = Counter(connection.recv(1_000)[:12] for connection in unfinished)
        assert answers[b"HTTP/1.1 400"] == MAX_EXPORTS_PER_ADDRESS
        assert set(answers) <= {b"HTTP/1.1 400", b"HTTP/1.1 429"}


@contextlib.contextmanager
def opened(
    proxy: ReverseProxy, request: str, headers: dict[str, str], source_address: str = "127.0.0.1"
) -> Iterator[socket.socket]:
    """A connection on which a request without its body was sent."""
    address = urlsplit(proxy.url)
    host, port = str(address.hostname), address.port or 443
    lines = [f"{request} HTTP/1.1", f"Host: {host}:{port}", *(f"{name}: {value}" for name, value in headers.items()), "", ""]
    with (
        socket.create_connection((host, port), UNTIL_S, source_address=(source_address, 0)) as plain,
        proxy.certificates.wrap_socket(plain, server_hostname=host) as connection,
    ):
        connection.sendall("\r\n".join(lines).encode())
        yield connection
