"""The interface of the store of jobs. Nothing else knows SQL.

Every method is one transaction: all of it happens, or nothing. What it promises is on disk before it returns, even if the power
fails, with two exceptions that cost work but no job: `claim` and `save` may be undone by a power failure, not by the death of a
process.

Any method may raise StoreUnavailable: the store is locked, gone or broken, and the transaction may have happened if the
connection broke while it was being committed. The same call works again as soon as the store does; nothing has to be opened
anew. Writing methods raise StorageFull where there is no space. A cancelled call may happen nevertheless.

**Leases.** `claim` gives a worker a lease for `lease_s`, and each `save` renews it. A lease that was not renewed ends with the
next `sweep`, and the job is queued again. From then on `resume`, `save`, `finish`, `hand_back` and `defer` of the old worker
raise LeaseLost: two workers may decode the same audio, but only one can write. The same happens to a worker whose job was
cancelled.

**Time.** Only `sweep` and `claim_delivery` compare points in time, and every process of a store has the same clock: that of the
node (SQLite) or of the database (PostgreSQL). If that clock jumps by more than `MAX_STEP_S`, or stands still because nothing
runs, all points in time at which something ends jump with it. So nothing expires that has not had its time.
"""

from collections.abc import Collection, Sequence
from typing import Protocol

