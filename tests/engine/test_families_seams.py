"""RNNT, CTC and hybrid models on whole flows: no word is lost or doubled at a seam or in a live stream."""

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from pathlib import Path

import numpy as np
import pytest

from serve_app.engine.parakeet import ParakeetEngine
from serve_app.events import SegmentFinal
from serve_app.live.endpointing import VadEvent
from serve_app.live.session import LiveSession
from serve_app.pipeline import Commit, transcribe_live
from serve_app.settings import LiveSettings
from serve_app.transcript import Token
from serve_app.window import SAMPLE_RATE, Samples, Window
from testing.digit_strings import Bank
from testing.heads import Family
from testing.long_recordings import Recording, compose_long
from testing.seam_accuracy import in_batches, transcribe_long

pytestmark = pytest.mark.slow

MAX_START_ERROR_S = 0.12
"""Maximum median error of the start of a word, seconds. It is 0.04 to 0.08, with encoder frames of 0.08 s."""


@pytest.fixture(
    scope="module",
    params=[("rnnt", "auto"), ("ctc", "auto"), ("hybrid_rnnt_ctc", "ctc"), ("hybrid_tdt_ctc", "transducer")],
    ids=" ".join,
)
def engine(request: pytest.FixtureRequest, family_file: Callable[[Family], Path]) -> ParakeetEngine:
    family, decoder = request.param
    return ParakeetEngine.load(family_file(family), device="cpu", precision="fp32", decoder=decoder)


@pytest.fixture(scope="module")
def recording(bank: Bank) -> Recording:
    return compose_long(bank, 120, seed=3)


def plain(words: list[str]) -> list[str]:
    return [word.strip(".").lower() for word in words]


@pytest.mark.parametrize(("window_s", "overlap_s"), [(8.0, 2.0), (32.0, 2.0)])
def test_no_word_is_lost_or_doubled_at_a_seam(
    engine: ParakeetEngine, recording: Recording, window_s: float, overlap_s: float
) -> None:
    words = asyncio.run(transcribe_long(in_batches(engine), recording.samples, window_s, overlap_s))
    assert plain([w.text for w in words]) == plain([w.text for w in recording.words])
    errors_s = [abs(w.start_s - true.start_sample / SAMPLE_RATE) for w, true in zip(words, recording.words, strict=True)]
    assert np.median(errors_s) <= MAX_START_ERROR_S


class AlwaysSpeech:
    """In place of the VAD: the utterance ends with the audio."""

    def __init__(self) -> None:
        self.possible_speech_until = 0

    async def push(self, block: Samples) -> list[VadEvent]:
        begins = [VadEvent(True, 0, 0)] if self.possible_speech_until == 0 else []
        self.possible_speech_until += len(block)
        return begins


def test_a_live_stream_has_the_words_of_the_file(engine: ParakeetEngine, recording: Recording) -> None:
    samples, live = recording.samples[: 40 * SAMPLE_RATE], LiveSettings()

    async def recognise(window: Window) -> list[Token]:
        return engine.transcribe([window.samples])[0]

    async def audio() -> AsyncGenerator[Samples | Commit, None]:
        for start in range(0, len(samples), SAMPLE_RATE // 2):
            yield samples[start : start + SAMPLE_RATE // 2]

    async def words() -> list[str]:
        found = list[str]()
        flow = transcribe_live(audio(), recognise, AlwaysSpeech(), LiveSession(live.windows), max_backlog=SAMPLE_RATE)
        async with aclosing(flow):
            async for event in flow:
                if isinstance(event, SegmentFinal):
                    found += [word.text for word in event.segment.words]
        return found

    spoken = [w.text for w in recording.words if w.end_sample <= len(samples)]
    # The last word may be cut off.
    assert plain(asyncio.run(words()))[: len(spoken)] == plain(spoken)
