"""What the WebSocket entry points share: receiving with limits of time and size, and failures as messages and close codes."""

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

RESTART = 1012
DRAIN_POLL_S = 1.0
MAX_REASON_BYTES = 120
"""Of a close frame, which holds 123 (RFC 6455, 5.5)."""

CLOSE_CODES: dict[str, int] = {
    AudioError.code: 1003,
    "invalid_request": 1007,
    InvalidKey.code: 1008,
    UploadTooLarge.code: 1009,
    "rate_limit_exceeded": 1013,
    "overloaded": 1013,
    "model_unavailable": 1013,
    "engine_broken": 1013,
    "shutting_down": RESTART,
}
"""By the code of the failure (RFC 6455 and its registry). Others: 1008 where the client can mend it, else 1011."""


def close_code(error: SpeechError) -> int:
    """The WebSocket close code that fits a failure."""
    return CLOSE_CODES.get(error.code, 1008 if error.status < 500 else 1011)


class Socket:
    """One connection. Frames are read when they are asked for and not before, so a fast sender waits."""

    def __init__(self, websocket: WebSocket, limits: LiveSettings, admission: Admission) -> None:
        self._websocket = websocket
        self._limits = limits
        self._admission = admission
        self._until_s = time.monotonic() + limits.max_session_s
        self._receiving: asyncio.Future[Any] | None = None

    async def receive(self, within_s: float) -> str | bytes | None:
        """The next frame, None once the server is being shut down.

        Raises WebSocketDisconnect when the client has gone, StreamIdle, StreamTooLong, or UploadTooLarge for a large frame.
        """
        deadline_s = time.monotonic() + within_s
        receiving = self._next()
        while not receiving.done():
            now_s = time.monotonic()
            if self._admission.is_closed:
                return None
            if now_s >= self._until_s:
                raise StreamTooLong(f"A stream may stay open for {self._limits.max_session_s:.0f} s.")
            if now_s >= deadline_s:
                raise StreamIdle(f"Nothing came for {within_s:.0f} s.")
            await asyncio.wait([receiving], timeout=min(DRAIN_POLL_S, deadline_s - now_s, self._until_s - now_s))
        message = self._taken(receiving)
        frame: str | bytes = message.get("bytes") if message.get("bytes") is not None else message.get("text", "")
        if len(frame) > self._limits.max_frame_bytes:
            raise UploadTooLarge(f"A frame may have {self._limits.max_frame_bytes} bytes.")
        return frame

    async def until_gone(self) -> None:
        """Raises WebSocketDisconnect when the client goes; passes over what it still sends."""
        while True:
            receiving = self._next()
            await asyncio.wait([receiving])
            self._taken(receiving)

    def _next(self) -> asyncio.Future[Any]:
        """The next message. Who stops waiting for it has lost nothing: it is there for the next who asks."""
        self._receiving = self._receiving or asyncio.ensure_future(self._websocket.receive())
        return self._receiving

    def _taken(self, received: asyncio.Future[Any]) -> Any:
        """A message that has come; raises WebSocketDisconnect."""
        self._receiving = None
        message = received.result()
        if message["type"] == "websocket.disconnect":
            raise WebSocketDisconnect(message.get("code", 1005))
        return message

    async def send(self, message: dict[str, Any]) -> None:
        await self._websocket.send_json(message)

    async def run(self, talk: Callable[[], Awaitable[None]], describe: Callable[[SpeechError], dict[str, Any]]) -> None:
        """Have `talk` to its end, and tell the client what went wrong, as `describe` puts it; then close."""
        try:
            await talk()
            if self._admission.is_closed:
                await self._websocket.close(RESTART, "The server is being shut down.")
            else:
                await self._websocket.close()
        except WebSocketDisconnect:
            pass
        except SpeechError as error:
            await self._end(error, describe)
        except Exception as error:
            # So Starlette says that it cannot send because the client has gone.
            if "close message" not in str(error):
                log.exception("a stream failed")
                await self._end(EngineError(UNFORESEEN), describe)
        finally:
            if self._receiving is not None:
                self._receiving.cancel()

    async def _end(self, error: SpeechError, describe: Callable[[SpeechError], dict[str, Any]]) -> None:
        try:
            await self.send(describe(error))
            await self._websocket.close(close_code(error), error.message.encode()[:MAX_REASON_BYTES].decode(errors="ignore"))
        except (WebSocketDisconnect, RuntimeError):
            # The client has gone; nobody is left to be told.
            return
