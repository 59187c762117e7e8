"""What the tests of the worker share: processes with a worker, jobs, and what became of them."""

import asyncio
import io
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from serve_app.errors import StoreUnavailable
from serve_app.jobs import service as service_module
from serve_app.jobs import transcription as transcription_module
from serve_app.jobs import worker as worker_module
from serve_app.jobs.model import Job, JobState, NewJob, new_id
from serve_app.jobs.parts import WindowKey, unpack_transcript
from serve_app.jobs.request import JobRequest
from serve_app.jobs.service import JobService
from serve_app.settings import JobSettings, LimitSettings
from serve_app.tasks import stop
from serve_app.transcript import Transcript
from testing import media
from testing.fake_service import FakeService

SPEECH = np.concatenate([np.random.default_rng(n).normal(0, 0.1, 8_000 * n).astype(np.float32) for n in (32, 19, 24, 31, 20)])
LONG = media.wav(SPEECH, 8_000)
"""126 s, five windows."""

OWNER = "alice"


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is done now and then is done often."""
    monkeypatch.setattr(transcription_module, "SAVE_S", 0.02)
    monkeypatch.setattr(transcription_module, "RENEW_S", 0.05)
    monkeypatch.setattr(transcription_module, "RETRY_S", 0.02)
    monkeypatch.setattr(worker_module, "RETRY_S", 0.02)
    monkeypatch.setattr(service_module, "SWEEP_S", 0.05)


def fake_in(folder: Path, **settings: Any) -> FakeService:
    return FakeService(jobs=JobSettings(directory=folder), limits=LimitSettings(), **settings)


@asynccontextmanager
async def running(fake: FakeService, *, dies: bool = False) -> AsyncIterator[JobService]:
    """A process with a worker. If it `dies`, its leases are not handed back."""
    jobs = JobService.of(fake.service)
    task = asyncio.ensure_future(jobs.run())
    try:
        yield jobs
    finally:
        if dies:

            async def gone(*_: object) -> None:
                raise StoreUnavailable

            jobs.store.hand_back = gone  # type: ignore[method-assign, assignment]
        await stop(task)
        await jobs.store.close()


async def submit(jobs: JobService, data: bytes = LONG, model: str = "first", keywords: tuple[str, ...] = ()) -> Job:
    request = JobRequest(model=model, keywords=keywords, rendering={})
    new = NewJob(new_id("job"), OWNER, request.to_json(), len(data), 1000.0, audio_s=None)
    return (await jobs.create(new, io.BytesIO(data)))[0]


async def ended(jobs: JobService, job: Job) -> Job:
    return await jobs.watcher.ended(job, 30)


async def transcript(jobs: JobService, job: Job) -> Transcript:
    assert (await ended(jobs, job)).state == JobState.COMPLETED
    return unpack_transcript(await jobs.store.result(OWNER, job.job_id))


async def undisturbed(folder: Path) -> tuple[Transcript, Counter[WindowKey]]:
    """The transcript of LONG, and the windows that were decoded for it."""
    fake = fake_in(folder)
    async with running(fake) as jobs:
        return await transcript(jobs, await submit(jobs)), Counter(map(WindowKey.of, fake.windows))


async def expire_leases(jobs: JobService) -> None:
    """The time of all leases passes, and nobody renews one meanwhile."""
    await jobs.store._database.write(  # type: ignore[attr-defined]
        lambda transaction: transaction.rows("UPDATE jobs SET lease = 'lost', lease_until_s = 0 WHERE state = 'running'")
    )
    await jobs.store.sweep()


class HoldingService(FakeService):
    """Decodes only the first windows; the others wait."""

    def __init__(self, decodes: int, **settings: Any) -> None:
        super().__init__(**settings)
        self._decodes = decodes

    async def recognise(self, window: Any, lane: Any, job: Any) -> Any:
        if len(self.windows) >= self._decodes:
            self.hold.clear()
        return await super().recognise(window, lane, job)
