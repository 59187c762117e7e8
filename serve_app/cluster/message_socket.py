"""Carries a request's messages (the body, or what a WebSocket sends) from Serve's proxy to an ingress on the same node.

Serve has the ingress call the proxy's actor for them. The same pull over a Unix socket costs both processes a fraction of that.
The proxy listens at an abstract address, which is no file that could remain. A connection is for one request:

    ingress: for each pull PULL, the id of the request and an interval in seconds
    proxy:   for each pull LENGTH, the length of a frame, and the frame, a pickled list of ASGI messages

The proxy waits with the frame until there is a message, and then for the next multiple of the interval on its clock. When the
request is over, it closes the connection. Where the proxy is on another node, or the system is not Linux, there is nothing to
connect to, and the ingress calls the actor.

Ray sends this module to the proxies by value, see proxies.py.
"""

import asyncio
import os
import pickle
import socket
import sys
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, closing, suppress
from struct import calcsize, pack, unpack
from typing import Any, TypeAlias
from uuid import uuid4

from ray.serve._private.common import RequestMetadata
from ray.serve._private.http_util import MessageQueue
from starlette.types import Message

SCOPE_KEY = "serve_app.messages"
"""Where the ASGI scope has the address."""

PULL = ">36sd"
"""Format of a pull. Serve's internal id of a request has 36 characters."""

LENGTH = ">Q"
"""Format of the length of a frame, bytes."""

_free_buffers: deque[bytearray] = deque(maxlen=4)
"""Buffers of frames that nobody reads any more. They are used again, as the system has to clear new memory."""

MAX_FREE_BUFFER_BYTES = 1 << 20
"""Maximum size of those, bytes: more than the pieces of a body that a proxy holds."""

Pull: TypeAlias = Callable[[RequestMetadata, float], Awaitable[Any]]
"""Returns the next messages of a request, a pickled list. With an interval, in seconds, it waits for more of them: those of all
requests come at the same moments, so that one turn of the event loop takes them."""


class MessageServer:
    """In the proxy: serves the messages of its requests, from `queues` by Serve's internal id of the request."""

    def __init__(self, queues: Mapping[str, MessageQueue]) -> None:
        self.address = ""
        """Empty while nothing can connect."""
        self._queues = queues
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        if sys.platform == "linux":
            address = f"\0serve-messages-{os.getpid()}-{uuid4().hex}"
            self._server = await asyncio.start_unix_server(self._serve, address)
            self.address = address

    def close(self) -> None:
        """Take no more connections. Those that are open stay."""
        self.address = ""
        if self._server is not None:
            self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with closing(writer), suppress(EOFError, OSError):
            with socket.fromfd(writer.get_extra_info("socket").fileno(), socket.AF_UNIX, socket.SOCK_STREAM) as connection:
                _require_own_user(connection)
            while True:
                request_id, interval_s = unpack(PULL, await reader.readexactly(calcsize(PULL)))
                if (queue := self._queues.get(request_id.decode(errors="replace"))) is None:
                    break
                await queue.wait_for_message()  # type: ignore[no-untyped-call]
                if interval_s:
                    await asyncio.sleep(interval_s - time.monotonic() % interval_s)
                if not (messages := joined(queue.get_messages_nowait())):  # closed
                    break
                frame = pickle.dumps(messages)
                writer.writelines([pack(LENGTH, len(frame)), frame])
                await writer.drain()


def joined(messages: Sequence[Message]) -> Sequence[Message]:
    """The same with the pieces of an HTTP body as one: what a piece costs the application hardly depends on its size."""
    pieces = [message for message in messages if message["type"] == "http.request"]
    if len(pieces) < 2:
        return messages
    others = [message for message in messages if message["type"] != "http.request"]
    return [{**pieces[-1], "body": b"".join(piece.get("body", b"") for piece in pieces)}, *others]


def _require_own_user(connection: socket.socket) -> None:
    """Raises PermissionError if the process at the other end is of another user: an abstract address has no permissions."""
    _, user_id, _ = unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, calcsize("3i")))
    if user_id != os.geteuid():
        raise PermissionError("a process of another user")


def _connection(address: str) -> socket.socket:
    """Raises OSError."""
    connection = socket.socket(socket.AF_UNIX)
    try:
        connection.setblocking(False)
        connection.connect(address)
        _require_own_user(connection)
    except OSError:
        connection.close()
        raise
    return connection


@asynccontextmanager
async def connected(address: str) -> AsyncIterator[Pull | None]:
    """Pulls the messages of one request; None where nothing listens at the address.

    A pull raises EOFError or ConnectionError when the request is over or the proxy is lost. What it returned is valid until the
    next one begins.
    """
    try:
        connection = _connection(address)
    except OSError:
        yield None
        return
    loop, buffer = asyncio.get_running_loop(), bytearray()
    with connection:

        async def read(into: memoryview) -> memoryview:
            read_bytes = 0
            while read_bytes < len(into):
                if not (received_bytes := await loop.sock_recv_into(connection, into[read_bytes:])):
                    raise EOFError
                read_bytes += received_bytes
            return into

        async def pull(request: RequestMetadata, interval_s: float) -> memoryview:
            nonlocal buffer
            if 0 < len(buffer) <= MAX_FREE_BUFFER_BYTES:
                _free_buffers.append(buffer)
            buffer = bytearray()
            await loop.sock_sendall(connection, pack(PULL, request.internal_request_id.encode(), interval_s))
            (length,) = unpack(LENGTH, await read(memoryview(bytearray(calcsize(LENGTH)))))
            buffer = _free_buffers.pop() if _free_buffers else bytearray()
            if len(buffer) < length:
                buffer = bytearray(length)
            return await read(memoryview(buffer)[:length])

        yield pull
