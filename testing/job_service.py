"""The jobs of a server for tests: the real store, uploads and worker in a folder, with the service of testing.fake_service."""

import asyncio
import socket
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.routing import Mount
from starlette.types import ASGIApp

from serve_app.api import create_api
from serve_app.jobs.service import JobService
from serve_app.settings import JobSettings, LimitSettings
from serve_app.tasks import stop
from testing.fake_service import FakeService


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


class JobServer:
    """The API of a service and its jobs, served by a thread. It can be stopped and started again, on the same port."""

    def __init__(self, fake: FakeService, prefix: str, around: Callable[[ASGIApp], ASGIApp], port: int) -> None:
        self.fake = fake
        self._prefix, self._around, self._port = prefix, around, port
        self.start()

    @property
    def url(self) -> str:
        """Without a slash at its end."""
        return f"http://127.0.0.1:{self._port}{self._prefix}"

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

    def shut_down(self) -> None:
        """Hand the jobs back and end the answers that follow them, as a server that stops does."""
        self._loop.call_soon_threadsafe(self.fake.service.admission.close)

    def resume(self) -> None:
        """Let windows go on that wait for the `hold` of the service."""
        self._loop.call_soon_threadsafe(self.fake.hold.set)

    async def _run(self, listening: socket.socket, is_started: threading.Event) -> None:
        self._loop, is_held = asyncio.get_running_loop(), not self.fake.hold.is_set()
        # An event belongs to the loop in which it is waited for.
        self.fake.hold = asyncio.Event()
        if not is_held:
            self.fake.hold.set()
        async with working(self.fake) as jobs:
            api = self._around(create_api(self.fake.service, job_service=jobs))
            app = Starlette(routes=[Mount(self._prefix, api)])
            config = uvicorn.Config(app, log_level="critical", ws="websockets-sansio", lifespan="off")
            self._server = uvicorn.Server(config)
            is_started.set()
            await self._server.serve(sockets=[listening])


@contextmanager
def serving(
    fake: FakeService, prefix: str = "", *, around: Callable[[ASGIApp], ASGIApp] = lambda app: app, port: int = 0
) -> Iterator[JobServer]:
    """Serve the API of a service and its jobs meanwhile, below a prefix. `around` wraps the application; port 0: any."""
    served = JobServer(fake, prefix, around, port)
    try:
        yield served
    finally:
        served.stop()


def fake_with_jobs(folder: Path, **settings: Any) -> FakeService:
    """A service whose jobs are in that folder, with limits that do not matter. `settings` replace others."""
    jobs = JobSettings(**{"directory": folder} | settings.pop("jobs", {}))
    return FakeService(jobs=jobs, **{"limits": LimitSettings()} | settings)
