"""Requests to an ASGI application whose bodies tests send piece by piece, what they leave behind, and the CPU time that they cost
the event loop."""

import asyncio
import gc
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import psutil
from httpx2 import Response

from testing.fake_service import FakeService
from testing.server import open_files

FORM = {"content-type": "multipart/form-data; boundary=x"}
"""Headers of a form, for `FORM_HEAD`."""

FORM_HEAD = b'--x\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'
FORM_TAIL = b"\r\n--x--\r\n"


WAIT_S = 20.0
"""What a test waits for comes much sooner, seconds."""


class OpenRequest:
    """A request in progress."""

    def __init__(
        self, app: Any, path: str, headers: dict[str, str], address: str = "192.0.2.1", *, method: str = "POST", query: str = ""
    ) -> None:
        self._received: asyncio.Queue[dict[str, Any] | Exception] = asyncio.Queue()
        self.sent: list[Any] = []
        """ASGI messages of the response so far."""
        scope = {"type": "http", "method": method, "path": path, "query_string": query.encode(), "client": (address, 50_000)}
        scope |= {"headers": [(name.encode(), value.encode()) for name, value in headers.items()]}
        self.task: asyncio.Task[None] = asyncio.create_task(app(scope, self._receive, self._send))

    def send(self, body: bytes, *, more_body: bool = True) -> None:
        """The next piece of the body."""
        self._received.put_nowait({"type": "http.request", "body": body, "more_body": more_body})

    async def response(self) -> Response:
        """The whole response."""
        await self.task
        head, *bodies = self.sent
        headers = [(name.decode(), value.decode()) for name, value in head["headers"]]
        return Response(head["status"], headers=headers, content=b"".join(body["body"] for body in bodies))

    def disconnect(self) -> None:
        """The connection is lost, without Serve noticing."""
        self._received.put_nowait({"type": "http.disconnect"})

    def fail(self) -> None:
        """Serve has cancelled its own call to the proxy: `receive` raises an exception, and then nothing comes."""
        self._received.put_nowait(LookupError("The task was cancelled."))

    async def leave(self) -> None:
        """The client is gone: Serve cancels the task of the request."""
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)

    async def _receive(self) -> dict[str, Any]:
        message = await self._received.get()
        if isinstance(message, Exception):
            raise message
        return message

    async def _send(self, message: Any) -> None:
        self.sent.append(message)


async def until(holds: Callable[[], bool]) -> None:
    """Wait until a condition holds. Raises TimeoutError after WAIT_S."""
    async with asyncio.timeout(WAIT_S):
        while True:
            if holds():
                return
            await asyncio.sleep(0.01)


def jobs(server: FakeService) -> int:
    """How many files are being transcribed: a few at most."""
    admission = server.service.admission
    with admission.job():
        return server.service.settings.limits.max_windows_in_flight // admission.windows_per_job - 1


@asynccontextmanager
async def cleaned_up(server: FakeService) -> AsyncIterator[None]:
    """Asserts that nothing is left of what the block began, not even a generator that the garbage collector has to close: those
    that depend on each other it closes side by side, which fails."""
    process = psutil.Process()
    files, tasks_before = open_files(process), asyncio.all_tasks()
    generators = list[str]()
    close: Any = sys.get_asyncgen_hooks().finalizer

    def note(generator: Any) -> None:
        generators.append(generator.__qualname__)
        close(generator)

    sys.set_asyncgen_hooks(finalizer=note)
    with garbage_of_its_own():
        yield
        async with asyncio.timeout(WAIT_S):
            while tasks := asyncio.all_tasks() - tasks_before:
                await asyncio.wait(tasks)
        gc.collect()
    sys.set_asyncgen_hooks(finalizer=close)
    assert not generators
    admission = server.service.admission
    assert open_files(process) <= files
    assert admission.requests == admission.spooled_bytes == 0
    assert admission.windows_per_job == server.service.settings.limits.max_windows_in_flight
    assert jobs(server) == 0


@contextmanager
def garbage_of_its_own() -> Iterator[None]:
    """Keep the garbage collector, in the block, from what other tests have left: looking at it takes longer than most blocks."""
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


class LoopTime:
    """CPU time that callbacks take on the event loop."""

    longest_s = 0.0
    """Of the longest callback, seconds. Work of other threads does not count."""

    @contextmanager
    def measured(self) -> Iterator[None]:
        """Measure while the block runs."""
        run = asyncio.Handle._run

        def timed(handle: asyncio.Handle) -> None:
            began_s = time.thread_time()
            run(handle)
            self.longest_s = max(self.longest_s, time.thread_time() - began_s)

        asyncio.Handle._run = timed  # type: ignore[method-assign, assignment]
        try:
            yield
        finally:
            asyncio.Handle._run = run  # type: ignore[method-assign]
