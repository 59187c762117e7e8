"""API keys: bearer authentication on every route that is not public, and limits per key."""

import hmac
import logging
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve_app.api.addresses import route_path
from serve_app.api.errors import send_error
from serve_app.api.keys_file import KeysFile
from serve_app.api.metrics import PATH as METRICS_PATH
from serve_app.api.web_page import PATH as PUBLIC_FOLDER
from serve_app.errors import InvalidKey, RateLimited, SpeechError
from serve_app.key_entries import Key, digest_of, parse
from serve_app.settings import AuthSettings

log = logging.getLogger("ray.serve")

PUBLIC_PATHS = frozenset({"/", "/health", "/ready", "/docs", "/openapi.json"})
"""Paths that need no key, beside those of the web page: their content is the same for every client, but for the details of
`/ready`."""

MINUTE_S = 60.0
"""Period of the rate limit, seconds."""


@dataclass(slots=True)
class _Usage:
    """Use of the keys of one name."""

    in_progress: int = 0
    """Requests in progress."""
    starts_s: deque[float] = field(default_factory=deque)
    """Start times of the last minute's requests, oldest first; seconds of the monotonic clock."""


class Keys:
    """The keys of one server, and the use of each name. All calls must come from one event loop.

    Raises OSError or ValueError if the keys file cannot be read.
    """

    def __init__(self, settings: AuthSettings, now_s: Callable[[], float] = time.monotonic) -> None:
        self._settings = settings
        self._now_s = now_s
        self._fixed = parse(key.get_secret_value() for key in settings.keys)
        self._file = KeysFile(settings.keys_file, now_s) if settings.keys_file else None
        self._metrics = parse([] if settings.metrics_key is None else [settings.metrics_key.get_secret_value()])
        self._usage: defaultdict[str, _Usage] = defaultdict(_Usage)

    @property
    def are_required(self) -> bool:
        """Whether the server has keys, or a file of keys, even an empty one; without any, it is open."""
        return bool(self._fixed) or self._file is not None

    def needs_key(self, path: str) -> bool:
        """Whether a request for that path needs a key."""
        if path == METRICS_PATH and self._metrics:
            return True
        return self.are_required and path not in PUBLIC_PATHS and not path.startswith(f"{PUBLIC_FOLDER}/")

    def find(self, authorization: str | None, path: str = "") -> str:
        """The name of the key in an `Authorization` header of a request for `path`; raises InvalidKey."""
        scheme, _, key = (authorization or "").partition(" ")
        # Starlette decodes header bytes as Latin-1.
        secret = key.strip().encode("latin-1") if scheme.lower() == "bearer" else b""
        return self._match(secret, self._metrics if path == METRICS_PATH else ())

    def accept(self, authorization: str | None) -> bool:
        """Whether a request with that header may see what is not public."""
        try:
            return not self.are_required or bool(self.find(authorization))
        except InvalidKey:
            return False

    def _match(self, secret: bytes, only: tuple[Key, ...] = ()) -> str:
        """`only`: the keys that are valid, if there are any; else all."""
        digest = digest_of(secret)
        # Always compare with every key, so that the time reveals nothing.
        matches = [key.name for key in only or self._all() if hmac.compare_digest(key.digest, digest)]
        if not matches:
            raise InvalidKey("A valid API key is needed: `Authorization: Bearer KEY`.")
        return matches[0]

    def _all(self) -> tuple[Key, ...]:
        return self._fixed + (self._file.keys if self._file else ())

    @contextmanager
    def stream(self, authorization: str | None, key: str | None = None) -> Iterator[None]:
        """Count a live stream as a request while it is open. `key`, from a message, takes precedence over the header.

        Raises InvalidKey or RateLimited.
        """
        if not self.are_required:
            yield
            return
        name = self._match(key.encode(errors="replace")) if key else self.find(authorization)
        log.info("stream with the key `%s`", name)
        with self.request(name):
            yield

    @contextmanager
    def request(self, name: str) -> Iterator[dict[str, str]]:
        """Count a request with a key of that name while it is in progress; raises RateLimited.

        Yields OpenAI's rate limit headers for the response.
        """
        usage, limit, now_s = self._usage[name], self._settings.max_requests_per_minute, self._now_s()
        while usage.starts_s and usage.starts_s[0] <= now_s - MINUTE_S:
            usage.starts_s.popleft()
        if self._settings.max_requests and usage.in_progress >= self._settings.max_requests:
            message = f"This key already has {self._settings.max_requests} requests in progress, which is its limit."
            raise RateLimited(message, retry_after_s=1)
        headers: dict[str, str] = {}
        if limit:
            if len(usage.starts_s) >= limit:
                wait_s = usage.starts_s[0] + MINUTE_S - now_s
                message = f"This key may send {limit} requests a minute."
                raise RateLimited(message, retry_after_s=max(1, round(wait_s + 0.5)))
            usage.starts_s.append(now_s)
            headers = {
                "x-ratelimit-limit-requests": str(limit),
                "x-ratelimit-remaining-requests": str(limit - len(usage.starts_s)),
                "x-ratelimit-reset-requests": f"{usage.starts_s[0] + MINUTE_S - now_s:.0f}s",
            }
        usage.in_progress += 1
        try:
            yield headers
        finally:
            usage.in_progress -= 1


class RequireKey:
    """ASGI middleware: HTTP requests to routes that are not public need a key, if the server has keys.

    WebSocket routes check the key themselves with `Keys.stream`, since it may come in the first message.
    """

    def __init__(self, app: ASGIApp, keys: Keys) -> None:
        self._app = app
        self._keys = keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] == "OPTIONS" or not self._keys.needs_key(route_path(scope)):
            await self._app(scope, receive, send)
            return
        try:
            name = self._keys.find(Headers(scope=scope).get("authorization"), route_path(scope))
            log.info("%s with the key `%s`", scope["method"], name)
            scope.setdefault("state", {})["key_name"] = name
            if scope["method"] != "POST":
                await self._app(scope, receive, send)
                return
            with self._keys.request(name) as headers:
                await self._app(scope, receive, _adding_headers(headers, send))
        except SpeechError as error:
            await send_error(error, scope, receive, send)


def _adding_headers(headers: dict[str, str], send: Send) -> Send:
    async def send_with_headers(message: Message) -> None:
        if message["type"] == "http.response.start":
            MutableHeaders(scope=message).update(headers)
        await send(message)

    return send_with_headers
