"""Backpressure for uploads: a client sends no faster than the ingress reads. An upload of any size needs a few MB of memory.

Ray Serve (2.60) passes a request body through two unbounded queues, one in the proxy's process and one in the replica's, and
reads the socket however long they are. Both are bounded to `MAX_HELD_BYTES`, the replica's here and the proxy's by
proxy_patch.py: when they are full, uvicorn stops reading and TCP slows the client down.

It patches private classes of Serve, so it is tied to the Ray version in constraints.txt. If another version no longer has one of
them, the import of this module fails; if it no longer uses one, a warning is logged. The reasons for this design are in
docs/design.md; tests/server/demo/test_uploads.py measures the effect.
"""

import asyncio
import logging
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from typing import Any

from ray.exceptions import RayActorError
from ray.serve._private import replica
from ray.serve._private.direct_ingress_http_util import ASGIDIReceiveProxy
from ray.serve._private.http_util import ASGIReceiveProxy
from starlette.types import Message, Receive, Scope

from serve_app.cluster.message_socket import SCOPE_KEY, Pull, connected

log = logging.getLogger("ray.serve")

MIN_FETCH_INTERVAL_S = 0.05
"""Shortest interval of the fetches of a live stream's messages from the proxy, seconds. A fetch brings all messages that
have arrived; many clients send a message every 20 ms."""

MAX_FETCHES_PER_S = 250
"""Fetches of all live streams of this process, per second. With more, each waits longer: what a message costs in the application
hardly depends on how much audio it has."""

IDLE_S = 1.0
"""A live stream on which nothing has come for this time beyond two intervals counts no longer, seconds."""

SETUP_FETCHES = 2
"""Fetches at the start of a WebSocket that the next one follows at once: they bring the connection and its configuration."""

MAX_LIVE_BYTES_PER_S = 640 << 10
"""A WebSocket that has sent more than this since its last fetch sends no live audio, but a file: the next one follows at once.
Stereo at 48 kHz as floats in base64 has 512 kB a second."""

MAX_HELD_BYTES = 512 << 10
"""Limit of each queue, bytes per request. Where the ingress calls the proxy's actor, data in transit uses Ray's object store as
well: during a large upload it held 10 MB with this limit, 300 MB with a limit of 4 MB."""


_last_fetches_s: OrderedDict[object, float] = OrderedDict()
"""When the last fetch of each live stream of this process ended, the oldest first; seconds of the monotonic clock."""


def bound_this_replica() -> None:
    """Bound the queues of this process: for requests from Serve's own proxy, and for those that HAProxy sends here directly."""
    for name, bounded in (("ASGIReceiveProxy", _Receive), ("ASGIDIReceiveProxy", _DirectReceive)):
        if not hasattr(replica, name):
            log.warning("fast uploads may fill the memory: Serve's replica module has no %s any more", name)
        setattr(replica, name, bounded)


class _BoundedQueue(asyncio.Queue[Any]):
    """A queue of ASGI messages. It counts the bytes added by `added_bytes` and taken by `get`.

    `room` and `get` may be used on the event loops of two threads, without a lock: each counter has a single writer.
    """

    def __init__(self) -> None:
        super().__init__()
        self.added_bytes = 0
        self._taken_bytes = 0
        self._waiting: tuple[asyncio.AbstractEventLoop, asyncio.Event] | None = None

    async def room(self) -> None:
        """Wait until at most MAX_HELD_BYTES are held."""
        taken = asyncio.Event()
        # Before the check: whatever is taken after it sets the event.
        self._waiting = (asyncio.get_running_loop(), taken)
        try:
            while self.added_bytes - self._taken_bytes > MAX_HELD_BYTES:
                await taken.wait()
                taken.clear()
        finally:
            self._waiting = None

    def _get(self) -> Any:
        item = super()._get()
        self._taken_bytes += _size(item)
        if (waiting := self._waiting) is not None:
            loop, taken = waiting
            loop.call_soon_threadsafe(taken.set)
        return item


