"""What this server changes in Serve's HTTP proxies. Ray sends this module by value: it runs in the processes of the proxies,
which may not be able to import serve_app.

It patches private classes of Serve (2.60) and of uvicorn, so it is tied to the versions in constraints.txt.
"""

import asyncio
import logging
from collections.abc import Callable
from typing import Any

import httptools
from ray.serve._private import proxy as serve_proxy
from ray.serve._private.http_util import MessageQueue
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

from serve_app.cluster.message_socket import SCOPE_KEY, MessageServer

log = logging.getLogger("ray.serve")

MAX_HEAD_BYTES = 64 << 10
"""Maximum request head, and maximum trailers of a chunked body, bytes. What arrives at once is parsed before it is counted."""

MAX_ID_CHARS = 128
"""Maximum value of ID_HEADERS, characters."""

ID_HEADERS = {b"x-request-id", b"traceparent"}
"""Headers that Serve decodes, logs and returns; it makes a new request id where there is none."""

STEERING_HEADERS = {
    *(b"serve-multiplexed-model-id", b"x-session-id"),
    *(b"x-request-timeout-seconds", b"x-request-disconnect-disabled"),
}
"""Headers by which a client would steer Serve: choose a replica, set a timeout, have work go on after the client is gone.

Serve also reads them with `_` for `-`."""

SERVES_OWN = "/-/"
"""Start of the paths that Serve's proxy answers itself."""

SERVICE_RESTART = 1012
"""Close code of a WebSocket whose ingress is lost (IANA's registry of close codes)."""


def patch(proxy: Any, max_held_bytes: int, lost: Response, unserved: Response) -> None:
    """Patch the proxy of this process. It may be patched again.

    `max_held_bytes` bounds the queue of a request's body. `lost` is the response to a request whose ingress is lost, `unserved`
    to one while no application is deployed.
    """
    if not hasattr(serve_proxy, "MessageQueue"):
        raise AttributeError("Serve's proxy module has no MessageQueue any more")
    serve_proxy.MessageQueue = bounded_queue(max_held_bytes)
    _, server = proxy._start_http_server_task.result()
    config = server.config
    # uvicorn reads these for every new connection.
    config.http_protocol_class = HttpProtocol
    config.ws_protocol_class = WebSocketProtocol
    previous = config.loaded_app
    guarded, replaced = getattr(previous, "guarded", previous), getattr(previous, "messages", None)
    messages = MessageServer(proxy.http_proxy.asgi_receive_queues)
    config.loaded_app = Guard(guarded, lost, unserved, lambda: bool(proxy.proxy_router.endpoints), messages)
    for connection in server.server_state.connections:
        connection.app = config.loaded_app

    async def listen() -> None:
        try:
            await messages.start()
        except OSError as error:
            log.warning("the bodies of requests take longer, as the proxy cannot listen on a Unix socket: %s", error)
        if replaced is not None:
            replaced.close()

    asyncio.run_coroutine_threadsafe(listen(), proxy._start_http_server_task.get_loop())


def bounded_queue(max_held_bytes: int) -> type[MessageQueue]:
    """A class of queues that make the sender wait while they hold more than `max_held_bytes`."""

    class BoundedQueue(MessageQueue):
        def __init__(self) -> None:
            super().__init__()  # type: ignore[no-untyped-call]
            self._held_bytes = 0
            self._taken = asyncio.Event()

        async def __call__(self, message: Message) -> None:
            await super().__call__(message)
            self._held_bytes += len(message.get("body") or message.get("bytes") or message.get("text") or b"")
            while self._held_bytes > max_held_bytes:
                self._taken.clear()
                await self._taken.wait()

        def get_messages_nowait(self) -> list[Message]:
            self._held_bytes = 0
            self._taken.set()
            return super().get_messages_nowait()

    return BoundedQueue


