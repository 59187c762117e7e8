"""The same when something is full, gone, broken or away."""

import asyncio
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from serve_app.errors import EngineBroken, ModelUnavailable, StorageFull, StoreUnavailable
from serve_app.jobs import service as service_module
from serve_app.jobs import transcription as transcription_module
from serve_app.jobs import worker as worker_module
from serve_app.jobs.model import MAX_LOST_WORKERS, JobState
from serve_app.jobs.parts import WindowKey
from serve_app.settings import JobSettings, LimitSettings
from testing.fake_service import FakeService
from testing.job_service import fake_with_jobs
from testing.open_requests import until
from tests.jobs.workers import (
    HoldingService,
    ended,
    expire_leases,
    running,
    submit,
    transcript,
    undisturbed,
)

pytestmark = pytest.mark.usefixtures("soon")


@pytest.mark.parametrize(
    ("error", "methods"), [(StoreUnavailable, ("write", "read")), (StorageFull, ("write",))], ids=["away", "full disk"]
)
async def test_a_store_that_fails_for_a_while_delays_the_work_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: type[Exception], methods: tuple[str, ...]
) -> None:
    expected, windows = await undisturbed(tmp_path / "other")
    fake = HoldingService(tmp_path / "jobs", 2)
    async with running(fake) as jobs:
        job = await submit(jobs)
        await until(lambda: len(fake.windows) > 2)
        fails = True

        def failing(method: Any) -> Any:
            async def call(*arguments: Any, **options: Any) -> Any:
                if fails:
                    raise error
                return await method(*arguments, **options)

            return call

        database: Any = jobs.store._database  # type: ignore[attr-defined]
        for name in methods:
            monkeypatch.setattr(database, name, failing(getattr(database, name)))
        fake._decodes = 1000
        fake.hold.set()
        await asyncio.sleep(0.3)
        fails = False
        assert await transcript(jobs, job) == expected
    assert Counter(map(WindowKey.of, fake.windows)) == windows


async def test_without_its_folder_of_uploads_nothing_is_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = HoldingService(tmp_path / "jobs", 1)
    async with running(fake) as jobs:
        job = await submit(jobs)
        await until(lambda: len(fake.windows) > 1)
    folder, hidden = tmp_path / "jobs" / "uploads", tmp_path / "hidden"
    folder.rename(hidden)
    async with running(fake_with_jobs(tmp_path / "jobs")) as jobs:
        monkeypatch.setattr(service_module, "BIND_S", 0.3)
        with pytest.raises(StoreUnavailable):
            await submit(jobs)
        assert (await jobs.store.get_many([job.job_id]))[job.job_id].state == JobState.QUEUED
        folder.rmdir()
        hidden.rename(folder)
        assert (await transcript(jobs, job)).text


async def test_a_window_that_kills_its_replicas_fails_the_job_in_the_end(tmp_path: Path) -> None:
    fake = fake_with_jobs(tmp_path)
    fake.failure = EngineBroken("Its replica is gone.")
    async with running(fake) as jobs:
        failed = await ended(jobs, await submit(jobs))
    assert failed.error is not None
    assert (failed.state, failed.error.code) == (JobState.FAILED, "engine_broken")
    assert len({each.job_id for each in fake.jobs}) == MAX_LOST_WORKERS


async def test_jobs_of_a_model_that_is_away_do_not_hold_up_others(tmp_path: Path) -> None:
    class OneIsAway(FakeService):
        async def recognise(self, window: Any, lane: Any, job: Any) -> Any:
            if job.keywords:
                raise ModelUnavailable("the hub is gone")
            return await super().recognise(window, lane, job)

    fake = OneIsAway(jobs=JobSettings(directory=tmp_path, max_running_audio_s=1e-6), limits=LimitSettings())
    async with running(fake) as jobs:
        for _ in range(3 * worker_module.MIN_RUNNING):
            await submit(jobs, model="second", keywords=("away",))
        assert (await transcript(jobs, await submit(jobs))).text


async def test_a_job_that_is_claimed_again_here_is_worked_on_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transcription_module, "RENEW_S", 60.0)
    fake = HoldingService(tmp_path, 1)
    async with running(fake) as jobs:
        job = await submit(jobs)
        await until(lambda: len(fake.windows) > 1)
        await expire_leases(jobs)
        await until(lambda: len({each.job_id for each in fake.jobs}) == 2 and jobs._worker.running == 1)
        fake._decodes = 1000
        fake.hold.set()
        assert (await transcript(jobs, job)).text
    assert jobs._worker.running == 0


async def test_parts_that_the_database_lost_are_decoded_again(tmp_path: Path) -> None:
    expected, _ = await undisturbed(tmp_path / "other")
    fake = HoldingService(tmp_path / "jobs", 3)
    async with running(fake) as jobs:
        job = await submit(jobs)
        await until(lambda: len(fake.windows) > 3)
        await asyncio.sleep(0.3)
        await jobs.store._database.write(  # type: ignore[attr-defined]
            lambda transaction: transaction.rows("DELETE FROM parts") + transaction.rows("UPDATE jobs SET part_count = 0")
        )
        fake._decodes = 1000
        fake.hold.set()
        assert await transcript(jobs, job) == expected


async def test_an_ingress_that_is_replaced_hands_its_jobs_back(tmp_path: Path) -> None:
    fake = HoldingService(tmp_path, 1)
    async with running(fake) as jobs:
        job = await submit(jobs)
        await until(lambda: len(fake.windows) > 1)
        jobs.is_retired = True
        await until(lambda: not jobs.is_running)
        assert (await jobs.store.get_many([job.job_id]))[job.job_id].state == JobState.QUEUED
        # It was the registry that was old.
        jobs.is_retired = False
        await until(lambda: jobs.is_running and not jobs.watcher._is_closed)
        fake._decodes = 1000
        fake.hold.set()
        assert (await transcript(jobs, job)).text
