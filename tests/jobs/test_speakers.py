"""Jobs with speakers: resumed with the same ones; without their diarizer; what is stored keeps the speakers."""

import asyncio
import json
from contextlib import aclosing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from serve_app.api import job_events
from serve_app.diarization.chunks import Chunk
from serve_app.diarization.protocol import Probabilities
from serve_app.diarization.references import KnownSpeaker, pack_speakers, unpack_speakers
from serve_app.errors import ModelUnavailable
from serve_app.jobs import transcription as transcription_module
from serve_app.jobs import worker as worker_module
from serve_app.jobs.model import Job
from serve_app.jobs.parts import (
    FinalSegment,
    WindowKey,
    pack_transcript,
    unpack_part,
    unpack_transcript,
)
from serve_app.jobs.service import JobService
from serve_app.settings import DiarizerSettings
from serve_app.transcript import Segment, Token, Transcript, Word
from testing import media
from testing.fake_service import FakeService
from testing.job_service import fake_with_jobs
from testing.local_diarizer import LocalDiarizer
from testing.open_requests import until
from testing.voices import conversation, tone
from tests.jobs.workers import OWNER, HoldingService, running, submit, transcript

TALK = media.wav(conversation([(n % 3, 5.0 + n % 4) for n in range(14)]).astype(np.float32) / 32768)
"""126 s, five windows."""

DIARIZERS = (DiarizerSettings(name="speakers", source="simulated"),)
TIMEOUT_S = 10.0


async def saved(jobs: JobService, job: Job, *, segments: int, windows: int = 0) -> set[WindowKey]:
    """Wait until the checkpoint has so many segments and windows; return the windows."""
    async with asyncio.timeout(TIMEOUT_S):
        while True:
            checkpoint = await jobs.store.checkpoint(job.job_id, 0)
            parts = [unpack_part(part) for part in checkpoint.parts]
            keys = {key for part in parts for key, _ in part.windows}
            if sum(len(part.segments) for part in parts) >= segments and len(keys) >= windows:
                return keys
            await asyncio.sleep(0.02)


class PacedDiarizer(LocalDiarizer):
    """Waits before each step, and does only so many."""

    def __init__(self, *, step_s: float = 0.0, steps: int | None = None) -> None:
        super().__init__()
        self._step_s, self._steps = step_s, steps

    async def step(self, chunk: Chunk, state: bytes | None) -> tuple[Probabilities, bytes]:
        await asyncio.sleep(self._step_s)
        if len(self.chunks) == self._steps:
            self.hold.clear()
        return await super().step(chunk, state)


def with_diarizer(folder: Path, diarizer: LocalDiarizer) -> FakeService:
    fake = fake_with_jobs(folder, diarizers=DIARIZERS)
    fake.service._diarizers = {"speakers": diarizer}
    return fake


@pytest.mark.usefixtures("soon")
async def test_a_job_that_goes_on_has_the_same_speakers(tmp_path: Path) -> None:
    asked: Any = {"diarizer": "speakers", "known": (KnownSpeaker("Ann", tone(1, 3.0)),)}
    whole = fake_with_jobs(tmp_path / "whole", diarizers=DIARIZERS)
    async with running(whole) as jobs:
        expected = await transcript(jobs, await submit(jobs, TALK, **asked))
    assert expected.speakers == ("A", "Ann", "B")

    first = HoldingService(tmp_path / "jobs", 3, diarizers=DIARIZERS)
    async with running(first) as jobs:
        job = await submit(jobs, TALK, **asked)
        await saved(jobs, job, segments=3)

    second = fake_with_jobs(tmp_path / "jobs", diarizers=DIARIZERS)
    async with running(second) as jobs:
        assert await transcript(jobs, job) == expected
    assert len(second.windows) == len(whole.windows) - 3


