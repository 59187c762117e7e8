"""The pipeline with several channels and an oracle instead of a model: order, progress, failures, and what is held."""

import asyncio
import random
from collections.abc import AsyncGenerator
from contextlib import aclosing
from itertools import pairwise

import numpy as np
import pytest

from serve_app.chunking import channel_windows
from serve_app.errors import EngineError
from serve_app.events import Done, Event, Progress, SegmentFinal
from serve_app.joining import Channels, joiner
from serve_app.pipeline import Recognise, transcribe
from serve_app.transcript import Token
from serve_app.window import FRAME_SAMPLES, SAMPLE_RATE, Window

CUT = (30.0, 2.0)


def said(channels: int, duration_s: float, seed: int) -> list[list[Token]]:
    """Different words of each channel, in turns, with overlaps and long silences; a full stop ends most of the turns."""
    rng = random.Random(seed)
    words: list[list[Token]] = []
    for channel in range(channels):
        words.append([])
        at_s = rng.uniform(0, 20)
        while at_s < duration_s - 1:
            for _ in range(rng.randint(1, 12)):
                start = round(at_s * SAMPLE_RATE) // FRAME_SAMPLES * FRAME_SAMPLES
                if start / SAMPLE_RATE > duration_s - 1:
                    break
                words[-1].append(Token(f"▁c{channel}n{len(words[-1])}", 0, start, start + 4 * FRAME_SAMPLES, 0.9))
                at_s += rng.choice([0.4, 0.6, 0.9])
            if rng.random() < 0.8 and words[-1]:
                words[-1][-1] = words[-1][-1]._replace(piece=words[-1][-1].piece + ".")
            at_s += rng.choice([1.0, 5.0, 60.0])
    return words


def oracle(words: list[list[Token]]) -> Recognise:
    async def recognise(window: Window) -> list[Token]:
        for _ in range(window.start_sample * 7919 % 5):
            await asyncio.sleep(0)
        inside = [w for w in words[window.channel] if w.start_sample >= window.start_sample and w.end_sample <= window.end_sample]
        return [w.moved(-window.start_sample) for w in inside]

    return recognise


async def windows(channels: int, duration_s: float) -> AsyncGenerator[Window, None]:
    block = np.zeros((channels, 5 * SAMPLE_RATE), np.int16)
    for window in channel_windows((block for _ in range(round(duration_s / 5))), *CUT):
        yield window


async def run(channels: int, duration_s: float, recognise: Recognise) -> list[Event]:
    flow = transcribe(
        windows(channels, duration_s), recognise, overlap_s=CUT[1], max_in_flight=lambda: 4, channels=Channels(lambda: channels)
    )
    return [event async for event in flow]


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("channels", [1, 2, 5])
async def test_every_word_once_on_its_channel_in_the_order_of_time(channels: int, seed: int) -> None:
    words = said(channels, 400, seed)
    events = await run(channels, 400, oracle(words))
    segments = [event.segment for event in events if isinstance(event, SegmentFinal)]
    done = events[-1]
    assert isinstance(done, Done)
    assert (done.segments, done.duration_s) == (tuple(segments), 400)
    assert [segment.index for segment in segments] == list(range(len(segments)))
    assert all(one.start_s <= two.start_s for one, two in pairwise(segments))
    for channel in range(channels):
        own = [segment for segment in segments if segment.channel == channel]
        assert [token for segment in own for token in segment.tokens] == words[channel]


async def test_one_channel_has_the_segments_of_a_mix() -> None:
    words = said(1, 400, 3)
    one = await run(1, 400, oracle(words))
    mixed = [e async for e in transcribe(windows(1, 400), oracle(words), overlap_s=CUT[1], max_in_flight=lambda: 4)]
    for event, other in zip(*([e.segment for e in each if isinstance(e, SegmentFinal)] for each in (one, mixed)), strict=True):
        assert (event.text, event.start_s, event.channel, other.channel) == (other.text, other.start_s, 0, None)


