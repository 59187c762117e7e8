"""Leases, webhook messages and what expires, with a clock that jumps, on both stores."""

from collections.abc import Callable
from typing import Any

import pytest

from serve_app.errors import JobNotFound
from serve_app.jobs.model import MAX_LOST_WORKERS, Completed, Idempotency, JobState, LeaseLost, Swept
from serve_app.jobs.sql_store import SqlStore
from serve_app.jobs.store import IDEMPOTENT_S, MAX_STEP_S, JobStore
from tests.jobs.stores import LEASE_S, PROVENANCE, WEEK_S, Clock, claimed, new_job, queued

NOTHING = Swept((), (), ())

YEAR_S = 31_536_000.0


async def ended(store: JobStore, **values: Any) -> str:
    """A job that is completed."""
    job_id = await queued(store, **values)
    _, lease = await claimed(store)
    await store.finish(lease, Completed(b"text", 1.0))
    return job_id


async def wait(store: JobStore, clock: Clock, seconds: float) -> list[Swept]:
    """What the sweeps do, one every MAX_STEP_S at least, while time goes on."""
    swept = []
    while seconds > 0:
        step_s = min(seconds, MAX_STEP_S)
        clock.advance(step_s)
        seconds -= step_s
        swept.append(await store.sweep())
    return swept


class TestTakeover:
    async def test_a_lease_that_is_not_renewed_ends(self, make_store: Callable[[], SqlStore], clock: Clock) -> None:
        old, new = make_store(), make_store()
        job_id = await queued(old)
        _, old_lease = await claimed(old)
        await old.resume(old_lease, PROVENANCE)
        await old.save(old_lease, done_s=1.0, parts=[b"one"])
        clock.advance(LEASE_S - 1)
        assert await new.sweep() == NOTHING
        clock.advance(1)
        assert await new.sweep() == Swept((job_id,), (), ())

        job, new_lease = await claimed(new)
        assert (job.job_id, job.lost_workers) == (job_id, 1)
        assert (await new.resume(new_lease, PROVENANCE)).parts == (b"one",)
        for refused in (
            old.resume(old_lease, PROVENANCE),
            old.save(old_lease, done_s=9.0, first=1, parts=[b"not two"]),
            old.hand_back(old_lease),
            old.finish(old_lease, Completed(b"old", 9.0)),
        ):
            with pytest.raises(LeaseLost):
                await refused
        await new.save(new_lease, done_s=2.0, first=1, parts=[b"two"])
        assert (await old.checkpoint(job_id)).parts == (b"one", b"two")
        await new.finish(new_lease, Completed(b"new", 2.0))
        assert await old.result("alice", job_id) == b"new"

    async def test_the_old_worker_is_refused_before_there_is_a_new_one(self, store: JobStore, clock: Clock) -> None:
        await queued(store)
        _, lease = await claimed(store)
        clock.advance(LEASE_S)
        await store.sweep()
        with pytest.raises(LeaseLost):
            await store.save(lease, done_s=1.0)

    async def test_saving_renews_it(self, store: JobStore, clock: Clock) -> None:
        await queued(store)
        _, lease = await claimed(store)
        for _ in range(5):
            clock.advance(LEASE_S - 1)
            await store.save(lease, done_s=1.0)
            assert await store.sweep() == NOTHING

    async def test_a_job_fails_that_loses_its_workers(self, store: JobStore, clock: Clock) -> None:
        job_id = await queued(store, webhook_url="https://example.com/")
        for lost in range(1, MAX_LOST_WORKERS + 1):
            await claimed(store)
            clock.advance(LEASE_S)
            swept = await store.sweep()
            assert bool(swept.failed) == (lost == MAX_LOST_WORKERS)
        status = await store.status("alice", job_id)
        assert swept.failed == (status.job,)
        assert status.job.error is not None
        assert (status.job.state, status.job.error.code) == (JobState.FAILED, "worker_lost")
        assert [delivery.state for delivery in status.deliveries] == [JobState.FAILED]

    async def test_progress_counts_from_the_start_again(self, store: JobStore, clock: Clock) -> None:
        job_id = await queued(store)
        for part in range(2 * MAX_LOST_WORKERS):
            _, lease = await claimed(store)
            await store.save(lease, done_s=part, first=part, parts=[b"one more"])
            clock.advance(LEASE_S)
            assert await store.sweep() == Swept((job_id,), (), ())

    async def test_a_worker_without_progress_counts(self, store: JobStore, clock: Clock) -> None:
        await queued(store)
        for _ in range(MAX_LOST_WORKERS):
            _, lease = await claimed(store)
            await store.save(lease, done_s=0.0)
            clock.advance(LEASE_S)
            swept = await store.sweep()
        assert swept.failed


class TestExpiry:
    async def test_a_result_is_kept_for_its_time(self, store: JobStore, clock: Clock) -> None:
        job_id = await ended(store, ttl_s=1000.0)
        await queued(store)
        assert await wait(store, clock, 999.0) == [NOTHING] * 4
        assert await store.result("alice", job_id) == b"text"
        clock.advance(1.0)
        assert await store.sweep() == Swept((), (), (job_id,))
        with pytest.raises(JobNotFound):
            await store.result("alice", job_id)
        assert len(await store.page("alice")) == 1

    async def test_an_idempotency_key_is_honoured_for_a_day(self, store: JobStore, clock: Clock) -> None:
        key = Idempotency("key", "a")
        job, _ = await store.create(new_job(idempotency=key))
        await wait(store, clock, IDEMPOTENT_S - 1)
        assert await store.create(new_job(idempotency=key)) == (job, False)
        await wait(store, clock, 1)
        assert (await store.create(new_job(idempotency=Idempotency("key", "b"))))[1]


