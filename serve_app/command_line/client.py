"""HTTP client: uploads a recording, and follows the server-sent events until the transcript is there."""

import io
import json
import os
import time
from collections.abc import Callable, Mapping
from http import HTTPStatus
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self, TypeVar

import httpx2

from serve_app.command_line.recordings import Source

CONNECT_S = 10.0
"""Connect timeout, seconds."""

SILENCE_S = 600.0
"""Read timeout, seconds. The server sends something every 15 s once its response has begun; before, it may wait for a model."""

MAX_ATTEMPTS = 20
"""Maximum number of requests for one recording while the server is busy."""

MAX_WAIT_S = 600
"""Maximum wait before the next attempt, seconds, whatever `Retry-After` says."""

UNKNOWN_WAIT_S = 10
"""Wait if `Retry-After` is not a number of seconds, seconds."""

LOST_WAIT_S, MAX_LOST_WAIT_S = 1, 60
"""Wait after the first lost connection in a row, seconds; it doubles up to the maximum."""

GATEWAY_ERRORS = (HTTPStatus.BAD_GATEWAY, HTTPStatus.SERVICE_UNAVAILABLE, HTTPStatus.GATEWAY_TIMEOUT)

NOT_STARTED = b"/-/routes"
"""Part of the plain text with which Serve answers 404 until the application has started."""

Result = TypeVar("Result")


class Failure(Exception):
    """The recording has no transcript. The message is the reason, in one line."""


class Busy(Failure):
    """The server asks for a retry after `wait_s` seconds."""

    def __init__(self, message: str, wait_s: int) -> None:
        super().__init__(message)
        self.wait_s = wait_s


class Refused(Failure):
    """The server has answered with an error."""

    def __init__(self, message: str, status: int, code: str) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        """As OpenAI's error object has it; empty where the body is none."""


class Watcher(Protocol):
    """Receives the progress of one recording."""

    def sent(self, sent_bytes: int, total_bytes: int) -> None: ...

    def transcribed(self, audio_s: float, total_s: float | None) -> None: ...

    def refused(self, message: str, wait_s: int) -> None: ...


class Connection:
    """To a server. Thread-safe."""

    def __init__(self, url: str, api_key: str | None) -> None:
        self._url = url
        self._has_answered = False
        self._http = httpx2.Client(
            headers={b"Authorization": f"Bearer {api_key}".encode()} if api_key else {},
            timeout=httpx2.Timeout(SILENCE_S, connect=CONNECT_S, pool=None),
            # No keep-alive: the server would close an idle connection at about the time of the next attempt.
            limits=httpx2.Limits(max_connections=None, max_keepalive_connections=0),
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, _type: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None) -> None:
        self._http.close()

    def attempt(self, request: Callable[[], Result], watcher: Watcher, *, is_repeatable: bool = False) -> Result:
        """The result of `request`, which is called again while the server is busy. Raises Failure.

        `is_repeatable`: also after a lost connection, or where a proxy says that the server is gone, if it has answered before.
        """
        attempts = 1
        while True:
            wait_s = min(LOST_WAIT_S * 2 ** (attempts - 1), MAX_LOST_WAIT_S)
            may_repeat = is_repeatable and self._has_answered
            failure: Failure
            try:
                result = request()
                self._has_answered = True
                return result
            except Busy as busy:
                failure, wait_s = busy, busy.wait_s
            except Refused as refused:
                if not (may_repeat and refused.status in GATEWAY_ERRORS):
                    raise
                failure = refused
            except httpx2.HTTPError as error:
                failure = self._failure(error)
                if not may_repeat:
                    raise failure from error
            except OSError as error:
                raise Failure(f"cannot be read: {_cause(error)}") from error
            except (ValueError, LookupError, TypeError) as error:
                raise Failure(f"the response is not valid: {error!r}") from error
            if attempts == MAX_ATTEMPTS:
                raise Failure(f"{failure} (asked {MAX_ATTEMPTS} times)") from None
            attempts += 1
            watcher.refused(str(failure), wait_s)
            time.sleep(wait_s)

    def _failure(self, error: httpx2.HTTPError) -> Failure:
        if isinstance(error, httpx2.ConnectError | httpx2.ConnectTimeout):
            return Failure(f"{self.address} cannot be reached: {_cause(error)}")
        if isinstance(error, httpx2.TimeoutException):
            return Failure(f"the server sent nothing for {SILENCE_S:.0f} s")
        return Failure(f"the request failed: {_cause(error)}")

    @property
    def address(self) -> str:
        """For messages: without a password."""
        return str(httpx2.URL(self._url).copy_with(userinfo=b""))


