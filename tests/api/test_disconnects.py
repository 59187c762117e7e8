"""A client that is gone: whatever ran for it ends at once and cleans up, for every kind of answer."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx2
import numpy as np
import psutil
import pytest
from starlette.types import Message, Receive, Scope, Send

from serve_app.api import create_api
from serve_app.api.disconnects import StopWhenGone
from serve_app.settings import LimitSettings
from serve_app.window import SAMPLE_RATE
from testing import media
from testing.fake_service import FakeService
from testing.server import open_files

LONG = media.wav(np.random.default_rng(0).normal(0, 0.1, 90 * SAMPLE_RATE))
"""Larger than what is held in memory, and longer than a window."""


class Client:
    """A request that was sent; `leave` ends its connection."""

    def __init__(self, server: FakeService, **fields: str) -> None:
        request = httpx2.Request("POST", "http://x/v1/audio/transcriptions", files={"file": ("x.wav", LONG)}, data=fields)
        headers = [(name.lower(), value) for name, value in request.headers.raw]
        scope = {"type": "http", "method": "POST", "path": request.url.path, "query_string": b"", "headers": headers}
        self._body = request.read()
        self._server = server
        self._gone = asyncio.Event()
        self.sent: list[Message] = []
        self.work = asyncio.ensure_future(create_api(server.service)(scope, self._receive, self._send))

    async def _receive(self) -> Message:
        if self._body:
            body, self._body = self._body, b""
            return {"type": "http.request", "body": body}
        await self._gone.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: Message) -> None:
        self.sent.append(message)

    async def waits_for_windows(self) -> None:
        async with asyncio.timeout(20):
            while not self._server.windows:  # noqa: ASYNC110
                await asyncio.sleep(0.01)

    def leave(self) -> None:
        self._gone.set()


@asynccontextmanager
async def cleaned_up(server: FakeService) -> AsyncIterator[None]:
    """Asserts that nothing is left of what the block began."""
    process = psutil.Process()
    files, tasks_before = open_files(process), asyncio.all_tasks()
    yield
    async with asyncio.timeout(20):
        while tasks := asyncio.all_tasks() - tasks_before:
            await asyncio.wait(tasks)
    assert open_files(process) <= files
    assert server.service.admission.requests == 0
    assert server.service.admission.windows_per_job == server.service.settings.limits.max_windows_in_flight


@pytest.fixture
def server() -> FakeService:
    """Its windows never end."""
    server = FakeService(limits=LimitSettings())
    server.hold.clear()
    return server


@pytest.mark.parametrize("fields", [{}, {"stream": "true"}], ids=["transcript", "stream"])
async def test_its_work_ends(server: FakeService, fields: dict[str, str]) -> None:
    async with cleaned_up(server):
        client = Client(server, **fields)
        await client.waits_for_windows()
        client.leave()
        with pytest.raises(asyncio.CancelledError):
            await client.work
        assert client.sent == []


async def test_its_work_ends_in_the_middle_of_a_stream(server: FakeService) -> None:
    async with cleaned_up(server):
        server.hold.set()
        client = Client(server, **{"stream": "true", "include[]": "progress"})
        while not any(message.get("body") for message in client.sent):  # noqa: ASYNC110
            await asyncio.sleep(0)
        server.hold.clear()
        client.leave()
        with pytest.raises(asyncio.CancelledError):
            await client.work


@pytest.mark.parametrize("fields", [{}, {"stream": "true"}], ids=["transcript", "stream"])
async def test_a_second_cancellation_does_not_interrupt_the_clean_up(server: FakeService, fields: dict[str, str]) -> None:
    """Serve cancels the request as well, at about the same time."""
    async with cleaned_up(server):
        client = Client(server, **fields)
        await client.waits_for_windows()
        client.leave()
        for _ in range(20):
            await asyncio.sleep(0)
            client.work.cancel()
        with pytest.raises(asyncio.CancelledError):
            await client.work


async def test_the_clean_up_after_an_answer_is_not_interrupted() -> None:
    """As a server does, `receive` tells of a disconnect once the response is complete."""
    is_complete, is_clean = asyncio.Event(), False

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        nonlocal is_clean
        await receive()
        await send({"type": "http.response.start", "status": 200})
        await send({"type": "http.response.body", "body": b""})
        for _ in range(10):
            await asyncio.sleep(0)
        is_clean = True

    requests = iter([{"type": "http.request", "body": b""}])

    async def receive() -> Message:
        for message in requests:
            return message
        await is_complete.wait()
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        if message["type"] == "http.response.body":
            is_complete.set()

    await StopWhenGone(app)({"type": "http", "method": "POST"}, receive, send)
    assert is_clean


async def test_a_client_that_stays_gets_its_answer(server: FakeService) -> None:
    async with cleaned_up(server):
        server.hold.set()
        client = Client(server, response_format="text")
        await client.work
        assert client.sent[0]["status"] == 200
