"""The queues of a request's body: full ones make the sender wait. tests/server/demo/test_uploads.py measures a real server."""

import asyncio
import pickle
from collections.abc import Callable
from typing import Any

import pytest
from ray.serve._private import proxy as _proxy
from ray.serve._private import replica as _replica

from serve_app.cluster import backpressure
from serve_app.cluster.backpressure import MAX_HELD_BYTES, POLL_S

proxy: Any = _proxy
replica: Any = _replica

PIECE_BYTES = MAX_HELD_BYTES // 8
HTTP = {"type": "http.request", "body": bytes(PIECE_BYTES), "more_body": True}
WEBSOCKET_BYTES = {"type": "websocket.receive", "bytes": bytes(PIECE_BYTES)}
WEBSOCKET_TEXT = {"type": "websocket.receive", "text": " " * PIECE_BYTES, "bytes": None}

pytestmark = pytest.mark.parametrize("message", [HTTP, WEBSOCKET_BYTES, WEBSOCKET_TEXT], ids=["http", "bytes", "text"])


@pytest.fixture
def bounded_replica(monkeypatch: pytest.MonkeyPatch) -> None:
    """Patches this process for one test."""
    for name in ("ASGIReceiveProxy", "ASGIDIReceiveProxy"):
        monkeypatch.setattr(replica, name, getattr(replica, name))
    backpressure.bound_this_replica()


async def settled(count: Callable[[], int]) -> int:
    """The value of a counter once it no longer changes."""
    last = -1
    while last != count():
        last = count()
        await asyncio.sleep(10 * POLL_S)
    return last


async def test_the_proxy_stops_reading_until_the_replica_has_fetched(
    monkeypatch: pytest.MonkeyPatch, message: dict[str, Any]
) -> None:
    monkeypatch.setattr(proxy, "MessageQueue", proxy.MessageQueue)
    backpressure._proxy_patch()(None, MAX_HELD_BYTES)
    queue = proxy.MessageQueue()
    received = 0

    async def receive() -> None:
        nonlocal received
        while True:
            await queue(message)
            received += 1

    reading = asyncio.create_task(receive())
    held = await settled(lambda: received)
    assert 4 <= held <= 16
    assert len(queue.get_messages_nowait()) == held + 1
    assert await settled(lambda: received) == 2 * held + 1
    reading.cancel()


@pytest.mark.usefixtures("bounded_replica")
async def test_a_replica_stops_fetching_until_the_application_has_taken(message: dict[str, Any]) -> None:
    fetched = 0

    async def receive_asgi_messages(_: Any) -> bytes:
        nonlocal fetched
        fetched += 2
        return pickle.dumps([message, message])

    receive = replica.ASGIReceiveProxy({"type": "http"}, None, receive_asgi_messages)
    fetching = asyncio.create_task(receive.fetch_until_disconnect())
    held = await settled(lambda: fetched)
    assert 4 <= held <= 16
    for _ in range(held):
        assert await receive() == message
    assert await settled(lambda: fetched) == 2 * held
    fetching.cancel()


@pytest.mark.usefixtures("bounded_replica")
async def test_a_replica_that_receives_directly_stops_reading(message: dict[str, Any]) -> None:
    received = 0

    async def uvicorn() -> dict[str, Any]:
        nonlocal received
        received += 1
        await asyncio.sleep(0)
        return message

    loop = asyncio.get_running_loop()
    receive = replica.ASGIDIReceiveProxy({"type": "http"}, uvicorn, loop)
    fetching = receive.fetch_until_disconnect_task()
    held = await settled(lambda: received)
    assert 4 <= held <= 16
    for _ in range(held):
        assert await receive() == message
    assert await settled(lambda: received) == 2 * held
    fetching.cancel()
