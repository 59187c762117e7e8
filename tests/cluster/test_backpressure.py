"""The replica's queue of a request's body: a full one makes the sender wait. tests/server/demo/test_uploads.py measures a real
server."""

import asyncio
import gc
import pickle
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from ray.exceptions import ActorDiedError
from ray.serve._private import replica as _replica

from serve_app.cluster import backpressure
from serve_app.cluster.backpressure import MAX_HELD_BYTES
from testing import virtual_time

replica: Any = _replica

PIECE_BYTES = MAX_HELD_BYTES // 8
HTTP = {"type": "http.request", "body": bytes(PIECE_BYTES), "more_body": True}
WEBSOCKET_BYTES = {"type": "websocket.receive", "bytes": bytes(PIECE_BYTES)}
WEBSOCKET_TEXT = {"type": "websocket.receive", "text": " " * PIECE_BYTES, "bytes": None}

MESSAGES = pytest.mark.parametrize("message", [HTTP, WEBSOCKET_BYTES, WEBSOCKET_TEXT], ids=["http", "bytes", "text"])

MESSAGES_OF_A_LONG_UPLOAD = 2000

SETTLE_S = 0.02
"""A counter that stays the same for this long no longer changes, seconds."""


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
        await asyncio.sleep(SETTLE_S)
    return last


@MESSAGES
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
@pytest.mark.parametrize(
    ("kind", "size_bytes", "open_sockets", "fetches"),
    [("websocket", 640, 1, 12), ("websocket", 640, 50, 5), ("websocket", 40_000, 50, 100), ("http", 640, 50, 100)],
)
def test_messages_of_a_live_stream_are_fetched_together(kind: str, size_bytes: int, open_sockets: int, fetches: int) -> None:
    """A message comes every 5 ms of virtual time, for half a second."""
    gc.collect()  # the sockets of other tests
    message = {"type": "websocket.receive", "bytes": bytes(size_bytes)}
    fetched: list[int] = []

    async def receive_asgi_messages(_: Any) -> bytes:
        await asyncio.sleep(0.005)
        arrived = round(time.monotonic() / 0.005) - sum(fetched)
        fetched.append(arrived)
        return pickle.dumps([message] * arrived)

    async def stream() -> None:
        others = [replica.ASGIReceiveProxy({"type": "websocket"}, None, receive_asgi_messages) for _ in range(open_sockets - 1)]
        receive = replica.ASGIReceiveProxy({"type": kind}, None, receive_asgi_messages)
        fetching = asyncio.create_task(receive.fetch_until_disconnect())
        for _ in range(100):
            assert await receive() == message
        fetching.cancel()
        del others

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("time.monotonic", virtual_time.now_s)
        virtual_time.run(stream())
    assert len(fetched) == pytest.approx(fetches, abs=1)


@MESSAGES
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


@pytest.mark.usefixtures("bounded_replica")
def test_a_consumer_on_another_event_loop_wakes_the_reader() -> None:
    """Serve runs the application in a thread of its own."""
    users = asyncio.new_event_loop()
    thread = threading.Thread(target=users.run_forever)
    thread.start()
    received = 0

    async def uvicorn() -> dict[str, Any]:
        nonlocal received
        received += 1
        return HTTP if received < MESSAGES_OF_A_LONG_UPLOAD else {"type": "http.disconnect"}

    async def take(receive: Any) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass

    async def upload() -> None:
        receive = replica.ASGIDIReceiveProxy({"type": "http"}, uvicorn, users)
        taking = asyncio.wrap_future(asyncio.run_coroutine_threadsafe(take(receive), users))
        async with asyncio.timeout(60):
            await asyncio.gather(receive.fetch_until_disconnect_task(), taking)

    try:
        asyncio.run(upload())
    finally:
        users.call_soon_threadsafe(users.stop)
        thread.join()
        users.close()
    assert received == MESSAGES_OF_A_LONG_UPLOAD


@pytest.mark.usefixtures("bounded_replica")
@pytest.mark.parametrize(
    ("kind", "gone"), [("http", {"type": "http.disconnect"}), ("websocket", {"type": "websocket.disconnect", "code": 1005})]
)
async def test_a_client_whose_proxy_is_lost_is_gone(kind: str, gone: dict[str, Any]) -> None:
    async def receive_asgi_messages(_: Any) -> bytes:
        raise ActorDiedError

    receive = replica.ASGIReceiveProxy({"type": kind}, None, receive_asgi_messages)
    await receive.fetch_until_disconnect()
    assert await receive() == gone
