"""The replica's queue of a request's body: a full one makes the sender wait. tests/server/demo/test_uploads.py measures a real
server."""

import asyncio
import math
import pickle
import socket
import threading
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import pytest
from ray.exceptions import ActorDiedError
from ray.serve._private import replica as _replica

from serve_app.cluster import backpressure
from serve_app.cluster.backpressure import MAX_HELD_BYTES
from serve_app.cluster.message_socket import SCOPE_KEY
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
    ("kind", "size_bytes", "senders", "idle", "fetches_per_s"),
    [
        pytest.param("websocket", 640, 1, 0, 18, id="one stream"),
        pytest.param("websocket", 640, 4, 500, 4 * 18, id="few among idle ones"),
        pytest.param("websocket", 640, 24, 0, 250, id="many"),
        pytest.param("websocket", 640, 24, 500, 250, id="many among idle ones"),
        pytest.param("websocket", 640, 200, 0, 250, id="so many that a fetch brings more than a second of audio"),
        pytest.param("websocket", 80_000, 1, 100, 50, id="a file"),
        pytest.param("http", 640, 1, 100, 50, id="http"),
    ],
)
def test_messages_of_live_streams_are_fetched_together(
    kind: str, size_bytes: int, senders: int, idle: int, fetches_per_s: int
) -> None:
    """A message comes every 20 ms of virtual time; a fetch takes 5 ms, and waits for a message."""
    fetches = 0

    async def nothing(_: Any) -> bytes:
        await asyncio.sleep(math.inf)
        raise AssertionError

    def sender(began_s: float) -> Callable[[Any], Awaitable[bytes]]:
        sent = 0

        async def receive_asgi_messages(_: Any) -> bytes:
            nonlocal fetches, sent
            fetches += 1
            await asyncio.sleep(max(0.005, began_s + sent * 0.02 - time.monotonic()))
            arrived = max(1, int((time.monotonic() - began_s) / 0.02) - sent)
            sent += arrived
            return pickle.dumps([{"type": "websocket.receive", "bytes": bytes([n % 256]) * size_bytes} for n in range(arrived)])

        return receive_asgi_messages

    async def take(receive: Any) -> None:
        while True:
            await receive()

    async def count() -> int:
        sources = [nothing] * idle + [sender(0.02 * n / senders) for n in range(senders)]
        receivers = [replica.ASGIReceiveProxy({"type": kind}, None, source) for source in sources]
        tasks = [asyncio.create_task(receiver.fetch_until_disconnect()) for receiver in receivers]
        tasks += [asyncio.create_task(take(receiver)) for receiver in receivers]
        await asyncio.sleep(2)
        before = fetches
        await asyncio.sleep(2)
        for task in tasks:
            task.cancel()
        return fetches - before

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("time.monotonic", virtual_time.now_s)
        patch.setattr(backpressure, "_last_fetches_s", OrderedDict())
        assert virtual_time.run(count()) / 2 == pytest.approx(fetches_per_s, rel=0.15)


@pytest.mark.parametrize(
    ("received_bytes", "since_s", "is_live"),
    [(32_000, 0.01, True), (33_000, 0.01, False), (64_000, 1.0, True), (256 << 10, 60.0, True), (300 << 10, 60.0, False)],
)
def test_live_audio_is_told_from_files_by_bytes_and_time(received_bytes: int, since_s: float, is_live: bool) -> None:
    """A file whose fetches have a pace would never lose it again if what the proxy holds counted as live."""
    assert backpressure._is_live(received_bytes, since_s) == is_live


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


async def test_a_connection_that_was_never_accepted_costs_no_request(bounded_replica: None) -> None:
    """The proxy was patched again in that moment, and closed the socket that the request was told of."""
    address = f"\0serve-messages-{uuid4().hex}"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(address)
        listener.listen()

        async def receive_asgi_messages(_: Any) -> bytes:
            return pickle.dumps([HTTP, {"type": "http.disconnect"}])

        metadata = SimpleNamespace(internal_request_id=str(uuid4()))
        receive = replica.ASGIReceiveProxy({"type": "http", SCOPE_KEY: address}, metadata, receive_asgi_messages)
        fetching = asyncio.create_task(receive.fetch_until_disconnect())
        await asyncio.sleep(0.01)
        assert not fetching.done()
    await fetching
    assert await receive() == HTTP
