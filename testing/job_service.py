"""The jobs of a server for tests: the real store, uploads and worker in a folder, with the service of testing.fake_service."""

import asyncio
import socket
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.routing import Mount
from starlette.types import ASGIApp, Receive, Scope, Send

from serve_app.api import create_api
from serve_app.jobs.service import JobService
from serve_app.settings import JobSettings, LimitSettings
from serve_app.tasks import stop
from testing.fake_service import FakeService
from testing.fake_service import serving as serving_app


@asynccontextmanager
async def working(fake: FakeService) -> AsyncIterator[JobService]:
    """The jobs of a service whose settings have a folder for them; its worker runs meanwhile."""
    jobs = JobService.of(fake.service)
    running = asyncio.ensure_future(jobs.run())
    try:
        yield jobs
    finally:
        await stop(running)
        await jobs.store.close()


def uploads_in(folder: Path) -> list[str]:
    """Names of the uploads in a folder of jobs."""
    return sorted(path.name for path in (folder / "uploads").iterdir() if not path.name.startswith("."))


class Serving:
    """The API of a service and its jobs, served by a thread. It can be stopped and started again, on the same port."""

    def __init__(self, fake: FakeService, prefix: str) -> None:
        self._fake, self._prefix, self._port = fake, prefix, 0
        self.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}{self._prefix}/"

    def start(self) -> None:
        listening, is_started = socket.create_server(("127.0.0.1", self._port)), threading.Event()
        self._port = listening.getsockname()[1]
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run(listening, is_started)))
        self._thread.start()
        is_started.wait()

    def stop(self) -> None:
        """Close all connections; the jobs stay in their folder."""
        self._server.should_exit = self._server.force_exit = True
        self._thread.join()

    def resume(self) -> None:
        """Set the `hold` of the service."""
        self._loop.call_soon_threadsafe(self._fake.hold.set)

    async def _run(self, listening: socket.socket, is_started: threading.Event) -> None:
        self._loop, is_held = asyncio.get_running_loop(), not self._fake.hold.is_set()
        # An event belongs to the loop in which it is waited for.
        self._fake.hold = asyncio.Event()
        if not is_held:
            self._fake.hold.set()
        async with working(self._fake) as jobs:
            app = Starlette(routes=[Mount(self._prefix, create_api(self._fake.service, job_service=jobs))])
            self._server = uvicorn.Server(uvicorn.Config(app, log_level="critical", lifespan="off"))
            is_started.set()
            await self._server.serve(sockets=[listening])


@contextmanager
def serving(fake: FakeService, prefix: str = "") -> Iterator[Serving]:
    """Serve the API of a service and its jobs meanwhile, below a prefix."""
    served = Serving(fake, prefix)
    try:
        yield served
    finally:
        served.stop()


@dataclass
class JobServer:
    """A running server."""

    url: str
    fake: FakeService
    loop: asyncio.AbstractEventLoop

    def shut_down(self) -> None:
        """Hand the jobs back and end the answers that follow them, as a server that stops does."""
        self.loop.call_soon_threadsafe(self.fake.service.admission.close)

    def release(self) -> None:
        """Let windows go on that wait for `fake.hold`."""
        self.loop.call_soon_threadsafe(self.fake.hold.set)


@contextmanager
def serving_jobs(
    folder: Path, *, around: Callable[[ASGIApp], ASGIApp] = lambda app: app, port: int = 0, **settings: Any
) -> Iterator[JobServer]:
    """Run the API with jobs in a thread. The folder is that of the jobs; `around` wraps the application."""
    jobs = JobSettings(**{"directory": folder} | settings.pop("jobs", {}))
    fake = FakeService(jobs=jobs, **{"limits": LimitSettings()} | settings)
    app: ASGIApp | None = None

    async def with_lifespan(scope: Scope, receive: Receive, send: Send) -> None:
        nonlocal app
        if scope["type"] != "lifespan":
            assert app is not None
            await app(scope, receive, send)
            return
        await receive()
        fake.loop = asyncio.get_running_loop()
        async with working(fake) as service:
            app = around(create_api(fake.service, job_service=service))
            await send({"type": "lifespan.startup.complete"})
            await receive()
        await send({"type": "lifespan.shutdown.complete"})

    with serving_app(with_lifespan, lifespan="on", port=port) as url:
        assert fake.loop is not None
        yield JobServer(url, fake, fake.loop)
