"""What the tests of the worker share: processes with a worker, jobs, and what became of them."""

import io
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np

from serve_app.diarization.references import KnownSpeaker, pack_speakers
from serve_app.errors import StoreUnavailable
from serve_app.jobs.model import Job, JobState, NewJob, new_id
from serve_app.jobs.parts import WindowKey, unpack_transcript
from serve_app.jobs.request import JobRequest
from serve_app.jobs.service import JobService
from serve_app.settings import JobSettings, LimitSettings
from serve_app.transcript import Transcript
from testing import media
from testing.fake_service import FakeService
from testing.job_service import fake_with_jobs, working

SPEECH = np.concatenate([np.random.default_rng(n).normal(0, 0.1, 8_000 * n).astype(np.float32) for n in (32, 19, 24, 31, 20)])
LONG = media.wav(SPEECH, 8_000)
"""126 s, five windows."""

OWNER = "alice"


@asynccontextmanager
async def running(fake: FakeService, *, dies: bool = False) -> AsyncIterator[JobService]:
    """A process with a worker. If it `dies`, its leases are not handed back."""
    async with working(fake) as jobs:
        try:
            yield jobs
        finally:
            if dies:

                async def gone(*_: object) -> None:
                    raise StoreUnavailable

                jobs.store.hand_back = gone  # type: ignore[method-assign, assignment]


async def submit(jobs: JobService, data: bytes = LONG, known: Sequence[KnownSpeaker] = (), **asked: Any) -> Job:
    """`asked`: fields of a JobRequest."""
    fields: dict[str, Any] = {"model": "first", "rendering": {}, "knows_speakers": bool(known)} | asked
    request = JobRequest(**fields)
    new = NewJob(new_id("job"), OWNER, request.to_json(), len(data), 1000.0, audio_s=None)
    return (await jobs.create(new, io.BytesIO(data), pack_speakers(known)))[0]


async def ended(jobs: JobService, job: Job) -> Job:
    return await jobs.watcher.ended(job, 30)


async def transcript(jobs: JobService, job: Job) -> Transcript:
    assert (await ended(jobs, job)).state == JobState.COMPLETED
    return unpack_transcript(await jobs.store.result(OWNER, job.job_id))


async def undisturbed(folder: Path) -> tuple[Transcript, Counter[WindowKey]]:
    """The transcript of LONG, and the windows that were decoded for it."""
    fake = fake_with_jobs(folder)
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

    def __init__(self, folder: Path, decodes: int, **settings: Any) -> None:
        super().__init__(jobs=JobSettings(directory=folder), limits=LimitSettings(), **settings)
        self._decodes = decodes

    async def recognise(self, window: Any, lane: Any, job: Any) -> Any:
        if len(self.windows) >= self._decodes:
            self.hold.clear()
        return await super().recognise(window, lane, job)
