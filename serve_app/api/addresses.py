"""Addresses as clients spell them: HEAD, trailing slashes, a server below a path, and hints where an address is wrong."""

import re
from collections.abc import Iterable

from starlette.datastructures import Headers
from starlette.responses import RedirectResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

PREFIX = re.compile(r"(/[A-Za-z0-9._~-]{1,64}){1,8}")
"""A path that a reverse proxy may name in `X-Forwarded-Prefix`. It becomes part of links in pages."""


def route_path(scope: Scope) -> str:
    """The path of a request below the prefix at which the server is mounted."""
    path: str = scope["path"]
    return path.removeprefix(scope.get("root_path", ""))


class Addresses:
    """ASGI middleware: HEAD is answered as GET without the body, and a path with a slash at its end as one without.

    A prefix that a reverse proxy has removed from the path, and names in `X-Forwarded-Prefix`, is put back.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        scope = _with_forwarded_prefix(scope)
        path = route_path(scope)
        if scope["type"] == "http" and not path:
            # The page's links are relative to the slash. So is this one: only the client knows what a proxy has added.
            prefix = scope["path"].rpartition("/")[2]
            await RedirectResponse(f"{prefix}/")(scope, receive, send)
            return
        if path.rstrip("/"):
            scope = {**scope, "path": scope["path"].rstrip("/")}
        if scope.get("method") == "HEAD":
            scope, send = {**scope, "method": "GET"}, _without_body(send)
        await self._app(scope, receive, send)


def _with_forwarded_prefix(scope: Scope) -> Scope:
    prefix = Headers(scope=scope).get("x-forwarded-prefix", "").rstrip("/")
    if not PREFIX.fullmatch(prefix):
        return scope
    return {**scope, "root_path": prefix + scope.get("root_path", ""), "path": prefix + scope["path"]}


def _without_body(send: Send) -> Send:
    async def send_without_body(message: Message) -> None:
        await send({**message, "body": b""} if message["type"] == "http.response.body" else message)

    return send_without_body


def intended_path(path: str, known_paths: Iterable[str]) -> str | None:
    """What a client with a wrong base address means by `path`: the known path whose last segment comes last in it, if any."""
    by_name = {known.rpartition("/")[2]: known for known in known_paths}
    return next((by_name[name] for name in reversed(path.split("/")) if name in by_name), None)
