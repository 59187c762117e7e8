"""Admission control of one ingress process: requests and streams at once, and windows in flight per job. Pure."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from serve_app.errors import Overloaded, ShuttingDown


class Admission:
    """Counters. Belongs to one event loop."""

    def __init__(self, max_requests: int, max_windows: int, max_streams: int, waiting: "Places") -> None:
        self._max_requests = max_requests
        self._max_streams = max_streams
        self._max_windows = max_windows
        self._jobs = 0
        self.is_closed = False
        self.requests = 0
        """In progress, those that are still being uploaded included."""
        self.streams = 0
        """Open streams that have sent audio."""
        self.waiting = waiting
        """Connections that have not sent audio yet."""

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
        """Count a stream while the block runs, from its first audio on. Raises Overloaded at the limit, or ShuttingDown."""
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


class Places:
    """Places of one kind, limited in all and per client address."""

    def __init__(self, max_taken: int, max_per_address: int) -> None:
        self._max_taken = max_taken
        self._max_per_address = max_per_address
        self._by_address: Counter[str] = Counter()

    @property
    def taken(self) -> int:
        return self._by_address.total()

    @contextmanager
    def take(self, address: str) -> Iterator[None]:
        """Hold a place while the block runs. Raises Overloaded at either limit."""
        if self.taken >= self._max_taken:
            raise Overloaded("The server has as many connections open as it accepts; try again later.")
        if self._by_address[address] >= self._max_per_address:
            raise Overloaded("Your address has as many connections open as the server accepts from one; try again later.")
        self._by_address[address] += 1
        try:
            yield
        finally:
            self._by_address[address] -= 1
            if not self._by_address[address]:
                del self._by_address[address]
