"""Steps of transactions on single jobs: find and lock, check, end, queue again, delete."""

from collections.abc import Sequence

from serve_app.errors import IdempotencyConflict, JobNotFound, RateLimited
from serve_app.jobs import sql_deliveries, sql_queue
from serve_app.jobs.database import Row, Transaction
from serve_app.jobs.model import (
    MAX_LOST_WORKERS,
    Checkpoint,
    Job,
    JobError,
    JobState,
    Lease,
    LeaseLost,
    NewJob,
    OwnerLimits,
    Provenance,
    new_id,
)
from serve_app.jobs.sql_rows import job_of, provenance_of, provenance_text

FULL_RETRY_AFTER_S = 60
"""When an owner at a limit may try again, seconds."""

MAX_EXPIRED = 1000
"""Jobs that one sweep deletes at most, so that others do not wait for it."""

WORKER_LOST = JobError("worker_lost", f"{MAX_LOST_WORKERS} workers in a row died at the same position of this job.")


def owned(transaction: Transaction, owner: str, job_id: str, *, lock: bool = False) -> Row:
    """The row of an owner's job. Raises JobNotFound."""
    locking = transaction.FOR_UPDATE if lock else ""
    row = transaction.first(f"SELECT * FROM jobs WHERE job_id = :job_id AND owner = :owner{locking}", job_id=job_id, owner=owner)
    if row is None:
        raise JobNotFound.by_id(job_id)
    return row


def leased(transaction: Transaction, lease: Lease) -> Row:
    """The locked row of the job of a lease. Raises LeaseLost."""
    row = transaction.first(
        f"SELECT * FROM jobs WHERE job_id = :job_id AND lease = :token AND state = 'running'{transaction.FOR_UPDATE}",
        job_id=lease.job_id,
        token=lease.token,
    )
    if row is None:
        raise LeaseLost(lease.job_id)
    return row


def same_request(transaction: Transaction, new: NewJob) -> Job | None:
    """The job that was made with the same idempotency key. Raises IdempotencyConflict if that was another request."""
    if new.idempotency is None:
        return None
    row = transaction.first(
        "SELECT * FROM jobs WHERE owner = :owner AND idempotency_key = :key", owner=new.owner, key=new.idempotency.key
    )
    if row is not None and row["idempotency_digest"] != new.idempotency.digest:
        raise IdempotencyConflict("Another request had the same `Idempotency-Key`.")
    return None if row is None else job_of(row)


def check_limits(transaction: Transaction, new: NewJob, limits: OwnerLimits) -> None:
    """Raise RateLimited if the owner would have more than it may."""
    if limits == OwnerLimits():
        return
    active = transaction.one(
        """SELECT COUNT(*) AS jobs, COALESCE(SUM(upload_bytes), 0) AS upload_bytes, COALESCE(SUM(audio_s), 0) AS audio_s
           FROM jobs WHERE owner = :owner AND state IN ('queued', 'running')""",
        owner=new.owner,
    )
    checks = (
        (active["jobs"] + 1, limits.jobs, "{:.0f} jobs"),
        (int(active["upload_bytes"]) + new.upload_bytes, limits.upload_bytes, "jobs with uploads of {:.0f} bytes"),
        (active["audio_s"] + (new.audio_s or 0.0), limits.audio_s, "jobs with {:.0f} s of audio"),
    )
    for needed, limit, what in checks:
        if limit is not None and needed > limit:
            message = f"This key may have {what.format(limit)} queued and running."
            raise RateLimited(message, retry_after_s=FULL_RETRY_AFTER_S)


def checkpoint_of(transaction: Transaction, row: Row, first: int) -> Checkpoint:
    """The checkpoint of a job, from a part on."""
    parts = transaction.rows(
        "SELECT data FROM parts WHERE job_id = :job_id AND number >= :first ORDER BY number", job_id=row["job_id"], first=first
    )
    return Checkpoint(row["generation"], provenance_of(row["provenance"]), tuple(bytes(part["data"]) for part in parts), first)


def begin_anew(transaction: Transaction, row: Row, provenance: Provenance | None) -> Row:
    """Discard the checkpoint of a job whose row is locked; return its new row."""
    transaction.rows("DELETE FROM parts WHERE job_id = :job_id", job_id=row["job_id"])
    return transaction.one(
        """UPDATE jobs SET provenance = :provenance, generation = generation + 1, part_count = 0, done_s = 0
           WHERE job_id = :job_id RETURNING *""",
        job_id=row["job_id"],
        provenance=None if provenance is None else provenance_text(provenance),
    )


