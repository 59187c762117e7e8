"""The store of jobs in SQL: `store.JobStore` for both databases. What differs between them is in `sqlite.py` and `postgres.py`.

PostgreSQL locks rows. Transactions that lock several take them in one order, so that none waits in a circle: clock, jobs,
counters and lanes, shares, deliveries.
"""

import secrets
from collections.abc import Callable, Collection, Sequence
from typing import TypeVar

from serve_app.errors import JobNotFound, JobStateConflict
from serve_app.jobs import sql_deliveries, sql_queue
from serve_app.jobs import sql_jobs as jobs
from serve_app.jobs.database import Database, Row, Transaction
from serve_app.jobs.model import (
    MAX_LOST_WORKERS,
    Checkpoint,
    CheckpointLost,
    Delivery,
    Job,
    JobError,
    JobState,
    JobStatus,
    Lease,
    NewJob,
    Outcome,
    OwnerLimits,
    Provenance,
    Swept,
)
from serve_app.jobs.sql_clock import now_of, tick
from serve_app.jobs.sql_rows import columns_of, delivery_of, job_of, provenance_of
from serve_app.jobs.store import IDEMPOTENT_S, NO_LIMITS

Result = TypeVar("Result")


class SqlStore:
    """See `store.JobStore`. `clock_s` is the time, seconds since 1970; None: the database's."""

    def __init__(self, database: Database, *, lease_s: float, clock_s: Callable[[], float | None]) -> None:
        self._database = database
        self._lease_s = lease_s
        self._clock_s = clock_s

    async def open(self) -> None:
        await self._database.read(lambda transaction: transaction.one("SELECT seen_s FROM clock"))

    async def close(self) -> None:
        await self._database.close()

    async def create(self, new: NewJob, limits: OwnerLimits = NO_LIMITS) -> tuple[Job, bool]:
        def work(transaction: Transaction, now_s: float) -> tuple[Job, bool]:
            # The lock on this row makes one creation wait for the other.
            counter = transaction.one("UPDATE counters SET last_number = last_number + 1 RETURNING last_number")
            if (earlier := jobs.same_request(transaction, new)) is not None:
                return earlier, False
            jobs.check_limits(transaction, new, limits)
            values = {
                **columns_of(new),
                "number": counter["last_number"],
                "state": JobState.QUEUED.value,
                "created_at_s": now_s,
                "idempotent_until_s": now_s + IDEMPOTENT_S if new.idempotency else None,
                "start_tag": sql_queue.enqueue(transaction, new),
                "cost": sql_queue.cost_of(new),
            }
            names = ", ".join(values)
            places = ", ".join(f":{name}" for name in values)
            return job_of(transaction.one(f"INSERT INTO jobs ({names}) VALUES ({places}) RETURNING *", **values)), True

        return await self._write(work)

    async def earlier(self, new: NewJob, limits: OwnerLimits = NO_LIMITS) -> Job | None:
        def work(transaction: Transaction) -> Job | None:
            earlier = jobs.same_request(transaction, new)
            if earlier is None:
                jobs.check_limits(transaction, new, limits)
            return earlier

        return await self._database.read(work)

    async def status(self, owner: str, job_id: str) -> JobStatus:
        def work(transaction: Transaction) -> JobStatus:
            row = jobs.owned(transaction, owner, job_id)
            deliveries = transaction.rows("SELECT * FROM deliveries WHERE job_id = :job_id", job_id=job_id)
            position = sql_queue.position_of(transaction, row) if row["state"] == JobState.QUEUED else None
            return JobStatus(job_of(row), position, tuple(map(delivery_of, deliveries)))

        return await self._database.read(work)

    async def get_many(self, job_ids: Collection[str]) -> dict[str, Job]:
        def work(transaction: Transaction) -> dict[str, Job]:
            rows: list[Row] = []
            ids = list(job_ids)
            for start in range(0, len(ids), 500):
                named = {f"id_{n}": job_id for n, job_id in enumerate(ids[start : start + 500])}
                places = ", ".join(f":{name}" for name in named)
                rows += transaction.rows(f"SELECT * FROM jobs WHERE job_id IN ({places})", **named)
            return {row["job_id"]: job_of(row) for row in rows}

        return await self._database.read(work)

    async def page(self, owner: str, *, state: JobState | None = None, before: int | None = None, limit: int = 20) -> list[Job]:
        condition = ("" if state is None else " AND state = :state") + ("" if before is None else " AND number < :before")
        rows = await self._database.read(
            lambda transaction: transaction.rows(
                f"SELECT * FROM jobs WHERE owner = :owner{condition} ORDER BY number DESC LIMIT :limit",
                owner=owner,
                state=state.value if state else None,
                before=before,
                limit=limit,
            )
        )
        return list(map(job_of, rows))

    async def cancel(self, owner: str, job_id: str) -> Job:
        def work(transaction: Transaction, now_s: float) -> Job:
            row = jobs.owned(transaction, owner, job_id, lock=True)
            if JobState(row["state"]).is_ended:
                raise JobStateConflict(f"The job `{job_id}` has ended already: it is {row['state']}.")
            return jobs.end(transaction, row, JobState.CANCELLED, now_s)

        return await self._write(work)

    async def forget(self, owner: str, job_id: str) -> None:
        def work(transaction: Transaction, now_s: float) -> None:
            row = jobs.owned(transaction, owner, job_id, lock=True)
            if not JobState(row["state"]).is_ended:
                raise JobStateConflict(f"The job `{job_id}` is {row['state']}: cancel it first.")
            jobs.delete(transaction, [job_id])

        await self._write(work)

    async def result(self, owner: str, job_id: str) -> bytes:
        def work(transaction: Transaction) -> bytes:
            state = jobs.owned(transaction, owner, job_id)["state"]
            if state != JobState.COMPLETED:
                raise JobStateConflict(f"The job `{job_id}` has no result: it is {state}.")
            return bytes(transaction.one("SELECT data FROM results WHERE job_id = :job_id", job_id=job_id)["data"])

        return await self._database.read(work)

    async def claim(self) -> tuple[Job, Lease] | None:
        def work(transaction: Transaction, now_s: float) -> tuple[Job, Lease] | None:
            job_id = sql_queue.take_next(transaction, now_s)
            if job_id is None:
                return None
            lease = Lease(job_id, secrets.token_hex(16))
            row = transaction.one(
                """UPDATE jobs SET state = 'running', lease = :token, lease_until_s = :until_s,
                       started_at_s = COALESCE(started_at_s, :now_s)
                   WHERE job_id = :job_id RETURNING *""",
                job_id=job_id,
                token=lease.token,
                until_s=now_s + self._lease_s,
                now_s=now_s,
            )
            return job_of(row), lease

        return await self._write(work, durable=False)

    async def resume(self, lease: Lease, provenance: Provenance) -> Checkpoint:
        def work(transaction: Transaction, now_s: float) -> Checkpoint:
            row = jobs.leased(transaction, lease)
            if provenance_of(row["provenance"]) == provenance:
                return jobs.checkpoint_of(transaction, row, 0)
            return jobs.checkpoint_of(transaction, jobs.begin_anew(transaction, row, provenance), 0)

        return await self._write(work)

    async def discard(self, lease: Lease) -> None:
        def work(transaction: Transaction, now_s: float) -> None:
            row = jobs.leased(transaction, lease)
            jobs.begin_anew(transaction, row, provenance_of(row["provenance"]))

        await self._write(work)

    async def save(
        self, lease: Lease, *, done_s: float, audio_s: float | None = None, first: int = 0, parts: Sequence[bytes] = ()
    ) -> None:
        def work(transaction: Transaction, now_s: float) -> None:
            known = jobs.leased(transaction, lease)["part_count"]
            if parts and first > known:
                raise CheckpointLost(f"parts {known} to {first - 1} of {lease.job_id} are missing")
            new = list(parts)[known - first :] if parts else []
            for number, data in enumerate(new, known):
                transaction.rows(
                    "INSERT INTO parts VALUES (:job_id, :number, :data)", job_id=lease.job_id, number=number, data=data
                )
            transaction.rows(
                """UPDATE jobs SET lease_until_s = :until_s, done_s = :done_s, audio_s = COALESCE(:audio_s, audio_s),
                       part_count = part_count + :new, lost_workers = CASE WHEN :new > 0 THEN 0 ELSE lost_workers END,
                       deferred_since_s = CASE WHEN :new > 0 THEN NULL ELSE deferred_since_s END
                   WHERE job_id = :job_id""",
                job_id=lease.job_id,
                until_s=now_s + self._lease_s,
                done_s=done_s,
                audio_s=audio_s,
                new=len(new),
            )

        await self._write(work, durable=False)

    async def checkpoint(self, job_id: str, first: int = 0) -> Checkpoint:
        def work(transaction: Transaction) -> Checkpoint:
            row = transaction.first("SELECT * FROM jobs WHERE job_id = :job_id", job_id=job_id)
            if row is None:
                raise JobNotFound.by_id(job_id)
            return jobs.checkpoint_of(transaction, row, first)

        return await self._database.read(work)

    async def finish(self, lease: Lease, outcome: Outcome) -> Job:
        def work(transaction: Transaction, now_s: float) -> Job:
            row = jobs.leased(transaction, lease)
            if isinstance(outcome, JobError):
                return jobs.end(transaction, row, JobState.FAILED, now_s, outcome)
            transaction.rows("INSERT INTO results VALUES (:job_id, :data)", job_id=lease.job_id, data=outcome.result)
            transaction.rows(
                "UPDATE jobs SET audio_s = :audio_s, done_s = :audio_s WHERE job_id = :job_id",
                job_id=lease.job_id,
                audio_s=outcome.audio_s,
            )
            return jobs.end(transaction, row, JobState.COMPLETED, now_s)

        return await self._write(work)

    async def hand_back(self, lease: Lease) -> None:
        def work(transaction: Transaction, now_s: float) -> None:
            jobs.requeue(transaction, jobs.leased(transaction, lease))

        await self._write(work)

    async def defer(self, lease: Lease, error: JobError, *, after_s: float, give_up_s: float, is_loss: bool) -> Job | None:
        def work(transaction: Transaction, now_s: float) -> Job | None:
            row = jobs.leased(transaction, lease)
            since_s = row["deferred_since_s"] or now_s
            lost_workers = row["lost_workers"] + is_loss
            if now_s - since_s >= give_up_s or lost_workers >= MAX_LOST_WORKERS:
                return jobs.end(transaction, row, JobState.FAILED, now_s, error)
            jobs.defer(transaction, row, now_s + after_s, since_s, lost_workers)
            return None

        return await self._write(work)

    async def identity(self) -> tuple[str, bool]:
        return await self._write(lambda transaction, _: (jobs.identity(transaction), jobs.are_active(transaction)))

    async def claim_delivery(self, busy_hosts: Collection[str] = ()) -> Delivery | None:
        return await self._write(lambda transaction, now_s: sql_deliveries.claim(transaction, now_s, self._lease_s, busy_hosts))

    async def settle_delivery(self, delivery: Delivery, *, error: str | None = None, retry_after_s: float | None = None) -> None:
        def work(transaction: Transaction, now_s: float) -> None:
            is_final = error is None or retry_after_s is None
            next_try_at_s = None if is_final else now_s + (retry_after_s or 0.0)
            sql_deliveries.settle(transaction, delivery, error, next_try_at_s)

        await self._write(work)

    async def sweep(self) -> Swept:
        def work(transaction: Transaction, now_s: float) -> Swept:
            tick(transaction, now_s)
            requeued, failed = jobs.end_leases(transaction, now_s)
            expired = jobs.delete_expired(transaction, now_s)
            jobs.forget_idempotency_keys(transaction, now_s)
            sql_queue.drop_idle_shares(transaction)
            return Swept(requeued, failed, expired)

        return await self._write(work)

    async def active_jobs(self) -> frozenset[str]:
        rows = await self._database.read(
            lambda transaction: transaction.rows(
                "SELECT job_id FROM jobs WHERE state = 'queued' UNION ALL SELECT job_id FROM jobs WHERE state = 'running'"
            )
        )
        return frozenset(row["job_id"] for row in rows)

    async def abandon(self, job_id: str, error: JobError) -> Job | None:
        def work(transaction: Transaction, now_s: float) -> Job | None:
            row = transaction.first(
                f"SELECT * FROM jobs WHERE job_id = :job_id AND state IN ('queued', 'running'){transaction.FOR_UPDATE}",
                job_id=job_id,
            )
            return None if row is None else jobs.end(transaction, row, JobState.FAILED, now_s, error)

        return await self._write(work)

    async def _write(self, work: Callable[[Transaction, float], Result], *, durable: bool = True) -> Result:
        clock_s = self._clock_s
        return await self._database.write(lambda transaction: work(transaction, now_of(transaction, clock_s())), durable=durable)
