"""The jobs of a server for tests: the real store, uploads and worker in a folder, with the service of testing.fake_service."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

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
