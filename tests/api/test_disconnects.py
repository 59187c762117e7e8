"""A client that is gone: whatever ran for it ends at once and cleans up, for every kind of answer."""

import asyncio
from collections.abc import AsyncGenerator, Callable
from typing import Any

import httpx2
import numpy as np
import pytest
from starlette.types import Message, Receive, Scope, Send

from serve_app.api import create_api, streaming
from serve_app.api.disconnects import StopWhenGone
from serve_app.events import Event, SegmentFinal
from serve_app.settings import LimitSettings
from serve_app.tasks import stop
from serve_app.transcript import Segment
from serve_app.window import SAMPLE_RATE
from testing import media
from testing.fake_service import FakeService
from testing.open_requests import OpenRequest, cleaned_up, until

LONG = media.wav(np.random.default_rng(0).normal(0, 0.1, 90 * SAMPLE_RATE))
"""Larger than what is held in memory, and longer than a window."""


def sent(server: FakeService, **fields: str) -> OpenRequest:
    """A complete request of a client that waits for its response."""
    request = httpx2.Request("POST", "http://x/v1/audio/transcriptions", files={"file": ("x.wav", LONG)}, data=fields)
    client = OpenRequest(create_api(server.service), request.url.path, dict(request.headers))
    client.send(request.read(), more_body=False)
    return client


async def until_at_work(server: FakeService) -> None:
    async with asyncio.timeout(20):
        await until(lambda: bool(server.windows))


@pytest.fixture
def server() -> FakeService:
    """Its windows never end."""
    server = FakeService(limits=LimitSettings())
    server.hold.clear()
    return server


@pytest.mark.parametrize("fields", [{}, {"stream": "true"}], ids=["transcript", "stream"])
async def test_its_work_ends(server: FakeService, fields: dict[str, str]) -> None:
    async with cleaned_up(server):
        client = sent(server, **fields)
        await until_at_work(server)
        client.disconnect()
        with pytest.raises(asyncio.CancelledError):
            await client.task
        assert client.sent == []


@pytest.mark.parametrize("leave", [OpenRequest.disconnect, OpenRequest.fail])
@pytest.mark.parametrize("path", ["/v1/audio/transcriptions", "/v1/audio/transcriptions/export"])
async def test_in_the_middle_of_its_body_nothing_is_raised(
    server: FakeService, path: str, leave: Callable[[OpenRequest], None]
) -> None:
    async with cleaned_up(server):
        request = httpx2.Request("POST", f"http://x{path}", files={"file": ("x.wav", LONG)})
        client = OpenRequest(create_api(server.service), path, dict(request.headers))
        client.send(request.read()[: len(LONG) // 2])
        await asyncio.sleep(0.05)
        leave(client)
        await client.task


async def test_its_work_ends_in_the_middle_of_a_stream(server: FakeService) -> None:
    async with cleaned_up(server):
        server.hold.set()
        client = sent(server, **{"stream": "true", "include[]": "progress"})
        while not any(message.get("body") for message in client.sent):  # noqa: ASYNC110
            await asyncio.sleep(0)
        server.hold.clear()
        client.disconnect()
        with pytest.raises(asyncio.CancelledError):
            await client.task


@pytest.mark.parametrize("fields", [{}, {"stream": "true"}], ids=["transcript", "stream"])
async def test_a_second_cancellation_does_not_interrupt_the_clean_up(server: FakeService, fields: dict[str, str]) -> None:
    """Serve cancels the request as well, at about the same time."""
    async with cleaned_up(server):
        client = sent(server, **fields)
        await until_at_work(server)
        client.disconnect()
        for _ in range(20):
            await asyncio.sleep(0)
            client.task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await client.task


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
        client = sent(server, response_format="text")
        await client.task
        assert client.sent[0]["status"] == 200


async def test_a_stream_whose_response_never_begins_is_closed() -> None:
    is_closed = False

    async def events() -> AsyncGenerator[Event, None]:
        nonlocal is_closed
        try:
            yield SegmentFinal(Segment(0, "One.", 0.0, 1.0, (), ()))
        finally:
            await asyncio.sleep(0)
            is_closed = True

    async def never(_: object = None) -> Any:
        await asyncio.Future()

    response = await streaming.stream(events())
    answering = asyncio.ensure_future(response({"type": "http"}, never, never))
    await asyncio.sleep(0)
    await stop(answering)
    assert is_closed
