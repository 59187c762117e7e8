"""What the tests of the stores share: a clock, jobs, provenances."""

from typing import Any

from serve_app.jobs.model import Job, Lease, NewJob, Provenance, new_id
from serve_app.jobs.store import JobStore

LEASE_S = 30.0

WEEK_S = 604_800.0

PROVENANCE = Provenance("digits", "30 s, 2 s", "1.0")


class Clock:
    """A clock that stands still until a test sets it, seconds."""

    def __init__(self) -> None:
        self.now_s = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now_s

    def advance(self, seconds: float) -> None:
        self.now_s += seconds


def new_job(owner: str = "alice", **values: Any) -> NewJob:
    """A job of ten seconds."""
    fields: dict[str, Any] = {"request": {"model": "digits"}, "upload_bytes": 1000, "ttl_s": WEEK_S, "audio_s": 10.0}
    return NewJob(job_id=new_id("job"), owner=owner, **(fields | values))


async def queued(store: JobStore, owner: str = "alice", **values: Any) -> str:
    """The id of a job that is created here."""
    job, _ = await store.create(new_job(owner, **values))
    return job.job_id


async def claimed(store: JobStore) -> tuple[Job, Lease]:
    """The next job, which must exist."""
    claim = await store.claim()
    assert claim is not None
    return claim


async def claim_order(store: JobStore, count: int) -> list[str]:
    """The ids of the next jobs, in the order of their turns."""
    return [(await claimed(store))[0].job_id for _ in range(count)]