async def test_progress_is_that_of_the_last_channel_and_never_goes_back() -> None:
    progress = [event for event in await run(3, 400, oracle(said(3, 400, 0))) if isinstance(event, Progress)]
    assert [event.windows_done for event in progress] == list(range(1, len(progress) + 1))
    assert [event.done_s for event in progress[:2]] == [0, 0]
    assert all(one.done_s <= two.done_s for one, two in pairwise(progress))
    assert progress[-1].done_s == 400


async def test_text_is_sent_while_the_rest_is_still_at_work() -> None:
    """Also if a channel falls silent for good, in the middle of a sentence."""
    words = said(2, 1000, 1)
    words[1] = [Token("▁Well", 0, SAMPLE_RATE, 2 * SAMPLE_RATE, 0.9)]
    done_s = 0.0
    for event in await run(2, 1000, oracle(words)):
        if isinstance(event, Progress):
            done_s = event.done_s
        elif isinstance(event, SegmentFinal) and done_s < 1000:
            # A window, and the pause that ends a segment.
            assert event.segment.end_s >= done_s - 2 * CUT[0]


async def test_a_failed_window_fails_all_channels() -> None:
    stopped: list[int] = []
    waiting = asyncio.Semaphore(0)

    async def recognise(window: Window) -> list[Token]:
        if window.index == 0:
            return []
        if (window.channel, window.index) == (0, 1):
            await waiting.acquire()
            raise EngineError("broken")
        try:
            if window.channel == 1:
                waiting.release()
            await asyncio.Event().wait()
        finally:
            stopped.append(window.channel)
        raise AssertionError

    with pytest.raises(EngineError, match="broken"):
        await run(2, 200, recognise)
    assert 1 in stopped


async def test_windows_are_released_as_they_are_done() -> None:
    """However long the file is, no more are held than are at work, and the next one."""
    held, most = 0, 0
    source = windows(2, 1500)

    async def counted() -> AsyncGenerator[Window, None]:
        nonlocal held, most
        async with aclosing(source):
            async for window in source:
                held += 1
                most = max(most, held)
                yield window

    words = said(2, 1500, 2)
    flow = transcribe(counted(), oracle(words), overlap_s=CUT[1], max_in_flight=lambda: 4, channels=Channels(lambda: 2))
    async with aclosing(flow):
        async for event in flow:
            if isinstance(event, Progress):
                held -= 1
    assert most <= 5
    assert held == 0


@pytest.mark.parametrize("seconds", [600, 2400])
def test_what_is_joined_is_not_held(seconds: int) -> None:
    """Words that wait for other channels are those of some windows, whatever the length of the recording."""
    words = said(2, seconds, 4)
    joined = joiner(CUT[1], Channels(lambda: 2))
    given = returned = most = 0
    block = np.full((2, 5 * SAMPLE_RATE), 1000, np.int16)
    seen: set[str] = set()
    for window in channel_windows((block for _ in range(seconds // 5)), *CUT):
        tokens = [w for w in words[window.channel] if window.start_sample <= w.start_sample and w.end_sample <= window.end_sample]
        seen |= {token.piece for token in tokens}
        given = len(seen)
        returned += sum(len(segment.tokens) for segment in joined.add(window, [t.moved(-window.start_sample) for t in tokens]))
        most = max(most, given - returned)
    returned += sum(len(segment.tokens) for segment in joined.finish())
    assert returned == given == sum(map(len, words))
    assert most < 150


async def test_no_audio_gives_an_empty_transcript() -> None:
    async def none() -> AsyncGenerator[Window, None]:
        return
        yield

    flow = transcribe(none(), oracle([]), overlap_s=2.0, max_in_flight=lambda: 4, channels=Channels(lambda: 0))
    assert [event async for event in flow] == [Done((), 0.0)]
