"""Any sequence of calls, beside a model of the store that is a dictionary."""

import asyncio
import itertools
import tempfile
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, TypeVar

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from serve_app.errors import JobNotFound, JobStateConflict
from serve_app.jobs.database import Database
from serve_app.jobs.model import MAX_LOST_WORKERS, Completed, JobError, JobState, Lease, LeaseLost, Swept
from serve_app.jobs.sql_store import SqlStore
from serve_app.jobs.sqlite import SqliteConnection
from tests.jobs.stores import LEASE_S, Clock, new_job

Result = TypeVar("Result")

TTL_S = 100.0

OWNERS = ("alice", "bob")


class Known:
    """What must be true of a job."""

    def __init__(self, owner: str) -> None:
        self.owner = owner
        self.state = JobState.QUEUED
        self.lease: Lease | None = None
        self.until_s = 0.0
        self.lost = 0
        self.parts: list[bytes] = []

    def end(self, state: JobState, now_s: float) -> None:
        self.state, self.lease, self.parts, self.until_s = state, None, [], now_s + TTL_S


class StoreMachine(RuleBasedStateMachine):
    """SQLite alone: both stores run the same statements."""

    jobs = Bundle("jobs")
    leases = Bundle("leases")

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        path = Path(self.folder.name) / "jobs.sqlite"
        self.clock = Clock()
        self.loop = asyncio.Runner()
        self.store = SqlStore(
            Database(lambda reads_only: SqliteConnection(path, reads_only=reads_only)), lease_s=LEASE_S, clock_s=self.clock
        )
        self.known: dict[str, Known] = {}
        self.bytes = itertools.count()
        self.run(self.store.sweep())

    def teardown(self) -> None:
        self.run(self.store.close())
        self.loop.close()
        self.folder.cleanup()

    def run(self, call: Coroutine[Any, Any, Result]) -> Result:
        return self.loop.run(call)

    @rule(target=jobs, owner=st.sampled_from(OWNERS), seconds=st.integers(0, 100))
    def create(self, owner: str, seconds: int) -> str:
        job, is_new = self.run(self.store.create(new_job(owner, audio_s=seconds, ttl_s=TTL_S, webhook_url="https://a.example")))
        assert is_new
        self.known[job.job_id] = Known(owner)
        return job.job_id

    @rule(target=leases)
    def claim(self) -> Lease | None:
        claim = self.run(self.store.claim())
        queued = [job_id for job_id, job in self.known.items() if job.state == JobState.QUEUED]
        assert (claim is None) == (not queued)
        if claim is None:
            return None
        job, lease = claim
        known = self.known[job.job_id]
        assert job.job_id == next(job_id for job_id in queued if self.known[job_id].owner == known.owner)
        assert job.lost_workers == known.lost
        known.state, known.lease, known.until_s = JobState.RUNNING, lease, self.clock.now_s + LEASE_S
        return lease

    def holder(self, lease: Lease | None) -> Known | None:
        return next((job for job in self.known.values() if lease is not None and job.lease == lease), None)

    @rule(lease=leases, count=st.integers(0, 3))
    def save(self, lease: Lease | None, count: int) -> None:
        if lease is None:
            return
        known = self.holder(lease)
        first = len(known.parts) if known else 0
        parts = [str(next(self.bytes)).encode() for _ in range(count)]
        try:
            self.run(self.store.save(lease, done_s=1.0, first=first, parts=parts))
        except LeaseLost:
            assert known is None
            return
        assert known is not None
        known.parts += parts
        known.until_s = self.clock.now_s + LEASE_S
        known.lost = 0 if parts else known.lost

    @rule(lease=consumes(leases), has_failed=st.booleans())
    def finish(self, lease: Lease | None, has_failed: bool) -> None:
        if lease is None:
            return
        known = self.holder(lease)
        outcome = JobError("code", "why") if has_failed else Completed(lease.job_id.encode(), 1.0)
        try:
            self.run(self.store.finish(lease, outcome))
        except LeaseLost:
            assert known is None
            return
        assert known is not None
        known.end(JobState.FAILED if has_failed else JobState.COMPLETED, self.clock.now_s)

    @rule(lease=consumes(leases))
    def hand_back(self, lease: Lease | None) -> None:
        if lease is None:
            return
        known = self.holder(lease)
        try:
            self.run(self.store.hand_back(lease))
        except LeaseLost:
            assert known is None
            return
        assert known is not None
        known.state, known.lease = JobState.QUEUED, None

    @rule(job_id=jobs, owner=st.sampled_from(OWNERS))
    def cancel(self, job_id: str, owner: str) -> None:
        known = self.known.get(job_id)
        try:
            self.run(self.store.cancel(owner, job_id))
        except JobNotFound:
            assert known is None or known.owner != owner
        except JobStateConflict:
            assert known is not None
            assert known.state.is_ended
        else:
            assert known is not None
            assert not known.state.is_ended
            known.end(JobState.CANCELLED, self.clock.now_s)

    @rule(job_id=jobs, owner=st.sampled_from(OWNERS))
    def forget(self, job_id: str, owner: str) -> None:
        known = self.known.get(job_id)
        try:
            self.run(self.store.forget(owner, job_id))
        except JobNotFound:
            assert known is None or known.owner != owner
        except JobStateConflict:
            assert known is not None
            assert not known.state.is_ended
        else:
            assert self.known.pop(job_id).state.is_ended

    @rule(seconds=st.sampled_from([1.0, LEASE_S, TTL_S]))
    def time_goes_on(self, seconds: float) -> None:
        self.clock.advance(seconds)
        swept = self.run(self.store.sweep())
        over = {job_id: job for job_id, job in self.known.items() if job.until_s <= self.clock.now_s}
        for job_id, job in over.items():
            if job.state.is_ended:
                assert job_id in swept.expired
                del self.known[job_id]
            elif job.state == JobState.RUNNING:
                job.lost, job.lease = job.lost + 1, None
                if job.lost == MAX_LOST_WORKERS:
                    assert job_id in [failed.job_id for failed in swept.failed]
                    job.end(JobState.FAILED, self.clock.now_s)
                else:
                    assert job_id in swept.requeued
                    job.state = JobState.QUEUED

    @rule(seconds=st.sampled_from([-1e9, -1e4, 1e4, 1e9]))
    def clock_jumps(self, seconds: float) -> None:
        self.clock.advance(seconds)
        for job in self.known.values():
            job.until_s += seconds
        assert self.run(self.store.sweep()) == Swept((), (), ())

    @invariant()
    def all_is_as_it_must_be(self) -> None:
        for owner in OWNERS:
            page = self.run(self.store.page(owner, limit=1000))
            expected = [(job_id, job.state) for job_id, job in self.known.items() if job.owner == owner]
            assert [(job.job_id, job.state) for job in page] == expected[::-1]
            for job in page:
                known = self.known[job.job_id]
                status = self.run(self.store.status(owner, job.job_id))
                assert [delivery.state for delivery in status.deliveries] == [known.state] * known.state.is_ended
                assert self.run(self.store.checkpoint(job.job_id)).parts == tuple(known.parts)
                if known.state == JobState.COMPLETED:
                    assert self.run(self.store.result(owner, job.job_id)) == job.job_id.encode()


StoreMachine.TestCase.settings = settings(max_examples=12, stateful_step_count=25, suppress_health_check=list(HealthCheck))
TestStore = StoreMachine.TestCase
