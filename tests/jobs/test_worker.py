"""The worker on the real store, pipeline and decoder, with a simulated engine: what is repeated, and what not."""

import asyncio
from collections import Counter
from pathlib import Path

import pytest

from serve_app.errors import EngineError, ModelUnavailable
from serve_app.jobs import transcription as transcription_module
from serve_app.jobs import worker as worker_module
from serve_app.jobs.model import JobState
from serve_app.jobs.parts import WindowKey, pack_transcript, unpack_transcript
from serve_app.jobs.service import JobService
from serve_app.jobs.uploads import Uploads
from serve_app.transcript import Transcript
from testing import media
from testing.job_service import fake_with_jobs, uploads_in
from testing.open_requests import until
from tests.jobs.workers import (
    SPEECH,
    HoldingService,
    ended,
    expire_leases,
    running,
    submit,
    transcript,
    undisturbed,
)

pytestmark = pytest.mark.usefixtures("soon")


@pytest.mark.parametrize("dies", [True, False], ids=["killed", "stopped"])
async def test_windows_that_were_saved_are_not_decoded_again(tmp_path: Path, dies: bool) -> None:
    expected, windows = await undisturbed(tmp_path / "other")
    first = HoldingService(tmp_path / "jobs", 3)
    async with running(first, dies=dies) as jobs:
        job = await submit(jobs)

        await until(lambda: len(first.windows) > 3)
        # Until the three are saved: see SAVE_S.
        await asyncio.sleep(0.5)
    second = fake_with_jobs(tmp_path / "jobs")
    async with running(second) as jobs:
        state = (await jobs.store.get_many([job.job_id]))[job.job_id].state
        if dies:
            assert state == JobState.RUNNING
            await expire_leases(jobs)
        assert await transcript(jobs, job) == expected
    decoded = Counter(map(WindowKey.of, first.windows[:3])) + Counter(map(WindowKey.of, second.windows))
    assert decoded == windows
    assert uploads_in(tmp_path / "jobs") == []


async def test_the_work_starts_over_with_another_provenance(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected, windows = await undisturbed(tmp_path / "other")
    first = HoldingService(tmp_path / "jobs", 3)
    async with running(first) as jobs:
        job = await submit(jobs)
        await until(lambda: len(first.windows) > 3)
        await asyncio.sleep(0.2)
    monkeypatch.setattr(transcription_module, "__version__", "another")
    second = fake_with_jobs(tmp_path / "jobs")
    async with running(second) as jobs:
        assert await transcript(jobs, job) == expected
        assert (await jobs.store.get_many([job.job_id]))[job.job_id].generation == 2
    assert Counter(map(WindowKey.of, second.windows)) == windows


async def test_of_two_workers_that_believe_they_own_a_job_one_wins(tmp_path: Path) -> None:
    first, second = HoldingService(tmp_path, 2), fake_with_jobs(tmp_path)
    async with running(first) as sleeping:
        job = await submit(sleeping)
        await until(lambda: len(first.windows) > 2)
        sleeping._worker._max_audio_s = 0.0  # It takes no other job, nor the same one again.
        async with running(second) as waking:
            await expire_leases(waking)
            whole = await transcript(waking, job)
            first.hold.set()
            await until(lambda: sleeping._worker.running == 0)
            assert await transcript(waking, job) == whole


async def test_a_job_waits_while_its_model_is_unavailable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_module, "DEFER_S", 0.05)
    fake = fake_with_jobs(tmp_path)
    fake.failure = ModelUnavailable("the hub is gone")
    async with running(fake) as jobs:
        job = await submit(jobs)
        await until(lambda: bool(fake.windows) and jobs._worker.running == 0)
        waiting = (await jobs.store.get_many([job.job_id]))[job.job_id]
        assert (waiting.state, waiting.lost_workers) == (JobState.RUNNING, 0)
        assert waiting.deferred_since_s is not None
        fake.failure = None
        assert (await transcript(jobs, job)).text


async def test_a_model_that_stays_unavailable_fails_the_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_module, "GIVE_UP_S", -1.0)
    fake = fake_with_jobs(tmp_path)
    fake.failure = ModelUnavailable("the hub is gone")
    async with running(fake) as jobs:
        failed = await ended(jobs, await submit(jobs))
        assert failed.error is not None
        assert (failed.state, failed.error.code) == (JobState.FAILED, "model_unavailable")


async def test_a_failure_fails_the_job(tmp_path: Path) -> None:
    fake = fake_with_jobs(tmp_path)
    fake.failure = EngineError("A window failed.")
    async with running(fake) as jobs:
        failed = await ended(jobs, await submit(jobs))
        assert failed.error is not None
        assert (failed.error.code, failed.error.message) == ("engine_error", "A window failed.")


async def test_a_lost_upload_fails_the_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = fake_with_jobs(tmp_path)
    uploads = Uploads(tmp_path / "uploads")
    fake.failure = ModelUnavailable("the hub is gone")
    monkeypatch.setattr(worker_module, "DEFER_S", 0.5)
    async with running(fake) as jobs:
        job = await submit(jobs)
        await until(lambda: bool(fake.windows) and jobs._worker.running == 0)
        await uploads.remove([job.job_id])
        failed = await ended(jobs, job)
        assert failed.error is not None
        assert failed.error.code == "upload_lost"


async def test_the_worker_stops_when_the_server_shuts_down(tmp_path: Path) -> None:
    fake = HoldingService(tmp_path, 1)
    async with running(fake) as jobs:
        job = await submit(jobs)
        await until(lambda: len(fake.windows) > 1)
        fake.service.admission.close()
        await until(lambda: not jobs.is_running)
        assert (await jobs.store.get_many([job.job_id]))[job.job_id].state == JobState.QUEUED


async def test_many_short_jobs_run_together(tmp_path: Path) -> None:
    fake = fake_with_jobs(tmp_path)
    fake.hold.clear()
    async with running(fake) as jobs:
        for _ in range(20):
            await submit(jobs, media.wav(SPEECH[:16_000], 8_000))
        await until(lambda: len(fake.windows) == 20)


def test_results_are_kept_as_they_are() -> None:
    empty = Transcript((), 0.0, "first", "unknown", ("a warning",))
    assert unpack_transcript(pack_transcript(empty)) == empty


async def test_a_cancellation_is_not_lost_where_there_is_news_at_the_same_moment(tmp_path: Path) -> None:
    jobs = JobService.of(fake_with_jobs(tmp_path).service)
    for part in (jobs._worker, jobs.watcher):
        running = asyncio.ensure_future(part.run())
        await asyncio.sleep(0.2)
        part.wake()
        running.cancel()
        await asyncio.wait([running], timeout=5)
        assert running.cancelled()
    await jobs.store.close()
