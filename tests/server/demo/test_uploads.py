"""Uploads: their memory and what they leave behind, on the real server."""

import json
import socket
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx2
import numpy as np
import psutil
import pytest
import websockets
import websockets.sync.client

from serve_app.api.websocket import PATH as STREAM_PATH
from serve_app.cluster.proxy_patch import SERVICE_RESTART
from testing import media
from testing.digit_strings import SAMPLE_RATE, DigitString, to_int16
from testing.seed_socket_client import wait_for
from testing.server import START_S, Server, held_bytes

pytestmark = [pytest.mark.serve, pytest.mark.slow]

UPLOAD_BYTES = 800_000_000
MAX_GROWTH_BYTES = 150_000_000
RATE, CHANNELS = 192_000, 8
BOUNDARY = "boundary-of-the-form"


class Peak:
    """The most memory that some processes hold while it watches, bytes."""

    def __init__(self, processes: list[psutil.Process]) -> None:
        self._processes = processes
        self._idle = [held_bytes(process) for process in processes]
        self.most_bytes = list(self._idle)

    @property
    def growth_bytes(self) -> list[int]:
        """Beyond what they had at its start."""
        return [most - idle for most, idle in zip(self.most_bytes, self._idle, strict=True)]

    @contextmanager
    def watching(self) -> Iterator[None]:
        stop = threading.Event()

        def watch() -> None:
            while not stop.wait(0.02):
                for at, process in enumerate(self._processes):
                    self.most_bytes[at] = max(self.most_bytes[at], held_bytes(process))

        thread = threading.Thread(target=watch)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()


