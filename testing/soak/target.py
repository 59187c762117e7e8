"""The server of the soak, what is sent to it, and how clients reach it."""

import asyncio
import json
import random
import socket
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import httpx2
import numpy as np
import websockets

from serve_app.api.websocket import PATH as SOCKET_PATH
from serve_app.window import SAMPLE_RATE, Samples
from testing import media
from testing.fuzz_media import seed_files

PATH = "/v1/audio/transcriptions"
SIMULATED = "simulated"
"""The model that takes long for long files."""

MAX_UPLOAD_BYTES = 8_000_000
MAX_AUDIO_S = 600.0
PAUSE_S = 4.0
"""Limits of the server: without data in an upload or a stream it waits so long, seconds."""

LONG_S = 120.0
"""Length of a file that is still at work when its client leaves, seconds."""

DEAF_S = 10.0
"""How long a client that does not read stays, seconds."""

ANSWER_S = 120.0
"""Every answer comes sooner, seconds."""

RECEIVE_BUFFER_BYTES = 4096
"""Of a client that does not read: what the server sends stays with the server."""


@dataclass(frozen=True, slots=True)
class Target:
    """The server, and what is sent to it."""

    url: str
    http: httpx2.AsyncClient
    intact: Sequence[bytes]
    """Files in many formats, with SPOKEN in each."""
    long: bytes
    """A file of LONG_S."""
    speech: Samples
    """For live streams, int16 [samples]."""
    cases: Sequence["Case"]
    """Requests that are wrong."""


Attempt = Callable[[Target, random.Random], Awaitable[str]]
"""Returns what the client got where it is not what it deserves; empty: all is well."""


@dataclass(frozen=True, slots=True)
class Case:
    """A wrong request, and the answer that it deserves."""

    status: int
    code: str
    file: bytes | None = None
    fields: Mapping[str, str] | None = None
    body: bytes | None = None
    """In the place of a form."""


def target(url: str, http: httpx2.AsyncClient, speech: Samples) -> Target:
    rng = np.random.default_rng(3)
    noise = rng.integers(-8000, 8000, round(LONG_S * SAMPLE_RATE), dtype=np.int16)
    intact = list(seed_files().values())
    cases = [
        Case(400, "invalid_audio", b""),
        Case(400, "invalid_audio", rng.bytes(50_000)),
        Case(400, "invalid_audio", intact[0][:40]),
        Case(400, "invalid_audio", media.silent_video()),
        Case(413, "audio_too_long", media.days_of_flac(1)),
        Case(400, "missing_required_parameter", fields={"response_format": "json"}),
        Case(400, "invalid_value", intact[0], {"response_format": "cuneiform"}),
        Case(400, "invalid_value", intact[0], {"temperature": "hot"}),
        Case(404, "model_not_found", intact[0], {"model": "none"}),
        Case(400, "invalid_request", body=b"no form at all"),
    ]
    return Target(url, http, intact, media.wav(noise), speech, cases)


async def connect(target: Target) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    address = urlsplit(target.url)
    return await asyncio.open_connection(address.hostname, address.port)


async def connect_deaf(target: Target) -> asyncio.StreamWriter:
    """Of a client that does not read."""
    _, writer = await asyncio.open_connection(sock=small_socket(target), limit=1)
    return writer


def small_socket(target: Target) -> socket.socket:
    """A connection that takes little before somebody reads."""
    address = urlsplit(target.url)
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER_BYTES)
    connection.connect((address.hostname, address.port))
    connection.setblocking(False)
    return connection


def websocket(target: Target, **options: Any) -> Any:
    return websockets.connect(
        target.url.replace("http", "ws") + SOCKET_PATH, compression=None, ping_interval=None, close_timeout=1, **options
    )


async def answer_to(reader: asyncio.StreamReader) -> tuple[int, bytes]:
    """Status and body."""
    async with asyncio.timeout(ANSWER_S):
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
        lengths = [line.partition(":")[2] for line in head.split("\r\n") if line.startswith("content-length:")]
        return int(head.split()[1]), await reader.readexactly(int(lengths[0]))


async def refused(target: Target, data: bytes, status: int, code: str) -> str:
    """Send this, which has an answer before it ends."""
    reader, writer = await connect(target)
    try:
        writer.write(data)
        got, body = await answer_to(reader)
        return "" if got == status and json.loads(body)["error"]["code"] == code else f"{got} {body[:200]!r}"
    finally:
        writer.transport.abort()


def pieces(data: bytes, number: int) -> list[bytes]:
    size = len(data) // number + 1
    return [data[at : at + size] for at in range(0, len(data), size)]


def told(answer: httpx2.Response) -> str:
    return f"{answer.status_code} {answer.text[:200]}"
