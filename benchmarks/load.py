"""HTTP load from a process of its own: closed loops of clients, and open loops with arrivals at given times.

The requests are made before the measurement and the answers are compared as they come, so that a client costs little more than
the sending of its file.
"""

import asyncio
import json
import random
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from types import TracebackType
from urllib.parse import urlsplit

BOUNDARY = "part-of-a-benchmark"


@dataclass(frozen=True, slots=True)
class Request:
    """A complete HTTP/1.1 request and the text that its answer must have; None: any."""

    data: bytes
    text: str | None


@dataclass(frozen=True, slots=True)
class Load:
    """Results of a loop."""

    latencies_s: list[float]
    """One for every request: from its sending (closed loop) or its scheduled arrival (open loop) to the end of its answer."""
    wall_s: float
    """From the start to the end of the last answer."""
    cpu_s: float
    """CPU time of the clients."""

    @property
    def requests_per_s(self) -> float:
        return len(self.latencies_s) / self.wall_s


def transcription(audio: bytes, text: str | None) -> Request:
    """A request for `response_format=json` of an audio file, whose answer must be `text`; None: any."""
    disposition = f"--{BOUNDARY}\r\nContent-Disposition: form-data; name="
    body = (
        f'{disposition}"response_format"\r\n\r\njson\r\n{disposition}"file"; filename="audio"\r\n\r\n'.encode()
        + audio
        + f"\r\n--{BOUNDARY}--\r\n".encode()
    )
    head = (
        "POST /v1/audio/transcriptions HTTP/1.1\r\nHost: localhost\r\n"
        f"Content-Type: multipart/form-data; boundary={BOUNDARY}\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return Request(head.encode() + body, text)


def poisson_arrivals(per_s: float, seconds: float, seed: int) -> list[float]:
    """Times of a Poisson process within `seconds`, in order, at a mean rate of `per_s`."""
    rng, times, at_s = random.Random(seed), list[float](), 0.0
    while (at_s := at_s + rng.expovariate(per_s)) < seconds:
        times.append(at_s)
    return times


class LoadProcess:
    """Runs loops in a process of its own, one at a time. A context manager.

    A wrong answer ends a loop with an ExceptionGroup of RuntimeError.
    """

    def __init__(self, url: str) -> None:
        self._url = url
        self._process = ProcessPoolExecutor(1, get_context("spawn"))

    def __enter__(self) -> "LoadProcess":
        self._process.submit(time.monotonic).result()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._process.shutdown()

    def closed_loop(self, requests: Sequence[Request], clients: int, seconds: float) -> Load:
        """Each client sends the next request once it has the answer to the one before, for so many seconds."""
        return self._process.submit(_run_closed, self._url, requests, clients, seconds).result()

    def open_loop(self, requests: Sequence[Request], arrivals_s: Sequence[float]) -> Load:
        """A request at each of these times, however many are in progress."""
        return self._process.submit(_run_open, self._url, requests, arrivals_s).result()


class _Connection:
    """A connection that is kept alive."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    @classmethod
    async def open(cls, url: str) -> "_Connection":
        address = urlsplit(url)
        return cls(*await asyncio.open_connection(address.hostname, address.port))

    async def send(self, request: Request) -> None:
        """Raises RuntimeError for an answer that is not the expected one."""
        self._writer.write(request.data)
        head = (await self._reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
        length = next(line.partition(":")[2] for line in head.split("\r\n") if line.startswith("content-length:"))
        body = await self._reader.readexactly(int(length))
        is_ok = " 200 " in head.partition("\r\n")[0]
        if not is_ok or (request.text is not None and json.loads(body)["text"] != request.text):
            raise RuntimeError(f"a wrong answer: {head}{body.decode()}, not {request.text!r}")

    async def close(self) -> None:
        self._writer.close()
        await self._writer.wait_closed()


def _run_closed(url: str, requests: Sequence[Request], clients: int, seconds: float) -> Load:
    return asyncio.run(_closed(url, requests, clients, seconds))


def _run_open(url: str, requests: Sequence[Request], arrivals_s: Sequence[float]) -> Load:
    return asyncio.run(_open(url, requests, arrivals_s))


async def _closed(url: str, requests: Sequence[Request], clients: int, seconds: float) -> Load:
    connections = [await _Connection.open(url) for _ in range(clients)]
    latencies_s, cpu_s, began_s = list[float](), time.process_time(), time.perf_counter()

    async def client(number: int, connection: _Connection) -> None:
        while (sent_s := time.perf_counter()) < began_s + seconds:
            await connection.send(requests[number % len(requests)])
            latencies_s.append(time.perf_counter() - sent_s)
            number += clients

    async with asyncio.TaskGroup() as group:
        for number, connection in enumerate(connections):
            group.create_task(client(number, connection))
    load = Load(latencies_s, time.perf_counter() - began_s, time.process_time() - cpu_s)
    for connection in connections:
        await connection.close()
    return load


async def _open(url: str, requests: Sequence[Request], arrivals_s: Sequence[float]) -> Load:
    idle, opened, latencies_s = list[_Connection](), list[_Connection](), list[float]()
    cpu_s, began_s = time.process_time(), time.perf_counter()

    async def arrive(request: Request, scheduled_s: float) -> None:
        if idle:
            connection = idle.pop()
        else:
            connection = await _Connection.open(url)
            opened.append(connection)
        await connection.send(request)
        idle.append(connection)
        latencies_s.append(time.perf_counter() - scheduled_s)

    async with asyncio.TaskGroup() as group:
        for number, arrival_s in enumerate(arrivals_s):
            await asyncio.sleep(began_s + arrival_s - time.perf_counter())
            group.create_task(arrive(requests[number % len(requests)], began_s + arrival_s))
    load = Load(latencies_s, time.perf_counter() - began_s, time.process_time() - cpu_s)
    for connection in opened:
        await connection.close()
    return load
