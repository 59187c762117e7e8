"""Admission control of one ingress process: requests and streams at once, and windows in flight per job. Pure."""

from collections.abc import Iterator
from contextlib import contextmanager

from serve_app.errors import Overloaded, ShuttingDown


class Admission:
    """Counters. Belongs to one event loop."""

    def __init__(self, max_requests: int, max_windows: int, max_streams: int) -> None:
        self._max_requests = max_requests
        self._max_streams = max_streams
        self._max_windows = max_windows
        self._jobs = 0
        self.is_closed = False
        self.requests = 0
        """In progress, those that are still being uploaded included."""
        self.streams = 0
        """Open live streams."""

    def close(self) -> None:
        """Refuse new requests and streams from now on."""
        self.is_closed = True

    @contextmanager
    def request(self) -> Iterator[None]:
        """Count a request while the block runs. Raises Overloaded at the limit, or ShuttingDown."""
        self.check_open()
        if self.requests >= self._max_requests:
            raise Overloaded("The server has as many requests in progress as it accepts; try again in a few seconds.")
        self.requests += 1
        try:
            yield
        finally:
            self.requests -= 1

    @contextmanager
    def stream(self) -> Iterator[None]:
        """Count a live stream while the block runs. Raises Overloaded at the limit, or ShuttingDown."""
        self.check_open()
        if self.streams >= self._max_streams:
            raise Overloaded("The server has as many streams open as it accepts; try again later.")
        self.streams += 1
        try:
            yield
        finally:
            self.streams -= 1

    def check_open(self) -> None:
        """Raises ShuttingDown once closed."""
        if self.is_closed:
            raise ShuttingDown("The server is shutting down; try again later, or another server.")

    @contextmanager
    def job(self) -> Iterator[None]:
        """Count a file that is being transcribed while the block runs."""
        self._jobs += 1
        try:
            yield
        finally:
            self._jobs -= 1

    @property
    def windows_per_job(self) -> int:
        """An equal share of the windows in flight for every job, at least one."""
        return max(1, self._max_windows // max(1, self._jobs))
