"""What one ingress process takes on at once: how many requests, and how many windows each of them may have with the models."""

from collections.abc import Iterator
from contextlib import contextmanager

from serve_app.errors import Overloaded, ShuttingDown


class Admission:
    """Counts; belongs to one event loop."""

    def __init__(self, max_requests: int, max_windows: int, max_streams: int) -> None:
        self._max_requests = max_requests
        self._max_streams = max_streams
        self._max_windows = max_windows
        self._jobs = 0
        self.is_closed = False
        self.requests = 0
        """At work now."""
        self.streams = 0
        """Live ones, open now."""

    def close(self) -> None:
        """Take on nothing more."""
        self.is_closed = True

    @contextmanager
    def request(self) -> Iterator[None]:
        """A request is at work, its upload included. Raises Overloaded when there are as many as may be, or ShuttingDown."""
        self.check_open()
        if self.requests >= self._max_requests:
            raise Overloaded("The server has as many requests as it takes at once; try again in a few seconds.")
        self.requests += 1
        try:
            yield
        finally:
            self.requests -= 1

    @contextmanager
    def stream(self) -> Iterator[None]:
        """A live stream is open. Raises Overloaded when there are as many as may be, or ShuttingDown."""
        self.check_open()
        if self.streams >= self._max_streams:
            raise Overloaded("The server has as many streams as it takes at once; try again later.")
        self.streams += 1
        try:
            yield
        finally:
            self.streams -= 1

    def check_open(self) -> None:
        """Raises ShuttingDown once it is closed."""
        if self.is_closed:
            raise ShuttingDown("The server is being shut down; try again in a while, or another one.")

    @contextmanager
    def job(self) -> Iterator[None]:
        """A recording is being transcribed."""
        self._jobs += 1
        try:
            yield
        finally:
            self._jobs -= 1

    @property
    def windows_per_job(self) -> int:
        """An equal share of the windows for every job that is at work now, at least one."""
        return max(1, self._max_windows // max(1, self._jobs))
