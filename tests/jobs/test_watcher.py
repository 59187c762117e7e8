"""Those who wait for jobs, on a real store."""

import asyncio
from collections.abc import Collection

from serve_app.jobs.model import Job, JobState
from serve_app.jobs.sql_store import SqlStore
from serve_app.jobs.watcher import JobWatcher
from serve_app.tasks import stop
from tests.jobs.stores import queued


async def test_who_comes_during_a_query_is_not_told_that_the_job_is_gone(store: SqlStore) -> None:
    early, late = [(await store.status("alice", await queued(store))).job for _ in range(2)]
    is_asked, may_answer, get_many = asyncio.Event(), asyncio.Event(), store.get_many

    async def slow(job_ids: Collection[str]) -> dict[str, Job]:
        found = await get_many(job_ids)
        is_asked.set()
        await may_answer.wait()
        return found

    store.get_many = slow  # type: ignore[method-assign]
    watcher = JobWatcher(store)
    first = asyncio.ensure_future(watcher.ended(early, 60))
    await asyncio.sleep(0)
    running = asyncio.ensure_future(watcher.run())
    await is_asked.wait()
    second = asyncio.ensure_future(watcher.ended(late, 60))
    await asyncio.sleep(0)
    may_answer.set()
    for job in (early, late):
        await store.cancel("alice", job.job_id)
        watcher.wake()
    assert [job.state for job in await asyncio.gather(first, second)] == [JobState.CANCELLED, JobState.CANCELLED]
    await stop(running)
