"""Jobs of several channels: resumed without decoding a window twice in any of them; what is stored keeps the channels."""

import asyncio
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from serve_app.jobs.parts import (
    FinalSegment,
    Part,
    WindowKey,
    pack_part,
    pack_transcript,
    unpack_part,
    unpack_transcript,
)
from serve_app.transcript import Segment, Token, Transcript, Word
from testing import media
from testing.job_service import fake_with_jobs
from testing.open_requests import until
from tests.jobs.workers import HoldingService, running, submit, transcript

CHANNELS = 3
LONG = media.wav(np.random.default_rng(0).normal(0, 0.1, (100 * 8_000, CHANNELS)), 8_000)
"""100 s, four windows a channel."""

TIMEOUT_S = 30.0


@pytest.mark.usefixtures("soon")
async def test_no_window_is_decoded_twice_in_any_channel(tmp_path: Path) -> None:
    whole = fake_with_jobs(tmp_path / "whole")
    async with running(whole) as jobs:
        expected = await transcript(jobs, await submit(jobs, LONG, multichannel=True))
    assert expected.channels == tuple(range(CHANNELS))
    assert {segment.channel for segment in expected.segments} == set(range(CHANNELS))
    windows = Counter(map(WindowKey.of, whole.windows))
    assert set(windows.values()) == {1}
    assert {key.channel for key in windows} == set(range(CHANNELS))

    first = HoldingService(tmp_path / "jobs", 5)
    async with running(first) as jobs:
        job = await submit(jobs, LONG, multichannel=True)

        async def saved() -> int:
            checkpoint = await jobs.store.checkpoint(job.job_id, 0)
            return sum(len(unpack_part(part).windows) for part in checkpoint.parts)

        async with asyncio.timeout(TIMEOUT_S):
            while await saved() < 5:  # noqa: ASYNC110  # the store tells nobody
                await asyncio.sleep(0.02)
        await until(lambda: len(first.windows) > 5)

    second = fake_with_jobs(tmp_path / "jobs")
    async with running(second) as jobs:
        assert await transcript(jobs, job) == expected
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
