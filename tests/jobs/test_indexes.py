"""With 100,000 jobs no call reads the whole table: the databases say so themselves."""

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, TypeVar

import pytest

from serve_app.jobs.database import Connection, Database, Row, Transaction
from serve_app.jobs.model import Completed, Idempotency, JobError, JobState, OwnerLimits
from serve_app.jobs.sql_store import SqlStore
from tests.jobs.conftest import Connect
from tests.jobs.stores import LEASE_S, PROVENANCE, WEEK_S, Clock, claimed, new_job

Result = TypeVar("Result")

JOBS = 100_000

FILL = """
WITH RECURSIVE numbers(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM numbers WHERE n < :jobs)
INSERT INTO jobs (job_id, number, owner, state, priority, request, ttl_s, upload_bytes, audio_s, created_at_s, expires_at_s,
    start_tag, cost)
SELECT 'filler_' || n, n, CASE WHEN n % 4 = 0 THEN 'bob' ELSE 'alice' END,
    CASE WHEN n % 2 = 0 THEN 'queued' WHEN n % 1000 = 5 THEN 'failed' ELSE 'completed' END, n % 3 / 2, '{}', 60, 1000, 10,
    :now_s + n, CASE WHEN n % 2 = 0 THEN NULL ELSE :now_s + n + 604800 END, n * 10, 10
FROM numbers
"""
"""Half of them queued, half of them ended, a hundred of those failed."""


class Explained(Transaction):
    """Notes how the database executes each statement."""

    def __init__(self, connection: Transaction, plans: list[str]) -> None:
        self._connection = connection
        self._plans = plans
        for name in ("FOR_UPDATE", "SKIP_LOCKED", "NOW"):
            setattr(self, name, getattr(connection, name))

    def rows(self, sql: str, /, **values: Any) -> list[Row]:
        explain = "EXPLAIN" if self.FOR_UPDATE else "EXPLAIN QUERY PLAN"
        for row in self._connection.rows(f"{explain} {sql}", **values):
            self._plans.append(row["QUERY PLAN"] if self.FOR_UPDATE else row["detail"])
        return self._connection.rows(sql, **values)


class ExplainedDatabase(Database):
    """Runs everything on one connection, and explains it."""

    def __init__(self, connection: Connection[Any]) -> None:
        self._connection = connection
        self.plans: list[str] = []

    async def write(self, work: Callable[[Transaction], Result], *, durable: bool = True) -> Result:
        return self._connection.transact(lambda transaction: work(Explained(transaction, self.plans)), durable=durable)

    async def read(self, work: Callable[[Transaction], Result]) -> Result:
        return await self.write(work)

    async def close(self) -> None:
        self._connection.close()


@pytest.fixture
async def database(connect: Connect, clock: Clock) -> AsyncIterator[ExplainedDatabase]:
    connection = connect(False)

    def fill(transaction: Transaction) -> None:
        transaction.rows(FILL, jobs=JOBS, now_s=clock.now_s)
        transaction.rows("UPDATE counters SET last_number = :jobs", jobs=JOBS)
        transaction.rows("UPDATE clock SET seen_s = :now_s", now_s=clock.now_s)
        if transaction.FOR_UPDATE:
            transaction.rows("ANALYZE jobs")

    connection.transact(fill, durable=False)
    database = ExplainedDatabase(connection)
    yield database
    await database.close()


async def test_no_call_reads_all_jobs(database: ExplainedDatabase, clock: Clock) -> None:
    store = SqlStore(database, lease_s=LEASE_S, clock_s=clock)

    async def whole_life() -> None:
        job, _ = await store.create(new_job(idempotency=Idempotency("key", "a"), webhook_url="https://example.com"))
        await store.create(new_job("carol"), OwnerLimits(jobs=10, upload_bytes=10**9, audio_s=1e6))
        await store.status("alice", job.job_id)
        await store.get_many([job.job_id, "filler_7"])
        await store.checkpoint(job.job_id)
        _, lease = await claimed(store)
        await store.resume(lease, PROVENANCE)
        await store.save(lease, done_s=1.0, parts=[b"x"])
        await store.hand_back(lease)
        _, lease = await claimed(store)
        await store.finish(lease, Completed(b"", 1.0))
        await store.cancel("alice", job.job_id)
        delivery = await store.claim_delivery()
        assert delivery is not None
        await store.settle_delivery(delivery)
        await store.forget("alice", job.job_id)
        await store.abandon("filler_8", JobError("upload_lost", ""))

    async def time_goes_on() -> None:
        clock.advance(30)
        await claimed(store)
        await store.sweep()

    async def pages() -> None:
        for state in (None, JobState.QUEUED, JobState.FAILED):
            first = await store.page("alice", state=state)
            await store.page("alice", state=state, before=first[-1].number)
        # Without it, the jobs of an owner are read until enough are in the rare state.
        assert any("jobs_by_state" in line for line in database.plans)

    async def a_week_is_over() -> None:
        clock.advance(WEEK_S)
        await database.write(lambda transaction: transaction.rows("UPDATE clock SET seen_s = :now_s", now_s=clock.now_s))
        # Those that had ended by now, and the two that ended here.
        assert len((await store.sweep()).expired) == 15 + 2

    for calls in (whole_life, pages, time_goes_on, a_week_is_over):
        await explained(calls, database.plans)


async def explained(calls: Callable[[], Awaitable[None]], plans: list[str]) -> None:
    """Fail if one of the calls reads a whole table, or sorts what an index has in order."""
    plans.clear()
    await calls()
    assert plans
    large = ("jobs", "parts", "results", "deliveries")
    for line in plans:
        words = line.split()
        assert not any(f"Seq Scan on {table}" in line for table in large), line
        assert not (words[0] == "SCAN" and words[1] in large), line
        assert "TEMP B-TREE" not in line, line
        assert "Sort Key" not in line, line
