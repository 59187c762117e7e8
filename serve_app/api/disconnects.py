"""Stops the work of a request whose client is gone."""

import asyncio
from contextlib import suppress

from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

WATCHED = ("GET", "POST")


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
