"""What both WebSocket routes share: a connection with limits of time and size, and failures as messages and close codes."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Collection, Mapping
from contextlib import ExitStack, suppress
from typing import Any
from urllib.parse import urlsplit

from fastapi import WebSocket
from starlette.websockets import WebSocketDisconnect

from serve_app.api.client_address import client_address
from serve_app.api.disconnects import GONE
from serve_app.api.errors import count_failure
from serve_app.cluster.admission import Admission
from serve_app.errors import (
    UNFORESEEN,
    AudioError,
    EngineError,
    InvalidKey,
    SpeechError,
    StreamIdle,
    StreamTooLong,
    UploadTooLarge,
)
from serve_app.settings import Settings

log = logging.getLogger("ray.serve")

NORMAL = 1000
"""Close code after everything was sent."""

SERVICE_RESTART = 1012
"""Close code of a server that shuts down (IANA's registry of close codes)."""

DRAIN_POLL_S = 0.5
"""How often a waiting connection checks whether the server is shutting down, seconds."""

MAX_MESSAGE_CHARS = 65_536
"""Maximum length of a JSON message without its audio, characters. It is parsed on the event loop, where a long one delays all."""

MAX_REASON_BYTES = 120
"""Maximum reason in a close frame, bytes; RFC 6455, 5.5 allows 123."""

CLOSE_CODES: dict[str, int] = {
    AudioError.code: 1003,
    "invalid_request": 1007,
    InvalidKey.code: 1008,
    UploadTooLarge.code: 1009,
    "rate_limit_exceeded": 1013,
    "overloaded": 1013,
    "model_unavailable": 1013,
    "engine_broken": 1013,
    "shutting_down": SERVICE_RESTART,
}
"""Close codes (RFC 6455 and IANA's registry) by error code. Other errors: 1008 for the client's, 1011 for the server's."""


def close_code(error: SpeechError) -> int:
    """The WebSocket close code for a failure."""
    return CLOSE_CODES.get(error.code, 1008 if error.status < 500 else 1011)


def may_connect(headers: Mapping[str, str], cors_origins: Collection[str]) -> bool:
    """Whether the request for a connection may come from where it does.

    A browser lets any page connect, and names the origin of the page. Other clients name none. A page of this server may connect,
    also through a proxy that passes on the host in `X-Forwarded-Host`, which no page can set.
    """
    origin = headers.get("origin")
    if origin is None or "*" in cors_origins or origin in cors_origins:
        return True
    hosts = (headers.get("host", ""), headers.get("x-forwarded-host", "").partition(",")[0].strip())
    return urlsplit(origin).netloc.lower() in [host.lower() for host in hosts if host]


class Connection:
    """One WebSocket connection. It reads a frame only when one is asked for, so that a fast sender is slowed down."""

    def __init__(self, websocket: WebSocket, settings: Settings, admission: Admission) -> None:
        self._websocket = websocket
        self._cors_origins = settings.ingress.cors_origins
        self._address = client_address(websocket.scope, settings.ingress.trusted_proxies)
        self._limits = settings.live
        self._admission = admission
        self._waiting, self._places = ExitStack(), ExitStack()
        """The place of a connection without audio, and those of its streams, as far as they are taken."""
        self._streams = 0
        self._until_s = time.monotonic() + settings.live.max_session_s
        self._receiving: asyncio.Future[Any] | None = None

    async def receive(self, timeout_s: float) -> str | bytes | None:
        """The next frame; None once the server is shutting down.

        Raises WebSocketDisconnect if the client is gone, StreamIdle, StreamTooLong, or UploadTooLarge for a large frame.
        """
        deadline_s = time.monotonic() + timeout_s
        receiving = self._next_message()
        while not receiving.done():
            now_s = time.monotonic()
            if self._admission.is_closed:
                return None
            if now_s >= self._until_s:
                raise StreamTooLong(f"The stream was open for the maximum of {self._limits.max_session_s:.0f} s.")
            if now_s >= deadline_s:
                raise StreamIdle(f"Nothing was received for {timeout_s:.0f} s.")
            await asyncio.wait([receiving], timeout=min(DRAIN_POLL_S, deadline_s - now_s, self._until_s - now_s))
        message = self._take(receiving)
        frame: str | bytes = message.get("bytes") if message.get("bytes") is not None else message.get("text", "")
        if len(frame) > self._limits.max_frame_bytes:
            raise UploadTooLarge(f"A message may have at most {self._limits.max_frame_bytes} bytes.")
        return frame

    def begin_stream(self, streams: int = 1) -> None:
        """Count the connection as so many streams from now on, as its first audio has come. Raises Overloaded or ShuttingDown."""
        for _ in range(self._streams, streams):
            self._places.enter_context(self._admission.stream(self._address))
            self._streams += 1
        self._waiting.close()

    async def wait_until_gone(self) -> None:
        """Ignore frames until the client disconnects; then raise WebSocketDisconnect."""
        while True:
            receiving = self._next_message()
            await asyncio.wait([receiving])
            self._take(receiving)

    def _next_message(self) -> asyncio.Future[Any]:
        """The next ASGI message. It stays pending for the next caller if this one stops waiting."""
        self._receiving = self._receiving or asyncio.ensure_future(self._websocket.receive())
        return self._receiving

    def _take(self, receiving: asyncio.Future[Any]) -> Any:
        """The message that was received; raises WebSocketDisconnect."""
        self._receiving = None
        message = receiving.result()
        if message["type"] == "websocket.disconnect":
            raise WebSocketDisconnect(message.get("code", 1005))
        return message

    async def send(self, message: dict[str, Any]) -> None:
        """Send JSON. Raises WebSocketDisconnect if the client is gone."""
        try:
            await self._websocket.send_json(message)
        except RuntimeError as error:
            # The error of Starlette and uvicorn when something is sent after the client has gone.
            raise WebSocketDisconnect(GONE) from error

    async def run(
        self,
        handle: Callable[[], Awaitable[None]],
        describe: Callable[[SpeechError], dict[str, Any]],
        subprotocol: str | None = None,
    ) -> None:
        """Accept the connection, run `handle`, then close. `describe` makes the message for a failure of `handle`.

        The page of a foreign origin gets 403 instead.
        """
        if not may_connect(self._websocket.headers, self._cors_origins):
            await self._websocket.close()
            return
        # Serve returns the id of a request, but not of a connection.
        request_id = self._websocket.headers.get("x-request-id", "")
        headers = [(b"x-request-id", request_id.encode("latin-1"))] if request_id else None
        try:
            await self._websocket.accept(subprotocol, headers)
        except RuntimeError as error:
            # Starlette's, where the client has gone before.
            log.debug("a connection was not accepted: %s", error)
            return
        try:
            self._waiting.enter_context(self._admission.waiting.take(self._address))
            await handle()
            if self._admission.is_closed:
                await self._close(SERVICE_RESTART, "The server is shutting down.")
            else:
                await self._close(NORMAL)
        except WebSocketDisconnect:
            pass
        except SpeechError as error:
            await self._fail(error, describe)
        except Exception:
            log.exception("a stream failed")
            await self._fail(EngineError(UNFORESEEN), describe)
        finally:
            self._waiting.close()
            self._places.close()
            if self._receiving is not None:
                self._receiving.cancel()

    def count_failure(self, error: SpeechError) -> None:
        """Count a failure that is sent to the client."""
        count_failure(self._websocket.scope, error.code)

    async def _fail(self, error: SpeechError, describe: Callable[[SpeechError], dict[str, Any]]) -> None:
        self.count_failure(error)
        with suppress(WebSocketDisconnect):
            await self.send(describe(error))
            await self._close(close_code(error), error.message.encode()[:MAX_REASON_BYTES].decode(errors="ignore"))

    async def _close(self, code: int, reason: str | None = None) -> None:
        with suppress(WebSocketDisconnect, RuntimeError):  # The client is gone.
            await self._websocket.close(code, reason)