class TestClockJumps:
    @pytest.mark.parametrize("jump_s", [YEAR_S, -YEAR_S])
    async def test_nothing_ends_that_has_not_had_its_time(self, store: JobStore, clock: Clock, jump_s: float) -> None:
        await store.sweep()
        done = await ended(store, ttl_s=1000.0)
        key = Idempotency("key", "a")
        keyed, _ = await store.create(new_job(idempotency=key))
        _, lease = await claimed(store)

        clock.advance(jump_s)
        assert await store.sweep() == NOTHING
        assert await store.result("alice", done) == b"text"
        assert await store.create(new_job(idempotency=key)) == ((await store.status("alice", keyed.job_id)).job, False)
        await store.save(lease, done_s=1.0)

        clock.advance(LEASE_S)
        assert await store.sweep() == Swept((keyed.job_id,), (), ())
        assert [swept.expired for swept in await wait(store, clock, 1000.0 - LEASE_S)][-1] == (done,)

    @pytest.mark.parametrize("jump_s", [YEAR_S, -YEAR_S])
    async def test_whichever_call_sees_it_first(self, store: JobStore, clock: Clock, jump_s: float) -> None:
        await store.sweep()
        await queued(store)
        _, lease = await claimed(store)
        clock.advance(jump_s)
        await store.save(lease, done_s=1.0)
        clock.advance(LEASE_S - 1)
        assert await store.sweep() == NOTHING
        clock.advance(1)
        assert len((await store.sweep()).requeued) == 1

    async def test_there_and_back(self, store: JobStore, clock: Clock) -> None:
        await store.sweep()
        job_id = await ended(store, ttl_s=WEEK_S)
        for jump_s in (YEAR_S, -YEAR_S, -YEAR_S, YEAR_S):
            clock.advance(jump_s)
            await store.sweep()
        assert (await store.status("alice", job_id)).job.expires_at_s == clock.now_s + WEEK_S

    async def test_time_in_which_nothing_runs_does_not_count(self, store: JobStore, clock: Clock) -> None:
        """All processes were killed; a job that was running is taken over a lease after the restart."""
        await store.sweep()
        job_id = await ended(store, ttl_s=600.0)
        running = await queued(store)
        await claimed(store)
        clock.advance(86_400)
        assert await store.sweep() == NOTHING
        clock.advance(LEASE_S)
        assert await store.sweep() == Swept((running,), (), ())
        assert await store.result("alice", job_id) == b"text"


class TestDeliveries:
    async def test_every_end_has_a_message(self, store: JobStore) -> None:
        webhook: dict[str, Any] = {"webhook_url": "https://example.com/", "metadata": {"a": 1}}
        job_id = await queued(store, **webhook)
        assert await store.claim_delivery() is None
        await store.cancel("alice", job_id)
        await ended(store, webhook_url=None)
        delivery = await store.claim_delivery()
        assert delivery is not None
        assert (delivery.job_id, delivery.state, delivery.tries) == (job_id, JobState.CANCELLED, 1)
        assert (delivery.webhook_url, delivery.metadata) == ("https://example.com/", {"a": 1})
        assert await store.claim_delivery() is None
        await store.settle_delivery(delivery)
        (shown,) = (await store.status("alice", job_id)).deliveries
        assert (shown.is_delivered, shown.next_try_at_s, shown.error, shown.tries) == (True, None, None, 1)
        with pytest.raises(LeaseLost):
            await store.settle_delivery(delivery)

    async def test_a_failed_try_is_repeated_with_the_same_id(self, store: JobStore, clock: Clock) -> None:
        job_id = await ended(store, webhook_url="https://example.com/")
        first = await store.claim_delivery()
        assert first is not None
        await store.settle_delivery(first, error="HTTP 500", retry_after_s=60)
        clock.advance(59)
        assert await store.claim_delivery() is None
        clock.advance(1)
        second = await store.claim_delivery()
        assert second is not None
        assert (second.delivery_id, second.tries, second.error) == (first.delivery_id, 2, "HTTP 500")
        await store.settle_delivery(second, error="HTTP 410")
        (shown,) = (await store.status("alice", job_id)).deliveries
        assert (shown.is_delivered, shown.next_try_at_s, shown.error) == (False, None, "HTTP 410")

    async def test_a_message_whose_sender_is_lost_is_taken_over(self, store: JobStore, clock: Clock) -> None:
        await ended(store, webhook_url="https://example.com/")
        lost = await store.claim_delivery()
        assert lost is not None
        clock.advance(LEASE_S)
        taken = await store.claim_delivery()
        assert taken is not None
        assert (taken.delivery_id, taken.tries) == (lost.delivery_id, 2)
        with pytest.raises(LeaseLost):
            await store.settle_delivery(lost)
        await store.settle_delivery(taken)

    async def test_a_message_outlives_its_job(self, store: JobStore) -> None:
        job_id = await ended(store, webhook_url="https://example.com/")
        await store.forget("alice", job_id)
        delivery = await store.claim_delivery()
        assert delivery is not None
        await store.settle_delivery(delivery)
        assert await store.claim_delivery() is None
