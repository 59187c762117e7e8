"""Jobs from the queue to their end, on both stores."""

import asyncio
from collections.abc import Callable
from dataclasses import asdict

import pytest

from serve_app.errors import IdempotencyConflict, JobNotFound, JobStateConflict, RateLimited
from serve_app.jobs.model import (
    CheckpointLost,
    Completed,
    Idempotency,
    JobError,
    JobState,
    Lease,
    LeaseLost,
    OwnerLimits,
    Priority,
    Provenance,
)
from serve_app.jobs.sql_store import SqlStore
from serve_app.jobs.store import JobStore
from tests.jobs.stores import PROVENANCE, WEEK_S, Clock, claimed, new_job, queued


class TestLife:
    async def test_from_the_queue_to_the_result(self, store: JobStore, clock: Clock) -> None:
        new = new_job(metadata={"id": 7, "ü": [None]}, priority=Priority.LOW, audio_s=None, webhook_url="https://example.com/")
        created_at_s = clock.now_s
        job, is_new = await store.create(new)
        assert is_new
        for name, value in asdict(new).items():
            if name != "idempotency":
                assert getattr(job, name) == value
        assert (job.state, job.number, job.done_s, job.error) == (JobState.QUEUED, 1, 0.0, None)

        clock.advance(5)
        running, lease = await claimed(store)
        assert (running.job_id, running.state) == (job.job_id, JobState.RUNNING)
        assert await store.claim() is None
        assert (await store.resume(lease, PROVENANCE)).parts == ()
        await store.save(lease, done_s=20.0, audio_s=40.0, parts=[b"one", b"two"])
        await store.save(lease, done_s=30.0, first=2, parts=[b"\0three"])
        assert (await store.checkpoint(job.job_id, first=1)).parts == (b"two", b"\0three")

        clock.advance(5)
        done = await store.finish(lease, Completed(b"\0text", audio_s=41.5))
        assert done == (await store.status("alice", job.job_id)).job
        assert (done.state, done.audio_s, done.done_s) == (JobState.COMPLETED, 41.5, 41.5)
        times = (done.created_at_s, done.started_at_s, done.ended_at_s, done.expires_at_s)
        assert times == (created_at_s, created_at_s + 5, created_at_s + 10, created_at_s + 10 + WEEK_S)
        assert await store.result("alice", job.job_id) == b"\0text"
        assert (await store.checkpoint(job.job_id)).parts == ()

    async def test_a_failure(self, store: JobStore) -> None:
        job_id = await queued(store)
        _, lease = await claimed(store)
        failed = await store.finish(lease, JobError("invalid_audio", "no audio"))
        assert (failed.state, failed.error) == (JobState.FAILED, JobError("invalid_audio", "no audio"))
        with pytest.raises(JobStateConflict, match="failed"):
            await store.result("alice", job_id)

    async def test_a_lease_ends_with_the_job(self, store: JobStore) -> None:
        await queued(store)
        _, lease = await claimed(store)
        await store.finish(lease, Completed(b"", 1.0))
        with pytest.raises(LeaseLost):
            await store.finish(lease, Completed(b"", 1.0))
        with pytest.raises(LeaseLost):
            await store.hand_back(lease)

    async def test_cancelling_takes_the_lease_away(self, store: JobStore) -> None:
        job_id = await queued(store)
        _, lease = await claimed(store)
        assert (await store.cancel("alice", job_id)).state == JobState.CANCELLED
        with pytest.raises(LeaseLost):
            await store.save(lease, done_s=1.0)
        with pytest.raises(JobStateConflict, match="cancelled"):
            await store.cancel("alice", job_id)

    async def test_a_cancelled_job_is_not_claimed(self, store: JobStore) -> None:
        await store.cancel("alice", await queued(store))
        assert await store.claim() is None

    async def test_only_what_has_ended_is_forgotten(self, store: JobStore) -> None:
        job_id = await queued(store)
        with pytest.raises(JobStateConflict, match="queued"):
            await store.forget("alice", job_id)
        _, lease = await claimed(store)
        await store.finish(lease, Completed(b"text", 1.0))
        await store.forget("alice", job_id)
        with pytest.raises(JobNotFound):
            await store.result("alice", job_id)

    async def test_nothing_of_a_forgotten_job_remains(self, store: SqlStore) -> None:
        job_id = await queued(store)
        _, lease = await claimed(store)
        await store.finish(lease, Completed(b"text", 1.0))
        await store.forget("alice", job_id)
        assert not await store._database.read(lambda transaction: transaction.rows("SELECT job_id FROM results"))

    async def test_handing_back_keeps_place_and_checkpoint(self, store: JobStore) -> None:
        first = await queued(store)
        await queued(store)
        _, lease = await claimed(store)
        await store.resume(lease, PROVENANCE)
        await store.save(lease, done_s=5.0, parts=[b"one"])
        await store.hand_back(lease)
        again, lease = await claimed(store)
        assert (again.job_id, again.lost_workers) == (first, 0)
        assert (await store.resume(lease, PROVENANCE)).parts == (b"one",)

    async def test_abandoning(self, store: JobStore) -> None:
        job_id = await queued(store)
        assert await store.active_jobs() == {job_id}
        failed = await store.abandon(job_id, JobError("upload_lost", "gone"))
        assert failed is not None
        assert failed.error == JobError("upload_lost", "gone")
        assert await store.abandon(job_id, JobError("upload_lost", "gone")) is None
        assert await store.active_jobs() == frozenset()