class Guard:
    """ASGI middleware in front of Serve: cleans the headers, and answers where there is no application or the ingress is lost.

    It tells the ingress where it gets the messages of the request.
    """

    def __init__(
        self,
        app: ASGIApp,
        lost: Response,
        unserved: Response,
        has_applications: Callable[[], bool],
        messages: MessageServer,
    ) -> None:
        self.guarded = app
        self.messages = messages
        self._lost = lost
        self._unserved = unserved
        self._has_applications = has_applications

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        last_sent = ""

        async def send_if_open(message: Message) -> None:
            nonlocal last_sent
            if scope["type"] == "websocket" and message["type"].startswith("http."):
                # Serve refuses a connection with messages of HTTP, which uvicorn takes for a fault of the application.
                message = {**message, "type": f"websocket.{message['type']}"}
            last_sent = message["type"]
            try:
                await send(message)
            except OSError:
                # The client is gone. Serve's generators end by themselves; an exception would abort them, with a traceback.
                return

        if not self._has_applications() and not scope.get("path", "").startswith(SERVES_OWN):
            # While a server starts, and once its application was removed. Serve would answer with 404.
            await self._unserved(scope, receive, send_if_open)
            return
        scope["headers"] = clean_headers(scope["headers"])
        scope[SCOPE_KEY] = self.messages.address
        await self.guarded(scope, receive, send_if_open)
        if not last_sent:
            await self._lost(scope, receive, send_if_open)
        elif last_sent in ("websocket.accept", "websocket.send"):
            await send_if_open({"type": "websocket.close", "code": SERVICE_RESTART, "reason": "The ingress was lost."})


def clean_headers(headers: list[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    """The headers without those that steer Serve, and without ids that are not short printable ASCII."""

    def is_kept(name: bytes, value: bytes) -> bool:
        if name in ID_HEADERS:
            return 0 < len(value) <= MAX_ID_CHARS and all(0x20 <= byte < 0x7F for byte in value)
        return name.replace(b"_", b"-") not in STEERING_HEADERS

    return [(name, value) for name, value in headers if is_kept(name.lower(), value)]


class HttpProtocol(HttpToolsProtocol):
    """uvicorn's HTTP/1.1 with a bounded head, which ignores offers of other protocols than WebSocket (RFC 9110, 7.8).

    JDK's HttpClient and `curl --http2` offer h2c with every request. httptools takes what follows such a head for the other
    protocol, so the body would be lost.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._pending_bytes = 0
        """Bytes received since the last complete head or piece of a body."""

    def data_received(self, data: bytes) -> None:
        self._unset_keepalive_if_required()
        self._pending_bytes += len(data)
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserError:
            self.send_400_response("Invalid HTTP request received.")
        except httptools.HttpParserUpgrade as upgrade:
            if self._should_upgrade():
                self.handle_websocket_upgrade()
            else:
                self._parse_without_upgrade(data[upgrade.args[0] :])
        else:
            if self._pending_bytes > MAX_HEAD_BYTES:
                self.send_400_response(f"The headers of a request may have at most {MAX_HEAD_BYTES} bytes.")

    def _parse_without_upgrade(self, rest: bytes) -> None:
        """Parse the head again, without its `Upgrade`, and what follows it."""
        head = [self.parser.get_method(), b" ", self.url, b" HTTP/", self.parser.get_http_version().encode(), b"\r\n"]
        for name, value in self.headers:
            if name != b"upgrade":
                head += [name, b": ", value, b"\r\n"]
        self.parser = httptools.HttpRequestParser(self)
        self.data_received(b"".join(head) + b"\r\n" + rest)

    def _is_offer(self) -> bool:
        """Whether the head offers a protocol that is not spoken here. CONNECT is no offer, but httptools treats it as one."""
        return self.parser.should_upgrade() and not self._should_upgrade() and self.parser.get_method() != b"CONNECT"

    def on_headers_complete(self) -> None:
        self._pending_bytes = 0
        if not self._is_offer():
            super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._pending_bytes = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._pending_bytes = 0
        if not self._is_offer():
            super().on_message_complete()


class WebSocketProtocol(WebSocketsSansIOProtocol):
    """uvicorn's WebSocket without a ping timeout: the pongs of a client that is slowed down are queued after its data.
    `live.idle_s` and TCP detect clients that are gone."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.ping_timeout = None
