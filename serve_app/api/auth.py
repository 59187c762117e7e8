"""Who may use the server: bearer keys on every route but those that are the same for everybody, and what one key may ask for."""

import hashlib
import hmac
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve_app.api.errors import answer
from serve_app.errors import InvalidKey, RateLimited, SpeechError
from serve_app.settings import AuthSettings

OPEN_PATHS = frozenset({"/", "/health", "/docs", "/openapi.json"})
OPEN_FOLDER = "/static/"
MINUTE_S = 60.0


@dataclass(slots=True)
class _Use:
    """What one key does: requests at work, and when those of the last minute began."""

    at_work: int = 0
    began_s: deque[float] = field(default_factory=deque)


class Keys:
    """The keys of one server and their use. Belongs to one event loop."""

    def __init__(self, settings: AuthSettings, now_s: Callable[[], float] = time.monotonic) -> None:
        self._settings = settings
        self._now_s = now_s
        self._uses = {_digest(key.get_secret_value().encode()): _Use() for key in settings.keys}

    @property
    def are_wanted(self) -> bool:
        return bool(self._uses)

    def find(self, authorization: str | None) -> bytes:
        """The digest of the key in an `Authorization` header; raises InvalidKey."""
        scheme, _, key = (authorization or "").partition(" ")
        # Header bytes reach us as Latin-1.
        return self._match(key.strip().encode("latin-1") if scheme.lower() == "bearer" else b"")

    def _match(self, key: bytes) -> bytes:
        digest = _digest(key)
        # Every key is compared, and digests are of one length: the time tells nothing.
        matches = [known for known in self._uses if hmac.compare_digest(known, digest)]
        if not matches:
            raise InvalidKey("A valid API key is needed: `Authorization: Bearer KEY`.")
        return matches[0]

    @contextmanager
    def stream(self, authorization: str | None, key: str | None = None) -> Iterator[None]:
        """A live stream of whoever has that header, or that key in a message. Raises InvalidKey or RateLimited."""
        if not self.are_wanted:
            yield
            return
        with self.request(self._match(key.encode(errors="replace")) if key else self.find(authorization)):
            yield

    @contextmanager
    def request(self, key: bytes) -> Iterator[dict[str, str]]:
        """A request of a key is at work; gives OpenAI's headers about its limits. Raises RateLimited."""
        use, limit, now_s = self._uses[key], self._settings.max_requests_per_minute, self._now_s()
        while use.began_s and use.began_s[0] <= now_s - MINUTE_S:
            use.began_s.popleft()
        if self._settings.max_requests and use.at_work >= self._settings.max_requests:
            raise RateLimited("This key has as many requests at work as it may have.", retry_after_s=1)
        headers: dict[str, str] = {}
        if limit:
            if len(use.began_s) >= limit:
                wait_s = use.began_s[0] + MINUTE_S - now_s
                raise RateLimited(f"This key may send {limit} requests a minute.", retry_after_s=max(1, round(wait_s + 0.5)))
            use.began_s.append(now_s)
            headers = {
                "x-ratelimit-limit-requests": str(limit),
                "x-ratelimit-remaining-requests": str(limit - len(use.began_s)),
                "x-ratelimit-reset-requests": f"{use.began_s[0] + MINUTE_S - now_s:.0f}s",
            }
        use.at_work += 1
        try:
            yield headers
        finally:
            use.at_work -= 1


class RequireKey:
    """ASGI middleware for HTTP. Without keys in the settings everything is open. WebSockets ask for the key themselves
    (`Keys.stream`): it may come in their first message."""

    def __init__(self, app: ASGIApp, keys: Keys) -> None:
        self._app = app
        self._keys = keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if not self._keys.are_wanted or scope["type"] != "http" or _is_open(scope):
            await self._app(scope, receive, send)
            return
        try:
            key = self._keys.find(Headers(scope=scope).get("authorization"))
            if scope["method"] != "POST":
                await self._app(scope, receive, send)
                return
            with self._keys.request(key) as headers:
                await self._app(scope, receive, _adding(headers, send))
        except SpeechError as error:
            await answer(error)(scope, receive, send)


def _is_open(scope: Scope) -> bool:
    return scope["method"] == "OPTIONS" or scope["path"] in OPEN_PATHS or scope["path"].startswith(OPEN_FOLDER)


def _adding(headers: dict[str, str], send: Send) -> Send:
    async def send_with_headers(message: Message) -> None:
        if message["type"] == "http.response.start":
            MutableHeaders(scope=message).update(headers)
        await send(message)

    return send_with_headers


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()
