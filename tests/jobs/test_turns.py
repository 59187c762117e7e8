"""Whose turn it is: priorities, and fair shares of owners, on both stores."""

import pytest

from serve_app.jobs.model import Completed, Priority
from serve_app.jobs.sql_queue import LOW_AGEING_S
from serve_app.jobs.store import JobStore
from tests.jobs.stores import PROVENANCE, Clock, claim_order, claimed, queued


async def claimed_owners(store: JobStore, count: int) -> str:
    return "".join([(await claimed(store))[0].owner for _ in range(count)])


async def positions(store: JobStore, *jobs: tuple[str, str]) -> list[int | None]:
    return [(await store.status(owner, job_id)).queue_position for owner, job_id in jobs]


async def test_an_owners_jobs_are_first_in_first_out(store: JobStore) -> None:
    ids = [await queued(store, audio_s=audio_s) for audio_s in (100.0, 1.0, None, 0.0, 50.0)]
    assert await claim_order(store, 5) == ids


async def test_an_owner_with_few_jobs_does_not_wait_for_many(store: JobStore) -> None:
    for _ in range(6):
        await queued(store, "a")
    assert await claimed_owners(store, 2) == "aa"
    for _ in range(2):
        await queued(store, "b")
    assert await claimed_owners(store, 6) in ("ababaa", "babaaa")


async def test_owners_share_by_audio(store: JobStore) -> None:
    """Jobs of `long` are four times as long as those of `short`."""
    for _ in range(10):
        await queued(store, "l", audio_s=40.0)
        await queued(store, "s", audio_s=10.0)
    owners = await claimed_owners(store, 10)
    assert owners.count("s") in (7, 8)


async def test_bytes_count_where_no_length_is_known(store: JobStore) -> None:
    for _ in range(8):
        await queued(store, "l", audio_s=None, upload_bytes=4_000_000)
        await queued(store, "s", audio_s=None, upload_bytes=1_000_000)
    assert (await claimed_owners(store, 5)).count("s") in (3, 4)


async def test_what_an_owner_had_counts_after_it_is_done(store: JobStore) -> None:
    """An owner who sends one long job after the other has no advantage over one with a queue of short ones."""
    await queued(store, "l", audio_s=100.0)
    for _ in range(20):
        await queued(store, "s", audio_s=10.0)
    owners = ""
    for _ in range(13):
        job, lease = await claimed(store)
        await store.finish(lease, Completed(b"", 1.0))
        owners += job.owner
        if job.owner == "l":
            await queued(store, "l", audio_s=100.0)
    assert owners.count("l") == 2


async def test_cancelled_jobs_cost_nothing(store: JobStore) -> None:
    cancelled = [await queued(store, "a", audio_s=1000.0) for _ in range(3)]
    await queued(store, "b")
    for job_id in cancelled:
        await store.cancel("a", job_id)
    await queued(store, "a")
    await queued(store, "b")
    assert sorted(await claimed_owners(store, 2)) == ["a", "b"]


async def test_a_cancelled_job_lets_no_later_job_overtake(store: JobStore) -> None:
    ids = [await queued(store, audio_s=100.0) for _ in range(3)]
    await store.cancel("alice", ids[0])
    ids.append(await queued(store))
    assert await claim_order(store, 3) == ids[1:]


class TestPriorities:
    async def test_normal_jobs_go_first(self, store: JobStore) -> None:
        low = [await queued(store, priority=Priority.LOW) for _ in range(2)]
        normal = [await queued(store, "bob") for _ in range(5)]
        assert await claim_order(store, 7) == normal + low

    async def test_low_jobs_do_not_starve(self, store: JobStore, clock: Clock) -> None:
        low = [await queued(store, "bob", priority=Priority.LOW) for _ in range(2)]
        normal = [await queued(store) for _ in range(8)]
        clock.advance(LOW_AGEING_S)
        await store.sweep()
        assert await claim_order(store, 10) == [*normal[:3], low[0], *normal[3:6], low[1], *normal[6:]]

    async def test_they_do_not_share(self, store: JobStore) -> None:
        """What an owner had at low priority does not delay its normal jobs."""
        await queued(store, "a", audio_s=10_000.0, priority=Priority.LOW)
        await claimed(store)
        await queued(store, "a")
        await queued(store, "b")
        assert await claimed_owners(store, 2) == "ab"


class TestPositions:
    async def test_it_is_the_order_of_claims(self, store: JobStore) -> None:
        jobs = []
        for owner, audio_s, priority in [
            ("a", 10.0, Priority.NORMAL),
            ("a", 50.0, Priority.LOW),
            ("a", 30.0, Priority.NORMAL),
            ("b", 5.0, Priority.NORMAL),
            ("b", 5.0, Priority.NORMAL),
        ]:
            jobs.append((owner, await queued(store, owner, audio_s=audio_s, priority=priority)))
        numbers = await positions(store, *jobs)
        order = [job_id for _, (_, job_id) in sorted(zip(numbers, jobs, strict=True))]
        assert sorted(number or 0 for number in numbers) == [1, 2, 3, 4, 5]
        assert await claim_order(store, 5) == order
        assert await positions(store, *jobs) == [None] * 5

    async def test_it_is_counted_up_to_a_bound(self, store: JobStore, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("serve_app.jobs.sql_queue.MAX_POSITION", 3)
        jobs = [("alice", await queued(store)) for _ in range(5)]
        assert await positions(store, *jobs) == [1, 2, 3, 3, 3]


async def test_a_job_that_comes_back_is_next(store: JobStore) -> None:
    first, second = [await queued(store) for _ in range(2)]
    await queued(store, "bob")
    _, lease = await claimed(store)
    assert lease.job_id == first
    await store.resume(lease, PROVENANCE)
    await claimed(store)
    await store.hand_back(lease)
    assert await claim_order(store, 2) == [first, second]
