"""No word is deleted, repeated or reordered at a seam: hours of audio with a simulated recogniser, minutes with the real one."""

import asyncio
import random
from bisect import bisect_left, bisect_right
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings

from serve_app.chunking import Planner
from serve_app.engine.parakeet import ParakeetEngine
from serve_app.events import Done
from serve_app.pipeline import Recognise, transcribe
from serve_app.transcript import Token
from serve_app.window import FRAME_SAMPLES, SAMPLE_RATE, Samples, Window
from testing.decoding import windows_of
from testing.digit_strings import Bank
from testing.long_recordings import CONDITIONS, Recording, compose_long
from testing.seam_accuracy import in_batches, transcribe_long
from testing.simulated_windows import SPOKEN, Said, at, quick, say, simulate, window_settings

THREE_HOURS = at(3 * 3600)
"""Length of a long recording, samples."""

BLOCK = at(20)
"""Length of a block of audio, samples."""


async def blocks_of(said: list[Said], length: int) -> AsyncGenerator[Samples, None]:
    """int16 blocks of noise that is loud during words and faint between them."""
    loud = np.random.default_rng(0).normal(0, 3000, BLOCK).astype(np.int16)
    near = 0
    for first in range(0, length, BLOCK):
        block = loud[: min(BLOCK, length - first)] // 1000
        while near < len(said) and said[near].start < first + BLOCK:
            part = slice(max(0, said[near].start - first), said[near].end - first)
            block[part] = loud[: len(block)][part]
            if said[near].end > first + BLOCK:
                break
            near += 1
        yield block


async def plan(said: list[Said], length: int, window_s: float, overlap_s: float) -> list[Window]:
    """The windows without their audio, so that three hours of audio are not held in memory."""
    planner, windows = Planner(window_s, overlap_s), list[Window]()
    async with aclosing(blocks_of(said, length)) as blocks:
        async for block in blocks:
            windows += (_without_audio(window) for window in planner.push(block))
    return windows + [_without_audio(window) for window in planner.finish()]


def _without_audio(window: Window) -> Window:
    return Window(window.index, window.start_sample, np.broadcast_to(np.int16(0), len(window.samples)))


def oracle(said: list[Said], windows: list[Window], overlap_s: float, jitter: int) -> Recognise:
    """A simulated recogniser: the true words of a window, with errors at its edges and times that differ by up to `jitter`."""
    starts, ends = [word.start for word in said], [word.end for word in said]

    async def recognise(window: Window) -> list[Token]:
        # Only the words of this window and its neighbours matter. Using all words would take quadratic time.
        k = window.index
        before, after = windows[max(0, k - 1) : k], windows[k + 1 : k + 2]
        near = [*before, window, *after]
        words = said[bisect_right(ends, near[0].start_sample) : bisect_left(starts, near[-1].end_sample)]
        tokens = simulate(near, len(before), words, at(overlap_s), random.Random(window.start_sample), jitter)
        return [token.moved(-window.start_sample) for token in tokens]

    return recognise


# In real windows, the times of a word differ by up to three frames. For words without a pause, the jitter is one frame: with two
# frames in either direction, the two times of a word could differ by more than the distance between two words.
@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "pause_s", "jitter_frames"),
    [
        pytest.param([*SPOKEN], (0.03, 0.3), 2, id="speech"),
        pytest.param([*SPOKEN], (0.0, 0.0), 1, id="dense"),
        pytest.param(["seven", "two"], (0.0, 0.15), 1, id="repeats"),
        pytest.param([*SPOKEN], (0.0, 15.0), 2, id="five-minute-silences"),
    ],
)
@pytest.mark.parametrize(("window_s", "overlap_s"), [(32, 2), (10, 1.5), (300, 10)])
async def test_three_hours_are_merged_without_a_word_error(
    words: list[str], pause_s: tuple[float, float], jitter_frames: int, window_s: float, overlap_s: float
) -> None:
    said, jitter = say(THREE_HOURS, words, pause_s, seed=1), jitter_frames * FRAME_SAMPLES
    windows = await plan(said, THREE_HOURS, window_s, overlap_s)
    recognise = oracle(said, windows, overlap_s, jitter)
    audio = windows_of(blocks_of(said, THREE_HOURS), window_s, overlap_s)
    flow = transcribe(audio, recognise, overlap_s=overlap_s, max_in_flight=lambda: 4)
    async with aclosing(flow) as events:
        done = [event async for event in events][-1]
    assert isinstance(done, Done)
    merged = [word for segment in done.segments for word in segment.words]
    assert [w.text.strip(".").lower() for w in merged] == [w.word for w in said]
    errors = [abs(round(w.start_s * SAMPLE_RATE) - true.start) for w, true in zip(merged, said, strict=True)]
    assert max(errors) <= jitter


@pytest.fixture(scope="module")
def recording(bank: Bank) -> Recording:
    """Two and a half minutes of speech. The last half minute has no pauses. The faintest noise keeps out digital silence, which
    would be filled with other noise in each plan."""
    usual, dense = compose_long(bank, 120, seed=3), compose_long(bank, 30, seed=4, condition=CONDITIONS["no pauses"])
    length = len(usual.samples)
    later = (replace(w, start_sample=w.start_sample + length, end_sample=w.end_sample + length) for w in dense.words)
    samples = np.concatenate([usual.samples, dense.samples])
    noise = np.random.default_rng(0).integers(-1, 2, len(samples), np.int16)
    return Recording(np.clip(samples, -32767, 32766) + noise, (*usual.words, *later))


@pytest.mark.slow
@settings(quick, max_examples=8, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(sizes=window_settings(5, 60, 1.5, 8))
def test_any_plan_gives_the_same_words(engine: ParakeetEngine, recording: Recording, sizes: tuple[float, float]) -> None:
    """The real model, with windows from a few seconds to a minute."""
    recognised = asyncio.run(transcribe_long(in_batches(engine), recording.samples, *sizes))
    assert [w.text.strip(".").lower() for w in recognised] == [w.text.strip(".").lower() for w in recording.words]
