"""Tells those who wait for jobs that they have changed, whichever process has changed them. All of them share one query."""

import asyncio
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing, suppress

from serve_app.jobs.model import Job
from serve_app.jobs.store import UNAVAILABLE, JobStore

POLL_S, MIN_POLL_S = 1.0, 0.1
"""How often the store is asked, seconds, while somebody waits: without news, and at most."""


class JobWatcher:
    """All calls must come from one event loop."""

    def __init__(self, store: JobStore) -> None:
        self._store = store
        self._waiting: dict[asyncio.Future[Job | None], Job] = {}
        """Who waits, and the job as it was seen last."""
        self._has_news = asyncio.Event()
        self._is_closed = False

    def wake(self) -> None:
        """A job may have changed."""
        self._has_news.set()

    async def run(self) -> None:
        """Until it is cancelled; then everybody's wait ends, and nobody waits before it runs again."""
        self._is_closed = False
        try:
            while True:
                self._has_news.clear()
                if self._waiting:
                    # Who comes meanwhile is told after the next query.
                    waiting = dict(self._waiting)
                    with suppress(*UNAVAILABLE):
                        self._tell(waiting, await self._store.get_many({job.job_id for job in waiting.values()}))
                with suppress(TimeoutError):
                    async with asyncio.timeout(POLL_S):
                        await self._has_news.wait()
                # However many jobs end: those that end in the meantime are seen by one query.
                await asyncio.sleep(MIN_POLL_S)
        except asyncio.CancelledError:
            self._is_closed = True
            self._tell(self._waiting, {})
            raise

    async def changes(self, job: Job) -> AsyncGenerator[Job, None]:
        """The job, then again after each change, the last time when it has ended. Ends early if the job is deleted, or when the
        server stops."""
        yield job
        while not job.state.is_ended and not self._is_closed:
            changed = await self._next(job)
            if changed is None:
                return
            job = changed
            yield job

    async def ended(self, job: Job, timeout_s: float) -> Job:
        """The job once it has ended, or as it is after that time, or when the server stops."""
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s), aclosing(self.changes(job)) as changes:
                async for changed in changes:
                    job = changed
        return job

    async def _next(self, job: Job) -> Job | None:
        changed: asyncio.Future[Job | None] = asyncio.get_running_loop().create_future()
        self._waiting[changed] = job
        try:
            return await changed
        finally:
            del self._waiting[changed]

    @staticmethod
    def _tell(waiting: Mapping[asyncio.Future[Job | None], Job], jobs: Mapping[str, Job]) -> None:
        for changed, seen in waiting.items():
            job = jobs.get(seen.job_id)
            if job != seen and not changed.done():
                changed.set_result(job)
