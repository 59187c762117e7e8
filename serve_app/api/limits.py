"""Limits of a request, from its headers to its response: body size, upload rate, duration, number of requests in progress.

A request is first an upload, which is cheap, and at work once its body is complete. Both are counted apart, so that slow uploads
keep nobody else from working. A few uploads are transcribed while they arrive. They have places of their own, so that slow ones
take no more than these, and begin only if a request could.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass

from python_multipart.multipart import parse_options_header
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve_app.api.client_address import Network, client_address
from serve_app.api.errors import send_error
from serve_app.cluster.admission import Admission, Places
from serve_app.errors import DeadlineExceeded, Overloaded, RequestError, SpeechError, UploadTooLarge, UploadTooSlow
from serve_app.settings import LimitSettings

MAX_BODY_BYTES = 8 << 20
"""Maximum body that is not a multipart form, bytes. It is held in memory; the files of multipart forms are stored on disk."""

CHARSETS = frozenset({"utf8", "ascii", "usascii", "iso88591", "latin1", "iso885915", "latin9", "windows1252", "cp1252"})
"""Encodings that a form may name, without punctuation. The form parser would use any codec of Python; some take minutes for a
megabyte."""

MIN_BYTES_PER_S = 500
"""Minimum mean upload rate, bytes a second. Live speech at a low bit rate is faster."""

MAX_START_S = 10.0
"""The minimum rate holds after this time, seconds. A silent upload ends then."""

MAX_EARLY, MAX_EARLY_PER_ADDRESS = 16, 8
"""Maximum uploads that are transcribed before they are complete, in all and for one client address."""


class RequestLimits:
    """ASGI middleware for POST requests."""

    def __init__(self, app: ASGIApp, limits: LimitSettings, admission: Admission, trusted_proxies: Sequence[Network]) -> None:
        self._app = app
        self._limits = limits
        self._admission = admission
        self._uploads = Places(limits.max_uploads, limits.max_uploads_per_address, "uploads")
        self._early = Places(MAX_EARLY, MAX_EARLY_PER_ADDRESS)
        self._trusted_proxies = trusted_proxies

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "POST":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        try:
            body_limit = _BodyLimit.of(headers, self._limits.max_upload_bytes)
            body_limit.check(_announced_bytes(headers))
            _check_charset(headers)
            with (
                self._admission.request() as begin_work,
                self._admission.spool() as spool,
                ExitStack() as upload,
                ExitStack() as early,
            ):
                address = client_address(scope, self._trusted_proxies)
                upload.enter_context(self._uploads.take(address))

                async def on_complete() -> None:
                    upload.close()
                    await begin_work()
                    early.close()

                def may_begin_early() -> bool:
                    with suppress(Overloaded):
                        if not self._admission.is_full:
                            early.enter_context(self._early.take(address))
                            return True
                    return False

                request = _Request(receive, send, self._limits, body_limit, spool, on_complete)
                scope.setdefault("state", {}).update(began_s=request.began_s, may_begin_early=may_begin_early)
                await self._run(scope, request)
        except SpeechError as error:
            await send_error(error, scope, receive, send)

    async def _run(self, scope: Scope, request: "_Request") -> None:
        try:
            async with asyncio.timeout(self._limits.request_timeout_s) as limit:
                await self._app(scope, request.receive, request.send)
        except TimeoutError:
            if request.is_answered or not limit.expired():
                raise
            raise request.timeout_error() from None


@dataclass(frozen=True, slots=True)
class _BodyLimit:
    """The maximum size of a body, and the error for a larger one."""

    max_bytes: int
    error: UploadTooLarge

    @classmethod
    def of(cls, headers: Headers, max_upload_bytes: int) -> "_BodyLimit":
        """The limit for a body with these headers."""
        if parse_options_header(headers.get("content-type"))[0].startswith(b"multipart/"):
            return cls(max_upload_bytes, UploadTooLarge.over(max_upload_bytes))
        max_bytes = min(MAX_BODY_BYTES, max_upload_bytes)
        message = f"A body that is not a multipart form may have at most {max_bytes / (1 << 20):.0f} MB."
        return cls(max_bytes, UploadTooLarge(message))

    def check(self, size_bytes: int) -> None:
        """Raises UploadTooLarge."""
        if size_bytes > self.max_bytes:
            raise self.error


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
    """The `receive` and `send` of one request, with its limits. `spool` is called with the size of each part of the body, bytes,
    `on_complete` when the body is complete."""

    def __init__(
        self,
        receive: Receive,
        send: Send,
        limits: LimitSettings,
        body_limit: _BodyLimit,
        spool: Callable[[int], None],
        on_complete: Callable[[], Awaitable[None]],
    ) -> None:
        self._receive = receive
        self._send = send
        self._limits = limits
        self._body_limit = body_limit
        self._spool = spool
        self._on_complete = on_complete
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
        if message["type"] == "http.request" and not self._is_complete:
            size_bytes = len(message.get("body", b""))
            self._received_bytes += size_bytes
            self._spool(size_bytes)
            try:
                self._body_limit.check(self._received_bytes)
            except UploadTooLarge as error:
                raise HTTPException(error.status) from error
            self._is_complete = not message.get("more_body", False)
            if self._is_complete:
                await self._on_complete()
        return message

    def _upload_timeout_s(self) -> float:
        """How long to wait for the next bytes, seconds: a pause, or less if the mean rate would fall below its minimum."""
        pause_s = self._limits.upload_pause_s
        elapsed_s = time.monotonic() - self.began_s
        return max(0.0, min(pause_s, min(pause_s, MAX_START_S) + self._received_bytes / MIN_BYTES_PER_S - elapsed_s))

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
