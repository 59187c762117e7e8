"""Jobs of several channels: resumed without decoding a window twice in any of them; what is stored keeps the channels."""

import asyncio
import io
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from serve_app.jobs import transcription
from serve_app.jobs.model import Job, JobState, NewJob, new_id
from serve_app.jobs.parts import (
    FinalSegment,
    Part,
    WindowKey,
    pack_part,
    pack_transcript,
    unpack_part,
    unpack_transcript,
)
from serve_app.jobs.request import JobRequest
from serve_app.jobs.service import JobService
from serve_app.settings import JobSettings, LimitSettings
from serve_app.tasks import stop
from serve_app.transcript import Segment, Token, Transcript, Word
from serve_app.window import Job as RecordingJob
from serve_app.window import Lane, Window
from testing import media
from testing.fake_service import FakeService
from testing.open_requests import until

CHANNELS = 3
LONG = media.wav(np.random.default_rng(0).normal(0, 0.1, (100 * 8_000, CHANNELS)), 8_000)
"""100 s, four windows a channel."""

TIMEOUT_S = 30.0


class HoldingService(FakeService):
    """Decodes only the first windows; the others wait."""

    def __init__(self, folder: Path, decodes: int = 10**6) -> None:
        super().__init__(jobs=JobSettings(directory=folder), limits=LimitSettings())
        self._decodes = decodes

    async def recognise(self, window: Window, lane: Lane, job: RecordingJob) -> list[Token]:
        if len(self.windows) >= self._decodes:
            self.hold.clear()
        return await super().recognise(window, lane, job)


async def transcript(jobs: JobService, job: Job) -> Transcript:
    assert (await jobs.watcher.ended(job, TIMEOUT_S)).state == JobState.COMPLETED
    return unpack_transcript(await jobs.store.result("", job.job_id))


async def submit(jobs: JobService) -> Job:
    request = JobRequest(model="first", rendering={}, multichannel=True)
    new = NewJob(new_id("job"), "", request.to_json(), len(LONG), 1000.0, audio_s=None)
    return (await jobs.create(new, io.BytesIO(LONG)))[0]


async def test_no_window_is_decoded_twice_in_any_channel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transcription, "SAVE_S", 0.02)
    whole = HoldingService(tmp_path / "whole")
    jobs = JobService.of(whole.service)
    running = asyncio.ensure_future(jobs.run())
    expected = await transcript(jobs, await submit(jobs))
    await stop(running)
    await jobs.store.close()
    assert expected.channels == tuple(range(CHANNELS))
    assert {segment.channel for segment in expected.segments} == set(range(CHANNELS))
    windows = Counter(map(WindowKey.of, whole.windows))
    assert set(windows.values()) == {1}
    assert {key.channel for key in windows} == set(range(CHANNELS))

    first = HoldingService(tmp_path / "jobs", decodes=5)
    jobs = JobService.of(first.service)
    running = asyncio.ensure_future(jobs.run())
    job = await submit(jobs)

    async def saved() -> int:
        checkpoint = await jobs.store.checkpoint(job.job_id, 0)
        return sum(len(unpack_part(part).windows) for part in checkpoint.parts)

    async with asyncio.timeout(TIMEOUT_S):
        while await saved() < 5:  # noqa: ASYNC110  # the store tells nobody
            await asyncio.sleep(0.02)
    await until(lambda: len(first.windows) > 5)
    await stop(running)
    await jobs.store.close()

    second = HoldingService(tmp_path / "jobs")
    jobs = JobService.of(second.service)
    running = asyncio.ensure_future(jobs.run())
    assert await transcript(jobs, job) == expected
    await stop(running)
    await jobs.store.close()
    assert Counter(map(WindowKey.of, first.windows[:5])) + Counter(map(WindowKey.of, second.windows)) == windows


def test_channels_are_stored() -> None:
    segments = tuple(
        Segment(n, "One.", n, n + 1, (Word("One.", n, n + 1, 0.9),), (Token("▁One.", 1, n, n + 1, 0.9),), channel=n % 2)
        for n in range(4)
    )
    whole = Transcript(segments, 5.0, "first", "en", ("damaged",), (0, 1))
    assert unpack_transcript(pack_transcript(whole)) == whole
    mono = Transcript(tuple(Segment(s.index, s.text, s.start_s, s.end_s, s.words, s.tokens) for s in segments), 5.0, "m", "en")
    assert unpack_transcript(pack_transcript(mono)) == mono
    part = Part(((WindowKey(0, 100, False, 1), (Token("▁a", 1, 0, 1, 0.5),)),), (FinalSegment(0.0, 1.0, "One.", 1),))
    assert unpack_part(pack_part(part)) == part
