"""The span of a request: from its arrival to the end of its response, with the upload as the first stage."""

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve_app.api.metrics import Outcome, Routes
from serve_app.observe import tracing
from serve_app.observe.tracing import Span, Tracer


class RequestTraces:
    """ASGI middleware, where tracing is configured."""

    def __init__(self, app: ASGIApp, tracer: Tracer, routes: Routes) -> None:
        self._app = app
        self._tracer = tracer
        self._routes = routes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        route, method, headers = self._routes.of(scope), scope.get("method", "WEBSOCKET"), Headers(scope=scope)
        attributes = {"http.request.method": scope.get("method", "GET"), "http.route": route}
        span = self._tracer.request(f"{method} {route}", headers, attributes)
        if span is None:
            await self._app(scope, receive, send)
            return
        # Serve makes an id for every request that has none.
        span.note({"request.id": headers.get("x-request-id", "")})
        outcome = Outcome()
        receive, send = outcome.receiving(receive), outcome.sending(send)
        upload = _Upload(receive, span) if method == "POST" else None
        before = tracing.current.set(span)
        error: BaseException | None = None
        try:
            await self._app(scope, receive if upload is None else upload.receive, send)
        except BaseException as raised:
            error = raised
            raise
        finally:
            tracing.current.reset(before)
            if upload is not None:
                upload.end()
            code = outcome.code(error)
            span.note({"http.response.status_code": int(code)} if code.isdecimal() else {"cancelled": True})
            is_failure = code.isdecimal() and (500 <= int(code) < 600 or code == "1011")
            span.end(error=tracing.describe(error) or (code if is_failure else ""))


class _Upload:
    """The body of a request, and its span."""

    def __init__(self, receive: Receive, request: Span) -> None:
        self._receive = receive
        self._span: Span | None = request.child("upload")
        self._bytes = 0

    async def receive(self) -> Message:
        message = await self._receive()
        if message["type"] == "http.request":
            self._bytes += len(message.get("body", b""))
        if not message.get("more_body", False):
            self.end()
        return message

    def end(self) -> None:
        """The upload is complete, or given up."""
        if self._span is not None:
            self._span.note({"bytes": self._bytes})
            self._span.end()
            self._span = None
