"""`GET /metrics`, and the metrics of requests."""

import asyncio
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

    def name(self, path: str) -> str:
        """The route of a path."""
        if path in self._exact:
            return path
        matching = (route for pattern, route in self._patterns if pattern.match(path))
        return next(matching, next((folder for folder in self._folders if path.startswith(f"{folder}/")), OTHER))


class RequestMetrics:
    """ASGI middleware: counts every request and every WebSocket connection when it has ended, and the failures that are sent."""

    def __init__(self, app: ASGIApp, recorder: Recorder, routes: Routes) -> None:
        self._app = app
        self._recorder = recorder
        self._routes = routes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        # At once, since a mounted application changes the paths in the scope.
        route = self._routes.name(route_path(scope))
        began_s, code, is_complete = time.monotonic(), GONE, False
        count_failure = partial(self._recorder.record, catalogue.FAILURES, 1, route)
        scope[FAILURE_COUNTER] = count_failure

        async def send_noting(message: Message) -> None:
            nonlocal code, is_complete
            await send(message)
            match message["type"]:
                case "http.response.start":
                    code = str(message["status"])
                case "http.response.body":
                    is_complete = not message.get("more_body", False)
                case "websocket.accept":
                    is_complete = True
                case "websocket.close":
                    # Before the connection is accepted it is answered with 403.
                    code = str(message.get("code", 1000)) if is_complete else "403"

        try:
            await self._app(scope, receive, send_noting)
        except asyncio.CancelledError:
            code = code if is_complete else GONE
            raise
        except Exception:
            code = code if is_complete else "500"
            count_failure(SpeechError.code)
            raise
        finally:
            self._recorder.record(catalogue.REQUESTS, 1, route, code)
            if scope["type"] == "http" and is_complete and int(code) < 400:
                self._recorder.record(catalogue.REQUEST_LATENCY_SECONDS, time.monotonic() - began_s, route)
