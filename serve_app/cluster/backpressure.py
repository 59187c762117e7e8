"""Backpressure for uploads: a client sends no faster than the ingress reads. An upload of any size needs a few MB of memory.

Ray Serve (2.60) passes a request body through two unbounded queues, one in the proxy's process and one in the replica's, and
reads the socket however long they are. This module bounds both to `MAX_HELD_BYTES`: when they are full, uvicorn stops reading
and TCP slows the client down.

It patches private classes of Serve, so it is tied to the Ray version in constraints.txt. If another version no longer has one of
them, the import of this module fails; if it no longer uses one, a warning is logged. The reasons for this design are in
docs/design.md; tests/server/demo/test_uploads.py measures the effect.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any

import ray
from ray.serve._private import replica
from ray.serve._private.constants import SERVE_NAMESPACE, SERVE_PROXY_NAME
from ray.serve._private.direct_ingress_http_util import ASGIDIReceiveProxy
from ray.serve._private.http_util import ASGIReceiveProxy
from starlette.types import Message, Receive, Scope

log = logging.getLogger("ray.serve")

MAX_HELD_BYTES = 512 << 10
"""Limit of each queue, bytes per request. Data in transit between the two processes uses Ray's object store as well: during a
large upload it held 10 MB with this limit, 300 MB with a limit of 4 MB."""

POLL_S = 0.002
"""How often a full queue of a replica is checked, seconds."""

PROXY_SCAN_S = 5.0
"""How often the cluster is searched for new proxies, seconds."""

PROXY_TIMEOUT_S = 10.0
"""How long a proxy may take to apply the patch, seconds."""


def bound_this_replica() -> None:
    """Bound the queues of this process: for requests from Serve's own proxy, and for those that HAProxy sends here directly."""
    for name, bounded in (("ASGIReceiveProxy", _Receive), ("ASGIDIReceiveProxy", _DirectReceive)):
        if not hasattr(replica, name):
            log.warning("fast uploads may fill the memory: Serve's replica module has no %s any more", name)
        setattr(replica, name, bounded)


async def bound_proxies() -> None:
    """Bound the queues of all HTTP proxies of the cluster, including those that start later. Runs until cancelled."""
    # Actor ids, since a restarted proxy has the name of its predecessor.
    bounded: set[str] = set()
    while True:
        try:
            for actor in await asyncio.to_thread(ray.util.list_named_actors, all_namespaces=True):
                if actor["namespace"] == SERVE_NAMESPACE and actor["name"].startswith(SERVE_PROXY_NAME):
                    await _bound_proxy(actor["name"], bounded)
        except Exception as error:
            log.warning("fast uploads may fill the memory of new proxies: listing the proxies failed: %s", error)
        await asyncio.sleep(PROXY_SCAN_S)


async def _bound_proxy(name: str, bounded: set[str]) -> None:
    try:
        proxy = await asyncio.to_thread(ray.get_actor, name, namespace=SERVE_NAMESPACE)
        actor_id = proxy._actor_id.hex()
        if actor_id not in bounded:
            await asyncio.wait_for(proxy.__ray_call__.remote(_proxy_patch(), MAX_HELD_BYTES), PROXY_TIMEOUT_S)
            bounded.add(actor_id)
    except Exception as error:
        log.warning("fast uploads may fill the memory of %s: patching it failed, will be tried again: %r", name, error)


def _proxy_patch() -> Callable[[object, int], None]:
    """The function that patches a proxy, from within its process. It is nested, so that Ray sends it by value: the proxy may not
    be able to import this module."""

    def patch(_proxy: object, max_held_bytes: int) -> None:
        from ray.serve._private import proxy
        from ray.serve._private.http_util import MessageQueue
        from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

        Protocol: Any = WebSocketsSansIOProtocol

        def size(message: Message) -> int:
            return len(message.get("body") or message.get("bytes") or message.get("text") or b"")

        class BoundedQueue(MessageQueue):
            def __init__(self) -> None:
                super().__init__()  # type: ignore[no-untyped-call]
                self._held_bytes = 0
                self._taken = asyncio.Event()

            async def __call__(self, message: Message) -> None:
                await super().__call__(message)
                self._held_bytes += size(message)
                while self._held_bytes > max_held_bytes:
                    self._taken.clear()
                    await self._taken.wait()

            def get_messages_nowait(self) -> list[Message]:
                self._held_bytes = 0
                self._taken.set()
                return super().get_messages_nowait()

        if not hasattr(proxy, "MessageQueue"):
            raise AttributeError("Serve's proxy module has no MessageQueue any more")
        proxy.MessageQueue = BoundedQueue
        # No ping timeout: the pongs of a client that is slowed down are queued after its data. `live.idle_s` and TCP detect
        # clients that are gone.
        Protocol.ping_timeout = property(lambda _self: None, lambda _self, _seconds: None)

    return patch


class _ByteQueue(asyncio.Queue[Any]):
    """A queue that counts the bytes put and taken."""

    put_bytes = 0
    taken_bytes = 0

    def _put(self, item: Any) -> None:
        self.put_bytes += _size(item)
        super()._put(item)

    def _get(self) -> Any:
        item = super()._get()
        self.taken_bytes += _size(item)
        return item


class _Receive(ASGIReceiveProxy):
    """Fetches messages from Serve's own proxy only while the queue has room."""

    def __init__(self, scope: Scope, request_metadata: Any, receive_asgi_messages: Callable[[Any], Awaitable[bytes]]) -> None:
        async def fetch(metadata: Any) -> bytes:
            await _wait_for_room(lambda: queue.put_bytes - queue.taken_bytes)
            return await receive_asgi_messages(metadata)

        super().__init__(scope, request_metadata, fetch)
        self._queue = queue = _ByteQueue()


class _DirectReceive(ASGIDIReceiveProxy):
    """Reads messages that this process receives itself only while the queue has room.

    Reading and taking run in two threads without a lock: each counter has a single writer.
    """

    def __init__(self, scope: Scope, receive: Receive, user_event_loop: asyncio.AbstractEventLoop) -> None:
        fetched_bytes = 0

        async def fetch() -> Message:
            nonlocal fetched_bytes
            await _wait_for_room(lambda: fetched_bytes - queue.taken_bytes)
            message = await receive()
            fetched_bytes += _size(message)
            return message

        super().__init__(scope, fetch, user_event_loop)
        self._queue = queue = _ByteQueue()


async def _wait_for_room(held_bytes: Callable[[], int]) -> None:
    # Polling instead of an asyncio.Event, as the consumer may run on the event loop of another thread.
    while held_bytes() > MAX_HELD_BYTES:  # noqa: ASYNC110
        await asyncio.sleep(POLL_S)


def _size(message: Any) -> int:
    """Payload of an ASGI message, HTTP or WebSocket, bytes. Serve also queues exceptions, which count as 0."""
    if not isinstance(message, dict):
        return 0
    return len(message.get("body") or message.get("bytes") or message.get("text") or b"")
