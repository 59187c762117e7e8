"""Refuses an upload by what its header announces, before a byte of it is read."""

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from serve_app.api.errors import answer
from serve_app.errors import UploadTooLarge


class AnnouncedLength:
    """ASGI middleware. FastAPI's own limit counts, and so takes care of uploads that announce no length; its answer to the others
    would not be JSON."""

    def __init__(self, app: ASGIApp, max_bytes: int) -> None:
        self._app = app
        self._max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        app = self._app
        if scope["type"] == "http":
            length = Headers(scope=scope).get("content-length", "")
            if length.isdecimal() and int(length) > self._max_bytes:
                app = answer(UploadTooLarge.over(self._max_bytes))
        await app(scope, receive, send)
