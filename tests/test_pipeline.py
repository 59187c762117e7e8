"""The pipeline with an oracle instead of a model: the oracle returns the true words of each window."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing

import numpy as np
import pytest

from serve_app.errors import EngineError
from serve_app.events import Done, Event, Progress, SegmentFinal
from serve_app.pipeline import Recognise, transcribe
from serve_app.transcript import Token
from serve_app.window import FRAME_SAMPLES, SAMPLE_RATE, Samples, Window
from testing import virtual_time
from testing.decoding import windows_of

WORD_EVERY_S = 0.8
"""Time between the starts of two words, seconds."""


def spoken_words(duration_s: float) -> list[Token]:
    """A different word every WORD_EVERY_S. A full stop follows every tenth word."""
    words = []
    for n in range(int(duration_s / WORD_EVERY_S)):
        start = int((n * WORD_EVERY_S + 0.2) * SAMPLE_RATE) // FRAME_SAMPLES * FRAME_SAMPLES
        words.append(Token(f"▁word{n}", n, start, start + 4 * FRAME_SAMPLES, 0.9))
        if n % 10 == 9:
            words.append(Token(".", 9999, start + 4 * FRAME_SAMPLES, start + 4 * FRAME_SAMPLES, 0.9))
    return words


def oracle(words: list[Token]) -> Recognise:
    async def recognise(window: Window) -> list[Token]:
        await asyncio.sleep(0)
        inside = [w for w in words if w.start_sample >= window.start_sample and w.end_sample <= window.end_sample]
        return [w.moved(-window.start_sample) for w in inside]

    return recognise


async def blocks(duration_s: float, block_s: float = 5.0) -> AsyncGenerator[Samples, None]:
    left = round(duration_s * SAMPLE_RATE)
    while left > 0:
        size = min(left, round(block_s * SAMPLE_RATE))
        yield np.zeros(size, dtype=np.int16)
        left -= size


def windows(duration_s: float) -> AsyncGenerator[Window, None]:
    return windows_of(blocks(duration_s), 30.0, 2.0)


async def run(duration_s: float, recognise: Recognise, *, max_in_flight: int = 4) -> list[Event]:
    flow = transcribe(windows(duration_s), recognise, overlap_s=2.0, max_in_flight=lambda: max_in_flight)
    return [event async for event in flow]


@pytest.mark.parametrize("duration_s", [0.5, 10, 29.9, 30, 31, 100, 307.3])
async def test_every_word_is_returned_once_at_its_true_time(duration_s: float) -> None:
    words = spoken_words(duration_s)
    events = await run(duration_s, oracle(words))
    done = events[-1]
    assert isinstance(done, Done)
    returned = [(word.text, word.start_s) for segment in done.segments for word in segment.words]
    true = [(w.piece[1:] + ("." if n % 10 == 9 else ""), w.start_sample / SAMPLE_RATE) for n, w in enumerate(_whole(words))]
    assert returned == true
    assert done.duration_s == pytest.approx(duration_s)


def _whole(words: list[Token]) -> list[Token]:
    return [w for w in words if w.piece != "."]


async def test_segments_are_sent_before_later_windows_are_recognised() -> None:
    events = await run(200, oracle(spoken_words(200)), max_in_flight=1)
    kinds = [type(event) for event in events]
    assert kinds.index(SegmentFinal) < len(kinds) - 3
    first_segment = kinds.index(SegmentFinal)
    assert Progress in kinds[first_segment + 1 :]
    done = events[-1]
    assert isinstance(done, Done)
    assert tuple(e.segment for e in events if isinstance(e, SegmentFinal)) == done.segments


async def test_progress_counts_up_to_all_windows() -> None:
    progress = [e for e in await run(200, oracle([])) if isinstance(e, Progress)]
    assert [p.windows_done for p in progress] == list(range(1, len(progress) + 1))
    assert progress[-1].windows_done == progress[-1].windows_planned
    assert progress[-1].done_s == 200


async def test_windows_in_flight_reach_the_limit_but_do_not_exceed_it() -> None:
    running = max_running = 0

    async def recognise(window: Window) -> list[Token]:
        nonlocal running, max_running
        running += 1
        max_running = max(max_running, running)
        await asyncio.sleep(0.05)
        running -= 1
        return []

    await run(400, recognise, max_in_flight=3)
    assert max_running == 3


def test_the_limit_of_windows_in_flight_may_change_during_a_job() -> None:
    started = running = max_running = max_running_later = 0

    async def recognise(window: Window) -> list[Token]:
        nonlocal started, running, max_running, max_running_later
        started += 1
        running += 1
        max_running = max(max_running, running)
        if window.index > 14:
            max_running_later = max(max_running_later, running)
        await asyncio.sleep(0.02)
        running -= 1
        return []

    async def run_job() -> None:
        flow = transcribe(windows(600), recognise, overlap_s=2.0, max_in_flight=lambda: 6 if started < 12 else 2)
        async for _ in flow:
            pass

    virtual_time.run(run_job())
    assert (max_running, max_running_later) == (6, 2)


def all_but_first_hang(stopped: list[int]) -> Recognise:
    """Windows after the first take a minute. When they are cancelled, their index is added to `stopped`."""

    async def recognise(window: Window) -> list[Token]:
        try:
            await asyncio.sleep(0.05 if window.index == 0 else 60)
        except asyncio.CancelledError:
            stopped.append(window.index)
            raise
        return []

    return recognise


def test_a_failed_window_fails_the_job_and_cancels_the_other_windows() -> None:
    stopped: list[int] = []
    slow = all_but_first_hang(stopped)

    async def recognise(window: Window) -> list[Token]:
        if window.index == 1:
            await asyncio.sleep(0.1)
            raise EngineError("broken")
        return await slow(window)

    with pytest.raises(EngineError, match="broken"):
        virtual_time.run(run(200, recognise, max_in_flight=5))
    assert stopped == [2, 3, 4, 5]


async def test_closing_the_pipeline_early_cancels_the_windows_in_flight() -> None:
    stopped: list[int] = []

    flow = transcribe(windows(200), all_but_first_hang(stopped), overlap_s=2.0, max_in_flight=lambda: 3)
    async for _ in flow:
        break
    await flow.aclose()
    assert stopped == [1, 2]


async def test_progress_is_sent_for_a_finished_window_while_the_audio_stalls() -> None:
    async def stalling() -> AsyncGenerator[Samples, None]:
        async for block in blocks(70):
            yield block
        await asyncio.sleep(60)

    flow = transcribe(windows_of(stalling(), 30.0, 2.0), oracle([]), overlap_s=2.0, max_in_flight=lambda: 3)
    async with asyncio.timeout(10), aclosing(flow):
        async for event in flow:
            if isinstance(event, Progress) and event.windows_done == 2:
                return


async def test_no_audio_gives_an_empty_transcript() -> None:
    assert await run(0, oracle([])) == [Done((), 0.0)]