class TestOwners:
    async def test_another_owner_sees_nothing(self, store: JobStore) -> None:
        job_id = await queued(store)
        for call in (store.status, store.cancel, store.forget, store.result):
            with pytest.raises(JobNotFound):
                await call("bob", job_id)
        assert await store.page("bob") == []

    async def test_many_at_once_are_of_any_owner(self, store: JobStore) -> None:
        ids = [await queued(store, owner) for owner in ("alice", "bob")]
        assert set(await store.get_many([*ids, *(f"unknown_{n}" for n in range(600))])) == set(ids)
        assert await store.get_many([]) == {}


class TestCheckpoints:
    @pytest.mark.parametrize("field", ["model", "windows", "version"])
    async def test_another_provenance_starts_over(self, store: JobStore, field: str) -> None:
        job_id = await queued(store)
        _, lease = await claimed(store)
        first = await store.resume(lease, PROVENANCE)
        await store.save(lease, done_s=5.0, parts=[b"one"])
        assert (await store.resume(lease, PROVENANCE)).generation == first.generation
        other = Provenance(**(asdict(PROVENANCE) | {field: "another"}))
        again = await store.resume(lease, other)
        assert (again.generation, again.parts, again.provenance) == (first.generation + 1, (), other)
        job = (await store.status("alice", job_id)).job
        assert (job.done_s, job.part_count, job.generation) == (0.0, 0, again.generation)

    async def test_discarding_begins_the_next_generation(self, store: JobStore) -> None:
        job_id = await queued(store)
        _, lease = await claimed(store)
        first = await store.resume(lease, PROVENANCE)
        await store.save(lease, done_s=5.0, parts=[b"one"])
        await store.discard(lease)
        job = (await store.status("alice", job_id)).job
        assert (job.done_s, job.part_count, job.generation) == (0.0, 0, first.generation + 1)
        await store.save(lease, done_s=5.0, parts=[b"another"])
        again = await store.resume(lease, PROVENANCE)
        assert (again.parts, again.generation) == ((b"another",), first.generation + 1)
        with pytest.raises(LeaseLost):
            await store.discard(Lease(job_id, "old"))

    async def test_a_repeated_save_adds_nothing(self, store: JobStore) -> None:
        job_id = await queued(store)
        _, lease = await claimed(store)
        await store.save(lease, done_s=1.0, parts=[b"a", b"b"])
        await store.save(lease, done_s=1.0, parts=[b"a", b"b"])
        await store.save(lease, done_s=2.0, first=1, parts=[b"b", b"c"])
        assert (await store.checkpoint(job_id)).parts == (b"a", b"b", b"c")

    async def test_a_gap_is_refused(self, store: JobStore) -> None:
        job_id = await queued(store)
        _, lease = await claimed(store)
        with pytest.raises(CheckpointLost, match="missing"):
            await store.save(lease, done_s=1.0, first=1, parts=[b"b"])
        assert (await store.checkpoint(job_id)).parts == ()


