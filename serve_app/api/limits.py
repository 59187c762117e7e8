"""Limits of a request, from its headers to its response: body size, upload rate, duration, number of requests in progress."""

import asyncio
import time

from python_multipart.multipart import parse_options_header
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve_app.api.errors import error_response
from serve_app.cluster.admission import Admission
from serve_app.errors import DeadlineExceeded, RequestError, SpeechError, UploadTooLarge, UploadTooSlow
from serve_app.settings import LimitSettings

MAX_BODY_BYTES = 64 << 20
"""Maximum body that is not a multipart form, bytes. It is held in memory; the files of multipart forms are stored on disk."""

CHARSETS = frozenset({"utf8", "ascii", "usascii", "iso88591", "latin1", "iso885915", "latin9", "windows1252", "cp1252"})
"""Encodings that a form may name, without punctuation. The form parser would use any codec of Python; some take minutes for a
megabyte."""

MIN_BYTES_PER_S = 250
"""Minimum mean upload rate, bytes a second. Live speech at a low bit rate is faster."""


class RequestLimits:
    """ASGI middleware for POST requests."""

    def __init__(self, app: ASGIApp, limits: LimitSettings, admission: Admission) -> None:
        self._app = app
        self._limits = limits
        self._admission = admission

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "POST":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        max_bytes, too_large = _body_limit(headers, self._limits.max_upload_bytes)
        request = _Request(receive, send, self._limits, max_bytes, too_large)
        scope.setdefault("state", {})["began_s"] = request.began_s
        try:
            if _announced_bytes(headers) > max_bytes:
                raise too_large
            _check_charset(headers)
            with self._admission.request():
                async with asyncio.timeout(self._limits.request_timeout_s) as limit:
                    await self._app(scope, request.receive, request.send)
        except SpeechError as error:
            await error_response(error)(scope, receive, send)
        except TimeoutError:
            if request.is_answered or not limit.expired():
                raise
            await error_response(request.timeout_error())(scope, receive, send)


def _body_limit(headers: Headers, max_upload_bytes: int) -> tuple[int, UploadTooLarge]:
    """The maximum size of the body, bytes, and the error for a larger one."""
    if parse_options_header(headers.get("content-type"))[0].startswith(b"multipart/"):
        return max_upload_bytes, UploadTooLarge.over(max_upload_bytes)
    max_bytes = min(MAX_BODY_BYTES, max_upload_bytes)
    return max_bytes, UploadTooLarge(f"A body that is not a multipart form may have at most {max_bytes / (1 << 20):.0f} MB.")


def _announced_bytes(headers: Headers) -> int:
    """The Content-Length; 0 if there is none."""
    length = headers.get("content-length", "")
    # Python refuses to convert thousands of digits.
    return int(length[:20]) if length.isdecimal() else 0


def _check_charset(headers: Headers) -> None:
    charset = parse_options_header(headers.get("content-type"))[1].get(b"charset", b"utf-8").decode("latin-1")
    if charset.lower().replace("-", "").replace("_", "") not in CHARSETS:
        raise RequestError("The form must be encoded in UTF-8.")


class _Request:
    """The `receive` and `send` of one request, with its limits."""

    def __init__(self, receive: Receive, send: Send, limits: LimitSettings, max_bytes: int, too_large: UploadTooLarge) -> None:
        self._receive = receive
        self._send = send
        self._limits = limits
        self._max_bytes = max_bytes
        self._too_large = too_large
        self._is_complete = False
        self._received_bytes = 0
        self.began_s = time.monotonic()
        self.is_answered = False

    async def receive(self) -> Message:
        # After the body only a disconnect can arrive, at any time.
        timeout_s = None if self._is_complete else self._upload_timeout_s()
        try:
            async with asyncio.timeout(timeout_s):
                message = await self._receive()
        except TimeoutError:
            pause = f"paused for {self._limits.upload_pause_s:.0f} s"
            error = UploadTooSlow(f"The upload {pause}, or was slower than {MIN_BYTES_PER_S} bytes a second.", param="file")
            # FastAPI reports any other exception during form parsing as a malformed form.
            raise HTTPException(error.status) from error
        self._received_bytes += len(message.get("body", b""))
        if self._received_bytes > self._max_bytes:
            raise HTTPException(self._too_large.status) from self._too_large
        self._is_complete = not message.get("more_body", False)
        return message

    def _upload_timeout_s(self) -> float:
        """How long to wait for the next bytes, seconds: a pause, or less if the mean rate would fall below its minimum."""
        pause_s = self._limits.upload_pause_s
        elapsed_s = time.monotonic() - self.began_s
        return max(0.0, min(pause_s, pause_s + self._received_bytes / MIN_BYTES_PER_S - elapsed_s))

    async def send(self, message: Message) -> None:
        self.is_answered = True
        if message["type"] == "http.response.start":
            elapsed_ms = 1000 * (time.monotonic() - self.began_s)
            MutableHeaders(scope=message)["openai-processing-ms"] = f"{elapsed_ms:.0f}"
        await self._send(message)

    def timeout_error(self) -> SpeechError:
        """The error for a request that exceeded `request_timeout_s`."""
        limit_s = self._limits.request_timeout_s
        if self._is_complete:
            return DeadlineExceeded(f"The response was not ready within {limit_s:.0f} s.")
        return UploadTooSlow(f"The upload did not end within {limit_s:.0f} s.", param="file")