class _CountingQueue(_BoundedQueue):
    def _put(self, item: Any) -> None:
        super()._put(item)
        self.added_bytes += _size(item)


class _Receive(ASGIReceiveProxy):
    """Fetches messages from Serve's own proxy only while the queue has room. A client whose proxy is lost is gone."""

    _pull: Pull | None = None
    """None: the proxy's actor is called."""

    def __init__(self, scope: Scope, request_metadata: Any, receive_asgi_messages: Callable[[Any], Awaitable[bytes]]) -> None:
        is_socket, interval_s, fetched_s, fetches, key = scope["type"] == "websocket", 0.0, 0.0, 0, object()

        async def pull(metadata: Any) -> Any:
            if self._pull is not None:
                try:
                    return await self._pull(metadata, interval_s)
                except (EOFError, ConnectionError):
                    if fetches:
                        raise
                    # The proxy was patched again before it accepted the connection.
                    self._pull = None
            if (pause_s := fetched_s + interval_s - time.monotonic()) > 0:
                await asyncio.sleep(pause_s)
            return await receive_asgi_messages(metadata)

        async def fetch(metadata: Any) -> Any:
            nonlocal interval_s, fetched_s, fetches
            await queue.room()
            try:
                messages = await pull(metadata)
            except (RayActorError, EOFError, ConnectionError) as error:
                # By which Serve's own code knows that a client is gone.
                raise KeyError("the proxy is lost") from error
            now_s = time.monotonic()
            since_s, fetched_s, fetches = now_s - fetched_s, now_s, fetches + 1
            is_live = is_socket and fetches > SETUP_FETCHES and _is_live(len(messages), since_s)
            interval_s = _live_interval_s(key, now_s) if is_live else 0.0
            return messages

        super().__init__(scope, request_metadata, fetch)
        self._queue = queue = _CountingQueue()
        self._address = scope.pop(SCOPE_KEY, "")

    async def fetch_until_disconnect(self) -> None:
        async with connected(self._address) as self._pull:
            await super().fetch_until_disconnect()  # type: ignore[no-untyped-call]


class _DirectReceive(ASGIDIReceiveProxy):
    """Reads messages that this process receives itself only while the queue has room."""

    def __init__(self, scope: Scope, receive: Receive, user_event_loop: asyncio.AbstractEventLoop) -> None:
        async def fetch() -> Message:
            await queue.room()
            message = await receive()
            # Counted here, as the message is put into the queue later, on the other event loop.
            queue.added_bytes += _size(message)
            return message

        super().__init__(scope, fetch, user_event_loop)
        self._queue = queue = _BoundedQueue()


def _is_live(received_bytes: int, since_s: float) -> bool:
    """Whether live audio has so many bytes in that time. What fills half of the proxy's queue may have been held back there, by a
    pause that was too long for its sender: that counts as a file, however slow it is."""
    return received_bytes <= min(MAX_LIVE_BYTES_PER_S * max(since_s, MIN_FETCH_INTERVAL_S), MAX_HELD_BYTES // 2)


def _live_interval_s(key: object, now_s: float) -> float:
    """Interval to the next fetch of the live stream `key`, one of which has just ended, seconds.

    Streams share MAX_FETCHES_PER_S. A WebSocket on which nothing comes has no share: its fetch waits for a message.
    """
    _last_fetches_s.pop(key, None)
    _last_fetches_s[key] = now_s
    while next(iter(_last_fetches_s.values())) < now_s - IDLE_S - 2 * len(_last_fetches_s) / MAX_FETCHES_PER_S:
        _last_fetches_s.popitem(last=False)
    return max(MIN_FETCH_INTERVAL_S, len(_last_fetches_s) / MAX_FETCHES_PER_S)


def _size(message: Any) -> int:
    """Payload of an ASGI message, HTTP or WebSocket, bytes. Serve also queues exceptions, which count as 0."""
    if not isinstance(message, dict):
        return 0
    return len(message.get("body") or message.get("bytes") or message.get("text") or b"")
