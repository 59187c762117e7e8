"""READ FIRST: how speech becomes text here. Every entry point (REST, WebSocket, live) is this one flow.

    audio blocks ── plan ──▶ windows ── recognise (fan-out), check ──▶ tokens per window ── merge ──▶ tokens ──▶ segments

It is a stream from end to end: the first window is with a replica while the second is being decoded, and nothing grows with the
length of the recording but the transcript itself.
"""

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

import numpy as np

from serve_app.chunking import Merger, Planner
from serve_app.gaps import SecondLooks
from serve_app.live import Listener, LiveWindows
from serve_app.segments import Segmenter, words_of
from serve_app.transcript import SAMPLE_RATE, Samples, Segment, Token, Window, Word
from serve_app.voice import Turn, Voice

Recognise = Callable[[Window], Awaitable[list[Token]]]
"""Gives the tokens of one window, with times in samples from the window's start."""


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a job is: windows that are done, those planned so far, and where in the audio the last one done ends."""

    windows_done: int
    windows_planned: int
    done_s: float


@dataclass(frozen=True, slots=True)
class SegmentFinal:
    """A segment that will not change any more."""

    segment: Segment


@dataclass(frozen=True, slots=True)
class Done:
    """The end: every segment, and the length of the audio."""

    segments: tuple[Segment, ...]
    duration_s: float


Event = Progress | SegmentFinal | Done


@dataclass(frozen=True, slots=True)
class EndUtterance:
    """Among the blocks of a live stream: what came so far is to be final, and what follows stands by itself."""


@dataclass(frozen=True, slots=True)
class SpeechTurn:
    """Live: somebody begins to speak, or has stopped."""

    is_speech: bool
    at_s: float


@dataclass(frozen=True, slots=True)
class Heard:
    """Live: the words behind the last final segment. Those of `final` do not change any more, those of `partial` may."""

    final: tuple[Word, ...]
    partial: tuple[Word, ...]


@dataclass(frozen=True, slots=True)
class UtteranceFinal:
    """Live: an utterance has ended, and all of it is final."""

    at_s: float


LiveEvent = SpeechTurn | Heard | SegmentFinal | UtteranceFinal | Done


async def transcribe(
    audio: AsyncGenerator[Samples, None],
    recognise: Recognise,
    *,
    window_s: float,
    overlap_s: float,
    max_in_flight: Callable[[], int],
) -> AsyncGenerator[Event, None]:
    """Transcribe int16 blocks at 16 kHz; at most `max_in_flight()` windows, asked each time, are with `recognise` at once.

    Errors of `audio` and `recognise` pass through; whatever ends the flow, no window is left running.
    """
    planner, merger, segmenter = Planner(window_s, overlap_s), Merger(overlap_s), Segmenter()
    recognise_and_check = SecondLooks(recognise)
    running: deque[tuple[Window, asyncio.Future[list[Token]]]] = deque()
    windows = _windows(audio, planner)
    coming: asyncio.Future[Window | None] | None = None
    is_over = False
    segments: list[Segment] = []
    samples = planned = done = 0

    try:
        while True:
            if coming is None and not is_over and len(running) < max_in_flight():
                coming = asyncio.ensure_future(anext(windows, None))
            waiting = {task for task in (coming, running[0][1] if running else None) if task is not None}
            if not waiting:
                break
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            if coming is not None and coming.done():
                window, coming = coming.result(), None
                if window is None:
                    is_over = True
                else:
                    planned, samples = planned + 1, window.end_sample
                    running.append((window, asyncio.ensure_future(recognise_and_check(window))))
            while running and running[0][1].done():
                window, tokens = running[0][0], running.popleft()[1].result()
                done += 1
                settled = merger.add(window.start_sample, window.end_sample, [t.moved(window.start_sample) for t in tokens])
                for event in _final(segmenter.add(settled), segments):
                    yield event
                yield Progress(done, planned, window.end_sample / SAMPLE_RATE)
        for event in _final(segmenter.add(merger.finish()) + segmenter.finish(), segments):
            yield event
        yield Done(tuple(segments), samples / SAMPLE_RATE)
    finally:
        await stop(coming, *(task for _, task in running))
        await windows.aclose()


async def transcribe_live(
    audio: AsyncGenerator[Samples | EndUtterance, None],
    recognise: Recognise,
    voice: Voice,
    windows: LiveWindows,
    *,
    max_backlog: int,
    pauses_end: bool = True,
) -> AsyncGenerator[LiveEvent, None]:
    """Transcribe int16 blocks at 16 kHz while they are spoken: stretches of audio are heard again and again (see `live.py`).

    One step at a time: where the models are slow, steps grow. Audio is not asked for while more than `max_backlog` samples wait.
    With `pauses_end`, words that `voice` takes for no speech are an utterance too, once nothing follows them.
    Errors of `audio` and `recognise` pass through.
    """
    listener, segmenter = Listener(windows), Segmenter()
    segments: list[Segment] = []
    turns: deque[Turn] = deque()
    reading: asyncio.Future[Samples | EndUtterance | None] | None = None
    step: tuple[Window, asyncio.Future[list[Token]]] | None = None
    is_speech = is_ending = is_over = False
    ends_at = 0
    heard = Heard((), ())

    def end_utterance(sample: int) -> None:
        nonlocal is_ending, ends_at
        is_ending, ends_at = True, sample
        listener.end_utterance(sample)

    try:
        while True:
            if is_ending and listener.is_settled:
                is_ending = False
                for event in _final(segmenter.finish(), segments):
                    yield event
                yield UtteranceFinal(ends_at / SAMPLE_RATE)
            while turns and not is_ending:
                turn = turns.popleft()
                is_speech = turn.is_speech
                if not is_speech:
                    end_utterance(turn.known_at)
                yield SpeechTurn(turn.is_speech, turn.sample / SAMPLE_RATE)
            if step is None and (window := listener.next_window(is_speech=is_speech)) is not None:
                step = window, asyncio.ensure_future(recognise(window))
            if is_ending and listener.is_settled:
                continue
            # What follows the end of an utterance waits until all of it is final, so that every word belongs to one.
            if reading is None and not is_over and not is_ending and listener.backlog < max_backlog:
                reading = asyncio.ensure_future(anext(audio, None))
            waiting = {task for task in (reading, step[1] if step else None) if task is not None}
            if not waiting:
                break
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            if reading is not None and reading.done():
                block, reading = reading.result(), None
                if isinstance(block, np.ndarray):
                    listener.push(block)
                    turns.extend(await voice.push(block))
                else:
                    is_over = block is None
                    end_utterance(listener.position)
            if step is not None and step[1].done():
                (window, result), step = step, None
                hearing = listener.add(window, [token.moved(window.start_sample) for token in result.result()])
                for event in _final(segmenter.add(hearing.final), segments):
                    yield event
                if (now := Heard(segmenter.unfinished, words_of(hearing.partial))) != heard:
                    heard = now
                    yield now
                if pauses_end and now.final and not (now.partial or is_speech or is_ending or turns):
                    end_utterance(window.end_sample)
        yield Done(tuple(segments), listener.position / SAMPLE_RATE)
    finally:
        await stop(reading, step[1] if step else None)
        await audio.aclose()


async def stop(*tasks: asyncio.Future[Any] | None) -> None:
    """Cancel what still runs, and wait for its end."""
    running = [task for task in tasks if task is not None]
    for task in running:
        task.cancel()
    await asyncio.gather(*running, return_exceptions=True)


def _final(finished: list[Segment], segments: list[Segment]) -> list[SegmentFinal]:
    """What tells of segments that are finished now; they are put to `segments`."""
    segments.extend(finished)
    return [SegmentFinal(segment) for segment in finished]


async def _windows(audio: AsyncGenerator[Samples, None], planner: Planner) -> AsyncGenerator[Window, None]:
    async with aclosing(audio):
        async for block in audio:
            for window in planner.push(block):
                yield window
    for window in planner.finish():
        yield window
