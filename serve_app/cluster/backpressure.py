"""Lets a request's sender go no faster than the ingress takes what is sent: uploads of any size in a few megabytes of memory.

Ray Serve (2.60) hands a body on through two queues without limits, one in the proxy's process and one in the replica's, and reads
from the socket whatever they hold. Here both wait once they hold `MAX_HELD_BYTES`; then uvicorn stops reading and TCP slows the
sender. It reaches into classes that Serve does not promise to keep, so it belongs to the Ray that constraints.txt names: a
warning is logged where Serve makes no use of them any more, and an import fails where they are gone. docs/design.md says why
this way; tests/test_uploads.py measures it.
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
"""In each of the two queues, per request. What passes between their processes lies in Ray's object store meanwhile, whose memory
counts as theirs: with 4 MB here, 300 MB of it were in use during a large upload, with this 10 MB."""

POLL_S = 0.002
LOOK_FOR_PROXIES_EVERY_S = 5.0
ANSWER_S = 10.0


def bound_this_replica() -> None:
    """Make the requests of this process wait, those of Serve's own proxy and those that HAProxy sends here directly."""
    for name, bounded in (("ASGIReceiveProxy", _Receive), ("ASGIDIReceiveProxy", _DirectReceive)):
        if not hasattr(replica, name):
            log.warning("fast uploads may fill the memory: Serve's replicas have no %s any more", name)
        setattr(replica, name, bounded)


async def bound_proxies() -> None:
    """Make the HTTP proxies of the cluster wait, also those that join later. Runs until it is cancelled."""
    # By actor: a proxy that died comes again under its old name.
    bounded: set[str] = set()
    while True:
        try:
            for actor in await asyncio.to_thread(ray.util.list_named_actors, all_namespaces=True):
                if actor["namespace"] == SERVE_NAMESPACE and actor["name"].startswith(SERVE_PROXY_NAME):
                    await _bound_proxy(actor["name"], bounded)
        except Exception as error:
            log.warning("the proxies cannot be listed, fast uploads may fill the memory of new ones: %s", error)
        await asyncio.sleep(LOOK_FOR_PROXIES_EVERY_S)


async def _bound_proxy(name: str, bounded: set[str]) -> None:
    try:
        proxy = await asyncio.to_thread(ray.get_actor, name, namespace=SERVE_NAMESPACE)
        actor_id = proxy._actor_id.hex()
        if actor_id not in bounded:
            await asyncio.wait_for(proxy.__ray_call__.remote(_proxy_change(), MAX_HELD_BYTES), ANSWER_S)
            bounded.add(actor_id)
    except Exception as error:
        log.warning("fast uploads may fill the memory of %s, it cannot be made to slow them yet: %r", name, error)


def _proxy_change() -> Callable[[object, int], None]:
    """What is to run in a proxy's process. A nested function travels by value; this module might not be found there."""

    def change(_proxy: object, most_held_bytes: int) -> None:
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
                while self._held_bytes > most_held_bytes:
                    self._taken.clear()
                    await self._taken.wait()

            def get_messages_nowait(self) -> list[Message]:
                self._held_bytes = 0
                self._taken.set()
                return super().get_messages_nowait()

        if not hasattr(proxy, "MessageQueue"):
            raise AttributeError("Serve's proxy makes no MessageQueue any more")
        proxy.MessageQueue = BoundedQueue
        # The pongs of a sender that waits lie behind what it has sent. Those that are gone are found by `live.idle_s`, or TCP.
        Protocol.ping_timeout = property(lambda _self: None, lambda _self, _seconds: None)

    return change


class _ByteQueue(asyncio.Queue[Any]):
    """Counts the bytes that went in and out."""

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
    """What Serve's own proxy received, fetched only when there is room."""

    def __init__(self, scope: Scope, request_metadata: Any, receive_asgi_messages: Callable[[Any], Awaitable[bytes]]) -> None:
        async def fetch(metadata: Any) -> bytes:
            await _room(lambda: queue.put_bytes - queue.taken_bytes)
            return await receive_asgi_messages(metadata)

        super().__init__(scope, request_metadata, fetch)
        self._queue = queue = _ByteQueue()


class _DirectReceive(ASGIDIReceiveProxy):
    """What this process received itself. Fetching and taking are in two threads; each count has one writer."""

    def __init__(self, scope: Scope, receive: Receive, user_event_loop: asyncio.AbstractEventLoop) -> None:
        fetched_bytes = 0

        async def fetch() -> Message:
            nonlocal fetched_bytes
            await _room(lambda: fetched_bytes - queue.taken_bytes)
            message = await receive()
            fetched_bytes += _size(message)
            return message

        super().__init__(scope, fetch, user_event_loop)
        self._queue = queue = _ByteQueue()


async def _room(held_bytes: Callable[[], int]) -> None:
    # Not an event: who takes may be on another thread's loop.
    while held_bytes() > MAX_HELD_BYTES:  # noqa: ASYNC110
        await asyncio.sleep(POLL_S)


def _size(message: Any) -> int:
    """Payload of an ASGI message, HTTP or WebSocket; Serve also queues exceptions."""
    if not isinstance(message, dict):
        return 0
    return len(message.get("body") or message.get("bytes") or message.get("text") or b"")
