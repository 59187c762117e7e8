"""What a request may cost, watched from before its first byte to its end: bytes, seconds, and a place among those at work."""

import asyncio
import time

from python_multipart.multipart import parse_options_header
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve_app.api.errors import answer
from serve_app.cluster.admission import Admission
from serve_app.errors import DeadlineExceeded, RequestError, SpeechError, UploadTooLarge, UploadTooSlow
from serve_app.settings import LimitSettings

MAX_HELD_BYTES = 64 << 20

MIN_BYTES_PER_S = 250
"""An upload that is slower on average holds a place for nothing; live speech at a low rate is faster."""


class RequestLimits:
    """ASGI middleware. Requests without a body pass untouched; FastAPI counts the bytes of uploads that announce no length."""

    def __init__(self, app: ASGIApp, limits: LimitSettings, admission: Admission) -> None:
        self._app = app
        self._limits = limits
        self._admission = admission

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "POST":
            await self._app(scope, receive, send)
            return
        request = _Request(receive, send, self._limits)
        scope.setdefault("state", {})["began_s"] = request.began_s
        try:
            _check_headers(Headers(scope=scope), self._limits.max_upload_bytes)
            with self._admission.request():
                async with asyncio.timeout(self._limits.request_timeout_s) as limit:
                    await self._app(scope, request.receive, request.send)
        except SpeechError as error:
            await answer(error)(scope, receive, send)
        except TimeoutError:
            if request.is_answered or not limit.expired():
                raise
            await answer(request.too_late())(scope, receive, send)


def _check_headers(headers: Headers, max_upload_bytes: int) -> None:
    length = headers.get("content-length", "")
    media_type = parse_options_header(headers.get("content-type"))[0].lower()
    is_long = length.isdecimal() and int(length) > MAX_HELD_BYTES
    if not media_type.startswith(b"multipart/") and (is_long or "transfer-encoding" in headers):
        # Forms are stored on disk as they come; anything else is held in memory.
        raise UploadTooLarge(f"A body that is no form may have {MAX_HELD_BYTES >> 20} MB, and must say how many.")
    if length.isdecimal() and int(length) > max_upload_bytes:
        raise UploadTooLarge.over(max_upload_bytes)
    # The form parser would decode with whatever codec is named, and some of Python's take minutes for a megabyte.
    charset = parse_options_header(headers.get("content-type"))[1].get(b"charset", b"utf-8")
    if charset.lower() not in (b"utf-8", b"utf8"):
        raise RequestError("The form must be in UTF-8.")


class _Request:
    """One request on its way."""

    def __init__(self, receive: Receive, send: Send, limits: LimitSettings) -> None:
        self._receive = receive
        self._send = send
        self._limits = limits
        self._is_complete = False
        self._received_bytes = 0
        self.began_s = time.monotonic()
        self.is_answered = False

    async def receive(self) -> Message:
        # After the body only a disconnect can come, which is waited for as long as the request takes.
        pause_s = None if self._is_complete else self._patience_s()
        try:
            async with asyncio.timeout(pause_s):
                message = await self._receive()
        except TimeoutError:
            limit = f"{self._limits.upload_pause_s:.0f} s, or with less than {MIN_BYTES_PER_S} bytes a second"
            error = UploadTooSlow(f"The upload came with a pause of {limit}.", param="file")
            # Whatever else is raised while a form is parsed, FastAPI takes for a broken form.
            raise HTTPException(error.status) from error
        self._received_bytes += len(message.get("body", b""))
        self._is_complete = not message.get("more_body", False)
        return message

    def _patience_s(self) -> float:
        pause_s = self._limits.upload_pause_s
        passed_s = time.monotonic() - self.began_s
        return max(0.0, min(pause_s, pause_s + self._received_bytes / MIN_BYTES_PER_S - passed_s))

    async def send(self, message: Message) -> None:
        self.is_answered = True
        if message["type"] == "http.response.start":
            passed_ms = 1000 * (time.monotonic() - self.began_s)
            MutableHeaders(scope=message)["openai-processing-ms"] = f"{passed_ms:.0f}"
        await self._send(message)

    def too_late(self) -> SpeechError:
        """The error for a request that took all its time."""
        limit_s = self._limits.request_timeout_s
        if self._is_complete:
            return DeadlineExceeded(f"The answer was not ready within {limit_s:.0f} s.")
        return UploadTooSlow(f"The upload did not end within {limit_s:.0f} s.", param="file")