from serve_app.errors import StorageFull, StoreUnavailable
from serve_app.jobs.model import (
    Checkpoint,
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

UNAVAILABLE = (StoreUnavailable, StorageFull)
"""What any method may raise, and what works again by itself."""

NO_LIMITS = OwnerLimits()

IDEMPOTENT_S = 86_400.0
"""How long an idempotency key is honoured at least, seconds."""

MAX_POSITION = 10_000
"""Queue positions are counted up to this one, so that a long queue costs nothing."""

MAX_STEP_S = 300.0
"""The time between two writing calls may be so long before it counts as a jump of the clock, seconds; `sweep` every half minute
or so."""


class JobStore(Protocol):
    """The jobs, their checkpoints and results, and the webhook messages that are to be delivered."""

    async def open(self) -> None:
        """Connect and bring the schema up to date. The other methods do so too when they are called first; this one is for
        finding out at start. Raises IncompatibleStore if the database is of a newer version of the server."""

    async def close(self) -> None:
        """Wait for calls in progress, then disconnect."""

    # For the API

    async def create(self, new: NewJob, limits: OwnerLimits = NO_LIMITS) -> tuple[Job, bool]:
        """Queue a job. Returns it and True; or, if the owner has used the idempotency key for the same request before, that job
        and False. Of calls at the same time with the same key, one creates a job.

        Raises IdempotencyConflict if the key was used for another request, RateLimited if a limit of the owner is reached; calls
        at the same time cannot pass a limit together. A key is forgotten with its job.
        """

    async def earlier(self, new: NewJob, limits: OwnerLimits = NO_LIMITS) -> Job | None:
        """What `create` would find out before it makes the job: the one that was made with the same idempotency key, if there is
        one. Raises what it raises."""

    async def status(self, owner: str, job_id: str) -> JobStatus:
        """A job with its queue position and deliveries. Raises JobNotFound, also for a job of another owner."""

    async def get_many(self, job_ids: Collection[str]) -> dict[str, Job]:
        """Jobs of any owner, by id, without those that do not exist. One call per second and process is enough for any number of
        clients that wait: whatever they wait for (state, `done_s`, `generation`, `part_count`) is in the job."""

    async def page(self, owner: str, *, state: JobState | None = None, before: int | None = None, limit: int = 20) -> list[Job]:
        """At most `limit` jobs of an owner, newest first, with numbers below `before`. To go on, pass the number of the last one:
        jobs that come or go meanwhile shift nothing."""

    async def cancel(self, owner: str, job_id: str) -> Job:
        """End a job as cancelled, whether queued or running. The caller removes the upload. Raises JobNotFound, and
        JobStateConflict if it has ended."""

    async def forget(self, owner: str, job_id: str) -> None:
        """Delete a job that has ended, and its result. A webhook message that is not settled is still delivered. Raises
        JobNotFound, and JobStateConflict if it has not ended."""

    async def result(self, owner: str, job_id: str) -> bytes:
        """The result, as `finish` got it. Raises JobNotFound, and JobStateConflict if the job is not completed."""

    # For workers

    async def claim(self) -> tuple[Job, Lease] | None:
        """Take the next job; None: there is none. Of calls at the same time, each gets another job.

        Normal jobs go before low ones. But after three normal ones in a row it is the turn of a low one, if the next low one has
        waited for LOW_AGEING_S. Within a priority, owners share by audio seconds (by bytes, where the length is not known):
        start-time fair queueing as in `engine/batch_queue.py`. Within that, an owner's oldest job is first.
        """

    async def resume(self, lease: Lease, provenance: Provenance) -> Checkpoint:
        """Begin the work, or go on with it. Returns the checkpoint with all of its parts if it was made with the same provenance.
        Otherwise discards it, and returns one without parts and of the next generation. Raises LeaseLost."""

    async def discard(self, lease: Lease) -> None:
        """Discard the checkpoint, which is of the next generation from here on. Raises LeaseLost."""

    async def save(
        self, lease: Lease, *, done_s: float, audio_s: float | None = None, first: int = 0, parts: Sequence[bytes] = ()
    ) -> None:
        """Renew the lease, and append parts to the checkpoint.

        `first` is the number of the first one of `parts`. Parts that are there already are ignored, so a call that may have
        failed can be repeated. `audio_s`: the length of the audio, if it is now known better. Raises LeaseLost, and
        CheckpointLost if parts before `first` are missing.
        """

    async def checkpoint(self, job_id: str, first: int = 0) -> Checkpoint:
        """For readers: the parts from `first` on. There are none once the job has ended: the result has it all. Raises
        JobNotFound."""

    async def finish(self, lease: Lease, outcome: Outcome) -> Job:
        """End a job as completed or failed, and store its result. The caller removes the upload. Raises LeaseLost; so does the
        repetition of a call that did succeed."""

    async def hand_back(self, lease: Lease) -> None:
        """Give up the lease. The job is queued at its old place, and goes on from its checkpoint. Raises LeaseLost."""

    async def defer(self, lease: Lease, error: JobError, *, after_s: float, give_up_s: float, is_loss: bool) -> Job | None:
        """The same because of an error, but the job counts as running until it is queued again, by a `sweep` after `after_s`.

        If the job has been deferred for `give_up_s` without a new part, it fails with `error`, and is returned; so does one with
        MAX_LOST_WORKERS losses in a row, `is_loss` being one. The caller removes the upload then. Raises LeaseLost.
        """

    # For webhooks

    async def claim_delivery(self, busy_hosts: Collection[str] = ()) -> Delivery | None:
        """Take a webhook message that is due, for one try; None: there is none, apart from those to `busy_hosts`, as
        `Delivery.host` has them. Every job with a `webhook_url` has one from the moment it ends, in the same transaction. If it
        is not settled within `lease_s`, it is due again."""

    async def settle_delivery(self, delivery: Delivery, *, error: str | None = None, retry_after_s: float | None = None) -> None:
        """Record the end of a try: delivered (no `error`), to be tried again after `retry_after_s`, or given up (an `error`
        alone). Raises LeaseLost if the message was taken by another call meanwhile."""

    # Housekeeping

    async def identity(self) -> tuple[str, bool]:
        """The id of this store, which does not change, and whether it has jobs that are queued or running."""

    async def sweep(self) -> Swept:
        """Let what is over its time end: leases, results, idempotency keys. Any number of processes may do so at any time.

        A job that lost its worker is queued at its old place. After MAX_LOST_WORKERS in a row without a new part it fails with
        the code `worker_lost`. The caller removes the uploads of failed jobs.
        """

    async def active_jobs(self) -> frozenset[str]:
        """Ids of all jobs that are queued or running, those whose uploads are needed."""

    async def abandon(self, job_id: str, error: JobError) -> Job | None:
        """End a job as failed, without a lease. None if it has ended, or does not exist."""