class Client(Connection):
    """Thread-safe. `fields` are the form fields of every request besides the file."""

    def __init__(self, url: str, api_key: str | None, fields: Mapping[str, str | list[str]]) -> None:
        super().__init__(url, api_key)
        self._fields = {**fields, "stream": "true", "include[]": "progress"}

    def transcribe(self, source: Source, watcher: Watcher) -> str:
        """The transcript in the `response_format` of the fields, sent again while the server is busy. Raises Failure."""
        return self.attempt(lambda: self._request(source, watcher), watcher)

    def _request(self, source: Source, watcher: Watcher) -> str:
        url = f"{self._url}/v1/audio/transcriptions"
        with Upload(source, watcher.sent) as file:
            form: dict[str, Any] = {"data": self._fields, "files": {"file": (file_name(source), file)}}
            # A transcript of many hours is a large event.
            with self._http.sse(url, method="POST", max_event_size=None, **form) as events:
                if events.response.status_code != HTTPStatus.OK:
                    raise refusal(events.response)
                for event in events:
                    message: Any = event.json()
                    if event.event == "error":
                        raise Failure(_message(message))
                    match message["type"]:
                        case "transcript.progress":
                            watcher.transcribed(message["audio_s"], message.get("total_s"))
                        case "transcript.text.done":
                            return as_text(message["content"])
        raise Failure("the response ended before the transcript")


class Upload(io.FileIO):
    """A file that calls `on_read(read_bytes, total_bytes)` at every read."""

    def __init__(self, source: Source, on_read: Callable[[int, int], None]) -> None:
        super().__init__(source, closefd=isinstance(source, Path))
        self._on_read = on_read
        self._total_bytes = os.fstat(self.fileno()).st_size

    def read(self, size: int | None = -1, /) -> bytes:
        data: bytes = super().read(size)
        self._on_read(self.tell(), self._total_bytes)
        return data


def file_name(source: Source) -> str:
    """The name of a recording in the form."""
    # A name that is not UTF-8 cannot be sent unchanged.
    return "stdin" if isinstance(source, int) else os.fsencode(source.name).decode(errors="replace")


def refusal(response: httpx2.Response) -> Failure:
    """The failure for a response with an error status."""
    status, wait = response.status_code, response.headers.get("Retry-After")
    body = response.read()
    if status == HTTPStatus.NOT_FOUND and NOT_STARTED in body:
        return Busy("the server is still starting", UNKNOWN_WAIT_S)
    try:
        error = json.loads(body)
        message, code = _message(error), str(error["error"].get("code"))
    except (ValueError, LookupError, TypeError):
        message, code = f"HTTP {status} {response.reason_phrase}".rstrip(), ""
    if status in (HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE) and wait is not None:
        return Busy(message, min(int(wait[:9]), MAX_WAIT_S) if wait.isdecimal() else UNKNOWN_WAIT_S)
    return Refused(message, status, code)


def _message(body: Any) -> str:
    """The message in OpenAI's error object."""
    return one_line(body["error"]["message"])


def one_line(text: object) -> str:
    """The text without line breaks and control characters, safe for a terminal."""
    return " ".join("".join(sign if sign.isprintable() else " " for sign in str(text)).split())


def reason(error: Exception) -> str:
    """The reason of a failure, in one line; other errors are told in full."""
    return str(error) if isinstance(error, Failure) else repr(error)


def _cause(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


def as_text(content: Any) -> str:
    """A transcript as it is written: text, or a JSON value."""
    text = content if isinstance(content, str) else json.dumps(content, ensure_ascii=False, indent=2)
    return text if text.endswith("\n") else f"{text}\n"