def form_with_large_wav(speech: DigitString, upload_bytes: int) -> Iterator[bytes]:
    """A form whose file is minutes of silence at a high rate on many channels, then speech."""
    spoken = np.repeat(to_int16(speech.samples).astype("<i4") << 16, RATE // SAMPLE_RATE)
    tail = np.repeat(spoken[:, None], CHANNELS, axis=1).tobytes()
    frame_bytes = 4 * CHANNELS
    size = upload_bytes // frame_bytes * frame_bytes
    header = struct.pack("<HHIIHH", 1, CHANNELS, RATE, RATE * frame_bytes, frame_bytes, 32)
    yield (
        f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="file"; filename="a.wav"\r\nContent-Type: audio/wav\r\n\r\n'
    ).encode()
    yield struct.pack("<4sI4s4sI", b"RIFF", 36 + size, b"WAVE", b"fmt ", len(header)) + header
    yield struct.pack("<4sI", b"data", size)
    silence = bytes(1 << 20)
    left = size - len(tail)
    while left:
        yield silence[: min(left, len(silence))]
        left -= min(left, len(silence))
    yield tail
    yield f"\r\n--{BOUNDARY}--\r\n".encode()


def send(server: Server, speech: DigitString, upload_bytes: int) -> str:
    """The text of the large file."""
    response = server.client.post(
        "/v1/audio/transcriptions",
        content=form_with_large_wav(speech, upload_bytes),
        headers={"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"},
    )
    assert response.status_code == 200, response.text
    text: str = response.json()["text"]
    return text


@pytest.mark.parametrize("upload_bytes", [UPLOAD_BYTES, pytest.param(3 * UPLOAD_BYTES, marks=pytest.mark.long)])
def test_memory_stays_flat_whatever_the_size(server: Server, strings: list[DigitString], upload_bytes: int) -> None:
    (proxy,), (ingress,), (model,) = (server.processes(name) for name in ("ProxyActor", "ingress", "model digits"))
    server.transcribe(noise(2))
    peak = Peak([proxy, ingress, model, *server.decoders()])
    with peak.watching():
        assert send(server, strings[5], upload_bytes) == strings[5].text
    print(f"growth in MB: {[grown // 1_000_000 for grown in peak.growth_bytes]}")
    assert max(peak.growth_bytes) < MAX_GROWTH_BYTES


def test_a_replica_does_not_grow_with_the_length(server: Server) -> None:
    most_bytes = []
    for minutes in (15, 60):
        peak = Peak(server.processes("model digits"))
        with peak.watching():
            assert server.transcribe(noise(minutes)).json()["usage"]["seconds"] == minutes * 60
        most_bytes += peak.most_bytes
    print(f"growth in MB: {(most_bytes[1] - most_bytes[0]) / 1_000_000:.0f}")
    # The samples alone are 86 MB more.
    assert most_bytes[1] - most_bytes[0] < 60_000_000


def noise(minutes: int) -> bytes:
    """Something for the model to hear, at 8 kHz."""
    rate = SAMPLE_RATE // 2
    return media.wav(np.random.default_rng(0).normal(0, 0.05, minutes * 60 * rate).astype(np.float32), rate)


def test_messages_come_over_a_socket_that_ends_with_its_request(server: Server) -> None:
    """Not by calls of the proxy's actor, which are only for where there is no socket."""
    (proxy,) = server.processes("ProxyActor")

    def connections() -> int:
        sockets = [line.split() for line in Path("/proc/net/unix").read_text().splitlines()]
        return sum(line[5] == "03" for line in sockets if line[-1].startswith(f"@serve-messages-{proxy.pid}-"))

    wait_for(lambda: not connections())
    with websockets.sync.client.connect(f"{server.url.replace('http', 'ws')}{STREAM_PATH}"):
        assert connections() == 1
    wait_for(lambda: not connections())


def test_nothing_is_left_on_disk_when_the_ingress_is_killed(server: Server) -> None:
    """In the middle of an upload. Its file has no name, so it goes with the process. A stream beside it is closed properly."""
    (ingress,) = server.processes("ingress")
    before = set(server.temporary.iterdir())
    head = f"--{BOUNDARY}\r\n" + 'Content-Disposition: form-data; name="file"; filename="a"\r\n\r\n'
    with (
        socket.create_connection(("127.0.0.1", server.client.base_url.port or 80)) as connection,
        websockets.sync.client.connect(server.url.replace("http", "ws") + STREAM_PATH) as stream,
    ):
        stream.send(json.dumps({"encoding": "pcm_s16le"}))
        stream.send(bytes(SAMPLE_RATE))
        connection.sendall(
            b"POST /v1/audio/transcriptions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 200000000\r\n"
            b"Content-Type: multipart/form-data; boundary=" + BOUNDARY.encode() + b"\r\n\r\n" + head.encode()
        )
        for _ in range(100):
            connection.sendall(bytes(1_000_000))
        assert server.uploads(ingress)
        ingress.kill()
        ingress.wait()
        with pytest.raises(websockets.ConnectionClosed):
            stream.recv()
        assert stream.close_code == SERVICE_RESTART
    assert set(server.temporary.iterdir()) <= before
    # The space of a file without a name is free once no process has it open.
    for process in psutil.Process(server.process_id).children(recursive=True):
        with suppress(psutil.NoSuchProcess, FileNotFoundError):
            assert not server.uploads(process)
    until = time.monotonic() + START_S
    while not is_up(server):
        assert time.monotonic() < until
        time.sleep(0.2)


def is_up(server: Server) -> bool:
    with suppress(httpx2.TransportError):
        return bool(server.processes("ingress")) and server.transcribe(media.wav(media.tone(1))).status_code == 200
    return False


def test_what_serve_would_stumble_over(server: Server, strings: list[DigitString]) -> None:
    """An offer of HTTP/2, as Java's HttpClient sends it with a body, and a request id that is no text."""
    headers = [
        *[(b"Connection", b"Upgrade, HTTP2-Settings"), (b"Upgrade", b"h2c"), (b"HTTP2-Settings", b"AAEAAEAAAAIAAAABAAMAAABk")],
        *[(b"x-request-id", b"\xe4\xff\x80"), (b"serve_multiplexed_model_id", b"\xff"), (b"x-request-timeout-seconds", b"0.001")],
    ]
    with httpx2.Client(base_url=server.url, timeout=60) as client:
        answer = client.post("/v1/audio/transcriptions", files={"file": media.as_wav(strings[0])}, headers=headers)
    assert (answer.status_code, answer.json()["text"]) == (200, strings[0].text)
    assert answer.headers["x-request-id"].isascii()
