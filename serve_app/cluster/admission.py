"""Admission control of one ingress process: requests and streams at once, and windows in flight per job. Pure."""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager

from serve_app.errors import Overloaded, ShuttingDown


class Places:
    """Places of one kind, limited in all and per client address. Belongs to one event loop.

    `what` names the kind in the plural, for the message to a client that is refused.
    """

    def __init__(self, max_taken: int, max_per_address: int, what: str = "connections") -> None:
        self._max_taken = max_taken
        self._max_per_address = max_per_address
        self._what = what
        self._by_address: Counter[str] = Counter()
        self.taken = 0
        """By all addresses."""

    @contextmanager
    def take(self, address: str) -> Iterator[None]:
        """Hold a place while the block runs. Raises Overloaded at either limit."""
        if self.taken >= self._max_taken:
            raise Overloaded(f"The server has as many {self._what} as it accepts; try again in a few seconds.")
        if self._by_address[address] >= self._max_per_address:
            raise Overloaded(f"Your address has as many {self._what} as the server accepts from one; try again in a few seconds.")
        self.taken += 1
        self._by_address[address] += 1
        try:
            yield
        finally:
            self.taken -= 1
            self._by_address[address] -= 1
            if not self._by_address[address]:
                del self._by_address[address]


class Admission:
    """Counters. Belongs to one event loop."""

    def __init__(self, max_requests: int, max_windows: int, streams: Places, waiting: Places) -> None:
        self._requests_at_work = asyncio.Semaphore(max_requests)
        self._max_windows = max_windows
        self._jobs = 0
        self.is_closed = False
        self.requests = 0
        """In progress, those that are still being uploaded included."""
        self.streams = streams
        """Open streams that have sent audio."""
        self.waiting = waiting
        """Connections that have not sent audio yet."""
        self.spooled_bytes = 0
        """Received bytes of the uploads in progress."""

    def close(self) -> None:
        """Refuse new requests and streams from now on."""
        self.is_closed = True

    @contextmanager
    def request(self) -> Iterator[Callable[[], Awaitable[None]]]:
        """Count a request while the block runs. Raises Overloaded if the maximum is at work, or ShuttingDown.

        Yields a function to call once the upload is complete: the request is at work from then on. It waits while the maximum is.
        """
        self.check_open()
        if self.is_full:
            raise Overloaded("The server has as many requests in progress as it accepts; try again in a few seconds.")
        is_at_work = False

        async def begin_work() -> None:
            nonlocal is_at_work
            await self._requests_at_work.acquire()
            is_at_work = True

        self.requests += 1
        try:
            yield begin_work
        finally:
            self.requests -= 1
            if is_at_work:
                self._requests_at_work.release()

    @property
    def is_full(self) -> bool:
        """Whether the maximum of requests is at work."""
        return self._requests_at_work.locked()

    @contextmanager
    def stream(self, address: str) -> Iterator[None]:
        """Count a stream while the block runs, from its first audio on. Raises Overloaded at a limit, or ShuttingDown."""
        self.check_open()
        with self.streams.take(address):
            yield

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

    @contextmanager
    def spool(self) -> Iterator[Callable[[int], None]]:
        """Count an upload while the block runs. Yields a function to call with the size of everything that is received, bytes."""
        received_bytes = 0

        def add(size_bytes: int) -> None:
            nonlocal received_bytes
            received_bytes += size_bytes
            self.spooled_bytes += size_bytes

        try:
            yield add
        finally:
            self.spooled_bytes -= received_bytes

    @property
    def windows_per_job(self) -> int:
        """An equal share of the windows in flight for every job, at least one."""
        return max(1, self._max_windows // max(1, self._jobs))
