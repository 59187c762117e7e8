"""What both WebSocket routes share: a connection with limits of time and size, and failures as messages and close codes."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Any

from fastapi import WebSocket
from starlette.websockets import WebSocketDisconnect

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
from serve_app.settings import LiveSettings

log = logging.getLogger("ray.serve")

SERVICE_RESTART = 1012
"""Close code of a server that shuts down (IANA's registry of close codes)."""

DRAIN_POLL_S = 1.0
"""How often a waiting connection checks whether the server is shutting down, seconds."""

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


class Connection:
    """One WebSocket connection. It reads a frame only when one is asked for, so that a fast sender is slowed down."""

    def __init__(self, websocket: WebSocket, limits: LiveSettings, admission: Admission) -> None:
        self._websocket = websocket
        self._limits = limits
        self._admission = admission
        self._until_s = time.monotonic() + limits.max_session_s
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
        await self._websocket.send_json(message)

    async def run(self, handle: Callable[[], Awaitable[None]], describe: Callable[[SpeechError], dict[str, Any]]) -> None:
        """Run `handle`, then close the connection. `describe` makes the message for a failure of `handle`."""
        try:
            await handle()
            if self._admission.is_closed:
                await self._websocket.close(SERVICE_RESTART, "The server is shutting down.")
            else:
                await self._websocket.close()
        except WebSocketDisconnect:
            pass
        except SpeechError as error:
            await self._fail(error, describe)
        except Exception as error:
            # Starlette's text when something is sent after the client has gone.
            if "close message" not in str(error):
                log.exception("a stream failed")
                await self._fail(EngineError(UNFORESEEN), describe)
        finally:
            if self._receiving is not None:
                self._receiving.cancel()

    async def _fail(self, error: SpeechError, describe: Callable[[SpeechError], dict[str, Any]]) -> None:
        try:
            await self.send(describe(error))
            await self._websocket.close(close_code(error), error.message.encode()[:MAX_REASON_BYTES].decode(errors="ignore"))
        except (WebSocketDisconnect, RuntimeError):
            # The client is gone.
            return