def end(transaction: Transaction, row: Row, state: JobState, now_s: float, error: JobError | None = None) -> Job:
    """End a job whose row is locked, and queue its webhook message."""
    if row["state"] == JobState.QUEUED:
        sql_queue.give_back(transaction, row)
    ended = transaction.one(
        """UPDATE jobs SET state = :state, ended_at_s = :now_s, expires_at_s = :now_s + ttl_s, lease = NULL, lease_until_s = NULL,
               error_code = :code, error_message = :message
           WHERE job_id = :job_id RETURNING *""",
        job_id=row["job_id"],
        state=state.value,
        now_s=now_s,
        code=error.code if error else None,
        message=error.message if error else None,
    )
    transaction.rows("DELETE FROM parts WHERE job_id = :job_id", job_id=row["job_id"])
    if row["webhook_url"] is not None:
        sql_deliveries.add(transaction, ended)
    return job_of(ended)


def requeue(transaction: Transaction, row: Row) -> None:
    """Put a running job back to its old place in the queue."""
    transaction.rows(
        "UPDATE jobs SET state = 'queued', lease = NULL, lease_until_s = NULL WHERE job_id = :job_id", job_id=row["job_id"]
    )


def defer(transaction: Transaction, row: Row, until_s: float, since_s: float, lost_workers: int) -> None:
    """Take the lease of a running job away, and have `end_leases` queue it."""
    transaction.rows(
        """UPDATE jobs SET lease = NULL, lease_until_s = :until_s, deferred_since_s = :since_s, lost_workers = :lost_workers
           WHERE job_id = :job_id""",
        job_id=row["job_id"],
        until_s=until_s,
        since_s=since_s,
        lost_workers=lost_workers,
    )


def identity(transaction: Transaction) -> str:
    """The id of the store, which is made if need be."""
    # The lock on this row makes one process wait for the other.
    transaction.rows("UPDATE counters SET last_number = last_number")
    known = transaction.first("SELECT id FROM identity")
    return str((known or transaction.one("INSERT INTO identity VALUES (:id) RETURNING id", id=new_id("store")))["id"])


def are_active(transaction: Transaction) -> bool:
    """Whether there are jobs that are queued or running."""
    return any(transaction.first(f"SELECT 1 AS one FROM jobs WHERE state = '{state}' LIMIT 1") for state in ("queued", "running"))


def delete(transaction: Transaction, job_ids: Sequence[str]) -> None:
    """Delete jobs with all that belongs to them, but for webhook messages that are not settled."""
    for job_id in job_ids:
        transaction.rows("DELETE FROM deliveries WHERE job_id = :job_id AND next_try_at_s IS NULL", job_id=job_id)
        transaction.rows("DELETE FROM jobs WHERE job_id = :job_id", job_id=job_id)


def end_leases(transaction: Transaction, now_s: float) -> tuple[tuple[str, ...], tuple[Job, ...]]:
    """Take their jobs from workers that did not renew the lease; return the ids of those queued again, and those that failed.

    A job without a lease is one that was deferred: no worker is lost with it.
    """
    requeued: list[str] = []
    failed: list[Job] = []
    for row in transaction.rows(
        f"SELECT * FROM jobs WHERE state = 'running' AND lease_until_s <= :now_s{transaction.SKIP_LOCKED}", now_s=now_s
    ):
        lost_workers = row["lost_workers"] + (row["lease"] is not None)
        transaction.rows("UPDATE jobs SET lost_workers = :count WHERE job_id = :job_id", count=lost_workers, job_id=row["job_id"])
        if lost_workers < MAX_LOST_WORKERS:
            requeue(transaction, row)
            requeued.append(row["job_id"])
        else:
            failed.append(end(transaction, row, JobState.FAILED, now_s, WORKER_LOST))
    return tuple(requeued), tuple(failed)


def delete_expired(transaction: Transaction, now_s: float) -> tuple[str, ...]:
    """Delete jobs that were kept for their time; return their ids."""
    expired = transaction.rows(
        f"SELECT job_id FROM jobs WHERE expires_at_s <= :now_s ORDER BY expires_at_s LIMIT :most{transaction.SKIP_LOCKED}",
        now_s=now_s,
        most=MAX_EXPIRED,
    )
    delete(transaction, [row["job_id"] for row in expired])
    return tuple(row["job_id"] for row in expired)


def forget_idempotency_keys(transaction: Transaction, now_s: float) -> None:
    """Free the keys that were honoured for their time."""
    transaction.rows(
        """UPDATE jobs SET idempotency_key = NULL, idempotency_digest = NULL, idempotent_until_s = NULL
           WHERE idempotent_until_s <= :now_s""",
        now_s=now_s,
    )
