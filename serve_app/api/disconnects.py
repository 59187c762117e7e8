"""What tells that a client is gone, and the end of the work for it."""

import asyncio
import logging
from contextlib import suppress

from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

log = logging.getLogger("ray.serve")

WATCHED = ("GET", "POST")

GONE = 1006
"""Close code of a WebSocket connection that ended without one (RFC 6455, 7.4.1)."""


class DisconnectWhenLost:
    """ASGI middleware: where `receive` fails, the application gets a disconnect.

    Serve's `receive` is a call to the proxy, and raises an exception of its own kind once Serve has cancelled the request of a
    client that left, or the proxy is lost. FastAPI would answer any exception in the middle of a form with 400.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        disconnect: Message | None = None

        async def receive_or_disconnect() -> Message:
            nonlocal disconnect
            if disconnect is None:
                try:
                    return await receive()
                except Exception as error:
                    log.debug("The request can no longer be received: %s", error)
                    is_websocket = scope["type"] == "websocket"
                    disconnect = {"type": "websocket.disconnect", "code": GONE} if is_websocket else {"type": "http.disconnect"}
            return disconnect

        await self._app(scope, receive_or_disconnect, send)


class StopWhenGone:
    """ASGI middleware for GET and POST requests: cancels the application, once, when the client disconnects before it has its
    response. What has a body is watched once it is complete.

    Serve cancels a request too, but late where the cancellation is lost on its way, and never if the proxy is lost. A second
    cancellation would interrupt the clean-up that the first one began, so it ends only the wait for that.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] not in WATCHED:
            await self._app(scope, receive, send)
            return
        is_received, is_answered = asyncio.Event(), False
        if scope["method"] == "GET":
            is_received.set()

        async def receive_body() -> Message:
            if is_received.is_set():
                # Only a disconnect can follow, and that one is waited for here.
                await asyncio.Future()
            message = await receive()
            if not message.get("more_body", False):
                is_received.set()
            return message

        async def send_response(message: Message) -> None:
            nonlocal is_answered
            is_answered = message["type"] == "http.response.body" and not message.get("more_body", False)
            await send(message)

        async def disconnected() -> None:
            await is_received.wait()
            while (await receive())["type"] != "http.disconnect":
                pass

        work = asyncio.ensure_future(self._app(scope, receive_body, send_response))
        gone = asyncio.ensure_future(disconnected())
        try:
            await asyncio.wait([work, gone], return_when=asyncio.FIRST_COMPLETED)
            if is_answered:
                # The end of a response is a disconnect too. What the application still does is its clean-up.
                await asyncio.wait([work])
        finally:
            gone.cancel()
            if not work.done():
                work.cancel()
                await asyncio.wait([work])
            if not work.cancelled():
                # Retrieved: otherwise asyncio logs it where this task is cancelled.
                work.exception()
        # Of a client that left in its upload nobody is to be told; Serve would log a traceback.
        with suppress(ClientDisconnect):
            work.result()
