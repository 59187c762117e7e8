"""`GET /metrics`, and the metrics of requests."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterable
from functools import partial

from fastapi import APIRouter
from fastapi.responses import PlainTextResponse
from starlette.routing import compile_path
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve_app.api.addresses import route_path
from serve_app.api.errors import ERROR_RESPONSES, FAILURE_COUNTER
from serve_app.errors import MetricsUnavailable, SpeechError
from serve_app.observe import catalogue
from serve_app.observe.recorder import Recorder

log = logging.getLogger("ray.serve")

PATH = "/metrics"
MEDIA_TYPE = "text/plain; version=0.0.4"
"""Prometheus' text format."""

OTHER = "other"
"""The route of a path that no route has."""

GONE = "gone"
"""The code of a request whose client left before the response."""

Scrape = Callable[[], Awaitable[str]]
"""Returns the metrics in Prometheus' text format. Raises MetricsUnavailable."""


async def no_exporter() -> str:
    """A Scrape where no Ray runs."""
    raise MetricsUnavailable("This server has no exporter of metrics.")


def create_router(scrape: Scrape) -> APIRouter:
    """The route."""
    router = APIRouter()

    @router.get(
        PATH,
        response_class=PlainTextResponse,
        responses={
            503: {**ERROR_RESPONSES[503], "description": "Ray's exporter on this node is not running, or cannot be read."}
        },
        tags=["server"],
    )
    async def metrics() -> PlainTextResponse:
        """The metrics of this node in Prometheus' text format."""
        return PlainTextResponse(await scrape(), media_type=MEDIA_TYPE)

    return router


class Routes:
    """The values of the label `route`: the paths of the routes, so that no client makes up more."""

    def __init__(self, paths: Iterable[str], folders: Iterable[str] = ()) -> None:
        """`folders`: everything below one counts as the folder."""
        paths = set(paths)
        self._exact = {path for path in paths if "{" not in path}
        self._patterns = [(compile_path(path)[0], path) for path in sorted(paths - self._exact)]
        self._folders = tuple(folders)

    def of(self, scope: Scope) -> str:
        """The route of a request. To be asked at once, since a mounted application changes the paths in the scope."""
        return self.name(route_path(scope))

    def name(self, path: str) -> str:
        """The route of a path."""
        if path in self._exact:
            return path
        matching = (route for pattern, route in self._patterns if pattern.match(path))
        return next(matching, next((folder for folder in self._folders if path.startswith(f"{folder}/")), OTHER))


class Outcome:
    """What became of a request or a WebSocket connection, from what is received and sent."""

    def __init__(self) -> None:
        self._code = GONE
        self._is_complete = False
        self._has_left = False

    def receiving(self, receive: Receive) -> Receive:
        """The same `receive`, observed. To a client that has left in its upload, the application answers 400."""

        async def receive_noting() -> Message:
            message = await receive()
            self._has_left |= message["type"] == "http.disconnect" and self._code == GONE
            return message

        return receive_noting

    def sending(self, send: Send) -> Send:
        """The same `send`, observed."""

        async def send_noting(message: Message) -> None:
            await send(message)
            match message["type"]:
                case "http.response.start":
                    self._code = str(message["status"])
                case "http.response.body":
                    self._is_complete = not message.get("more_body", False)
                case "websocket.accept":
                    self._is_complete = True
                case "websocket.close":
                    # Before the connection is accepted it is answered with 403.
                    self._code = str(message.get("code", 1000)) if self._is_complete else "403"

        return send_noting

    def code(self, error: BaseException | None) -> str:
        """Its code, once the application has ended, with that exception."""
        if self._has_left:
            return GONE
        if error is None or self._is_complete:
            return self._code
        return "500" if isinstance(error, Exception) else GONE


class RequestMetrics:
    """ASGI middleware: counts every request and every WebSocket connection when it has ended, and the failures that are sent.
    Logs those without an end."""

    def __init__(self, app: ASGIApp, recorder: Recorder, routes: Routes) -> None:
        self._app = app
        self._recorder = recorder
        self._routes = routes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        route, outcome, began_s = self._routes.of(scope), Outcome(), time.monotonic()
        scope[FAILURE_COUNTER] = count_failure = partial(self._recorder.record, catalogue.FAILURES, 1, route)
        error: BaseException | None = None
        try:
            await self._app(scope, outcome.receiving(receive), outcome.sending(send))
        except (Exception, asyncio.CancelledError) as raised:
            error = raised
            if isinstance(raised, Exception):
                count_failure(SpeechError.code)
            raise
        finally:
            code = outcome.code(error)
            if code == GONE:
                method = scope.get("method", "WebSocket")
                log.info("%s %s ended without a complete response: the client left, or the server stops", method, route)
            self._recorder.record(catalogue.REQUESTS, 1, route, code)
            if scope["type"] == "http" and code != GONE and int(code) < 400:
                self._recorder.record(catalogue.REQUEST_LATENCY_SECONDS, time.monotonic() - began_s, route)
