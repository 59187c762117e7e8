"""The jobs of a server for tests: the real store, uploads and worker in a folder, with the service of testing.fake_service."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from serve_app.jobs.service import JobService
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