@pytest.mark.usefixtures("soon")
async def test_a_diarizer_that_hears_known_windows_again_is_no_stall(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with running(with_diarizer(tmp_path, PacedDiarizer(steps=24))) as jobs:
        job = await submit(jobs, TALK, diarizer="speakers")
        await saved(jobs, job, segments=13)
    monkeypatch.setattr(transcription_module, "STALL_S", 0.5)
    async with running(with_diarizer(tmp_path, PacedDiarizer(step_s=0.05))) as jobs, asyncio.timeout(TIMEOUT_S):
        assert (await transcript(jobs, job)).speakers == ("A", "B", "C")


@pytest.mark.usefixtures("soon")
async def test_jobs_without_speakers_do_not_wait_for_a_diarizer(tmp_path: Path) -> None:
    fake = fake_with_jobs(tmp_path / "jobs", diarizers=DIARIZERS)
    fake.diarizer.unavailable = ModelUnavailable("It is away.", param="diarize")
    async with running(fake) as jobs:
        waiting = await submit(jobs, TALK, diarizer="speakers")
        async with asyncio.timeout(TIMEOUT_S):
            while not fake.diarizer.recordings:  # noqa: ASYNC110  # nobody tells
                await asyncio.sleep(0.02)
        optional = await transcript(jobs, await submit(jobs, TALK, diarizer="speakers", diarizer_is_optional=True))
        plain = await transcript(jobs, await submit(jobs, TALK))
        assert optional.segments == plain.segments
        assert optional.warnings == ("The speakers are unknown: It is away.",)
        assert not (await jobs.store.status("alice", waiting.job_id)).job.state.is_ended


@pytest.mark.usefixtures("soon")
@pytest.mark.parametrize("others", [(), (DiarizerSettings(name="other", source="simulated"),)], ids=["none", "another"])
async def test_a_job_waits_for_a_diarizer_that_is_not_configured(
    tmp_path: Path, others: tuple[DiarizerSettings, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker_module, "DEFER_S", 0.02)
    async with running(fake_with_jobs(tmp_path, diarizers=others)) as jobs:
        waiting = await submit(jobs, TALK, diarizer="speakers")
        optional = await transcript(jobs, await submit(jobs, TALK, diarizer="speakers", diarizer_is_optional=True))
        plain = await transcript(jobs, await submit(jobs, TALK))
        assert optional.segments == plain.segments
        assert [warning.partition(":")[0] for warning in optional.warnings] == ["The speakers are unknown"]
        deferred = (await jobs.store.status("alice", waiting.job_id)).job
        assert (deferred.state.is_ended, deferred.deferred_since_s is None) == (False, False)
    async with running(fake_with_jobs(tmp_path, diarizers=DIARIZERS)) as jobs:
        assert (await transcript(jobs, waiting)).speakers == ("A", "B", "C")


class Reader:
    """Reads the events of a job, and goes on where it was."""

    def __init__(self) -> None:
        self.segments: list[tuple[str, str | None]] = []
        """Text and speaker of those that hold."""
        self.restarts = 0
        self._last_id = ""

    async def read(self, jobs: JobService, job: Job) -> None:
        job = (await jobs.store.status(OWNER, job.job_id)).job
        async with aclosing(job_events.events(jobs, job, job_events.Position.of(self._last_id))) as events:
            async for event in events:
                fields = dict(line.split(": ", 1) for line in event.decode().strip().splitlines())
                self._last_id = fields.get("id", self._last_id)
                if fields.get("event") == "restart":
                    self.segments, self.restarts = [], self.restarts + 1
                elif fields.get("event") == "segment":
                    data = json.loads(fields["data"])
                    self.segments.append((data["text"], data.get("speaker")))


@pytest.mark.usefixtures("soon")
@pytest.mark.parametrize("is_away_first", [True, False], ids=["away, then there", "there, then away"])
@pytest.mark.parametrize("is_saved", [True, False], ids=["saved", "ended at once"])
async def test_events_begin_again_where_an_optional_diarizer_was_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_away_first: bool, is_saved: bool
) -> None:
    away, reader = ModelUnavailable("It is away.", param="diarize"), Reader()
    first = HoldingService(tmp_path, 3, diarizers=DIARIZERS)
    first.diarizer.unavailable = away if is_away_first else None
    async with running(first) as jobs:
        job = await submit(jobs, TALK, diarizer="speakers", diarizer_is_optional=True)
        reading = asyncio.ensure_future(reader.read(jobs, job))
        known = await saved(jobs, job, segments=1, windows=3)
        await until(lambda: bool(reader.segments))
    await reading
    if not is_saved:
        monkeypatch.setattr(transcription_module, "SAVE_S", 60.0)
    second = HoldingService(tmp_path, 1 if is_saved else 1000, diarizers=DIARIZERS)
    second.diarizer.unavailable = None if is_away_first else away
    async with running(second) as jobs:
        if is_saved:
            reading = asyncio.ensure_future(reader.read(jobs, job))
            await until(lambda: reader.restarts == 1 and bool(reader.segments))
            second._decodes = 1000
            second.hold.set()
            await reading
        result = await transcript(jobs, job)
        if not is_saved:
            await reader.read(jobs, job)
    assert reader.restarts == 1
    assert reader.segments == [(segment.text, segment.speaker) for segment in result.segments]
    assert bool(result.speakers) == is_away_first
    assert known.isdisjoint(map(WindowKey.of, second.windows))


def test_speakers_are_stored() -> None:
    segments = tuple(
        Segment(n, "One.", n, n + 1, (Word("One.", n, n + 1, 0.9),), (Token("▁One.", 1, n, n + 1, 0.9),), speaker=name)
        for n, name in enumerate(["A", "Ann", None])
    )
    whole = Transcript(segments, 5.0, "first", "en")
    assert unpack_transcript(pack_transcript(whole)) == whole
    assert whole.speakers == ("A", "Ann")
    # As earlier versions have stored them.
    assert FinalSegment(0.0, 1.0, "One.", None).speaker is None


@pytest.mark.parametrize("lengths", [(), (32_000,), (160_000, 32_000, 50_001)])
def test_known_speakers_are_stored(lengths: tuple[int, ...]) -> None:
    rng = np.random.default_rng(0)
    speakers = [KnownSpeaker(f"Zoë {n}", rng.integers(-32768, 32768, n).astype(np.int16)) for n in lengths]
    again = unpack_speakers(pack_speakers(speakers))
    assert [name for name, _ in again] == [name for name, _ in speakers]
    assert all(np.array_equal(found.reference, sent.reference) for found, sent in zip(again, speakers, strict=True))
