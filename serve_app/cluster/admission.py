"""Admission control of one ingress process: requests and streams at once, and windows in flight per job. Pure."""

import asyncio
from collections import Counter
from collections.abc import Callable, Iterator
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


class RequestPlace:
    """The place of one request among those at work."""

    def __init__(self, places: asyncio.Semaphore) -> None:
        self._places = places
        self._is_at_work = False

    async def begin_work(self) -> None:
        """To be called once the upload is complete: the request is at work from then on. It waits while the maximum is."""
        await self._places.acquire()
        self._is_at_work = True

    def end_work(self) -> None:
        """To be called where it only waits from then on. Otherwise it is at work until its end."""
        if self._is_at_work:
            self._is_at_work = False
            self._places.release()


class Admission:
    """Counters. Belongs to one event loop."""

    def __init__(self, max_requests: int, max_windows: int, streams: Places, waiting: Places) -> None:
        self._requests_at_work = asyncio.Semaphore(max_requests)
        self._max_windows = max_windows
        self._jobs = {False: 0, True: 0}
        """Numbers, by whether they are in the background."""
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
    def request(self) -> Iterator["RequestPlace"]:
        """Count a request while the block runs. Raises Overloaded if the maximum is at work, or ShuttingDown."""
        self.check_open()
        if self.is_full:
            raise Overloaded("The server has as many requests in progress as it accepts; try again in a few seconds.")
        place = RequestPlace(self._requests_at_work)
        self.requests += 1
        try:
            yield place
        finally:
            self.requests -= 1
            place.end_work()

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
    def job(self, *, is_background: bool = False) -> Iterator[None]:
        """Count a file that is being transcribed while the block runs; `is_background`: nobody waits for it."""
        self._jobs[is_background] += 1
        try:
            yield
        finally:
            self._jobs[is_background] -= 1

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
        """An equal share of the windows in flight for every job that is waited for, at least one. Those in the background count
        as one together."""
        return max(1, self._max_windows // max(1, self._jobs[False] + (self._jobs[True] > 0)))

    @property
    def windows_per_background_job(self) -> int:
        """An equal part of that share for each of those."""
        return max(1, self.windows_per_job // max(1, self._jobs[True]))