class TestPages:
    async def test_newest_first_and_by_state(self, store: JobStore) -> None:
        ids = [await queued(store) for _ in range(4)]
        await store.cancel("alice", ids[2])
        assert [job.job_id for job in await store.page("alice")] == ids[::-1]
        assert [job.job_id for job in await store.page("alice", state=JobState.QUEUED)] == [ids[3], ids[1], ids[0]]
        assert [job.job_id for job in await store.page("alice", state=JobState.CANCELLED)] == [ids[2]]

    async def test_pages_do_not_shift(self, store: JobStore) -> None:
        ids = [await queued(store) for _ in range(6)]
        first = await store.page("alice", limit=2)
        await queued(store)
        await store.cancel("alice", ids[4])
        await store.forget("alice", ids[4])
        second = await store.page("alice", before=first[-1].number, limit=2)
        assert [job.job_id for job in first + second] == [ids[5], ids[4], ids[3], ids[2]]


class TestIdempotency:
    async def test_the_same_request_is_one_job(self, store: JobStore) -> None:
        job, _ = await store.create(new_job(idempotency=Idempotency("key", "a")))
        assert await store.create(new_job(idempotency=Idempotency("key", "a"))) == (job, False)
        assert (await store.create(new_job("bob", idempotency=Idempotency("key", "a"))))[1]

    async def test_another_request_is_refused(self, store: JobStore) -> None:
        await store.create(new_job(idempotency=Idempotency("key", "a")))
        with pytest.raises(IdempotencyConflict):
            await store.create(new_job(idempotency=Idempotency("key", "b")))

    async def test_a_race_makes_one_job(self, make_store: Callable[[], SqlStore]) -> None:
        stores = [make_store() for _ in range(4)]
        answers = await asyncio.gather(*(store.create(new_job(idempotency=Idempotency("key", "a"))) for store in stores))
        assert sum(is_new for _, is_new in answers) == 1
        assert len({job.job_id for job, _ in answers}) == 1


class TestLimits:
    @pytest.mark.parametrize(
        ("limits", "words"),
        [
            (OwnerLimits(jobs=2), "2 jobs"),
            (OwnerLimits(upload_bytes=2999), "2999 bytes"),
            (OwnerLimits(audio_s=29.9), "30 s of audio"),
        ],
    )
    async def test_what_is_queued_and_running_counts(self, store: JobStore, limits: OwnerLimits, words: str) -> None:
        for owner in ("alice", "alice", "bob"):
            await queued(store, owner)
        await claimed(store)
        with pytest.raises(RateLimited, match=words) as raised:
            await store.create(new_job(), limits)
        assert raised.value.retry_after_s
        await store.cancel("alice", (await store.page("alice"))[0].job_id)
        await store.create(new_job(), limits)

    async def test_a_race_does_not_pass_them(self, make_store: Callable[[], SqlStore]) -> None:
        stores = [make_store() for _ in range(4)]
        limits = OwnerLimits(jobs=2)
        answers = await asyncio.gather(*(store.create(new_job(), limits) for store in stores), return_exceptions=True)
        assert sum(isinstance(answer, RateLimited) for answer in answers) == 2


class TestRaces:
    async def test_a_job_has_one_worker(self, make_store: Callable[[], SqlStore]) -> None:
        stores = [make_store() for _ in range(4)]
        for _ in range(6):
            await queued(stores[0])
        claims = await asyncio.gather(*(store.claim() for store in stores * 2))
        ids = [claim[0].job_id for claim in claims if claim is not None]
        assert len(ids) == len(set(ids))
        ids += [claim[0].job_id for _ in range(6) if (claim := await stores[0].claim()) is not None]
        assert len(ids) == len(set(ids)) == 6

    async def test_one_end_wins(self, make_store: Callable[[], SqlStore]) -> None:
        """A worker finishes a job while its owner cancels it."""
        worker, owner = make_store(), make_store()
        for _ in range(5):
            job_id = await queued(owner, webhook_url="https://example.com")
            _, lease = await claimed(worker)
            finished, cancelled = await asyncio.gather(
                worker.finish(lease, Completed(b"text", 1.0)), owner.cancel("alice", job_id), return_exceptions=True
            )
            assert isinstance(finished, LeaseLost) != isinstance(cancelled, JobStateConflict)
            status = await owner.status("alice", job_id)
            assert [delivery.state for delivery in status.deliveries] == [status.job.state]
