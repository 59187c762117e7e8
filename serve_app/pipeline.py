"""READ FIRST: how speech becomes text here. Every entry point (REST, WebSocket, live) is this one flow.

    file ── decode, cut ──▶ windows ── recognise (fan-out), repair gaps ──▶ tokens per window ── join ──▶ tokens ──▶ segments

It streams from end to end: the first window is on a replica while the second is being decoded, and only the transcript itself
grows with the length of the recording. Files are decoded and cut in processes of their own (`decoders/`).
"""

import asyncio
from collections import defaultdict, deque
from collections.abc import AsyncGenerator, Awaitable, Callable

from serve_app.audio.dither import without_zeros
from serve_app.events import Done, Event, LiveEvent, Progress, SegmentFinal
from serve_app.joining import Channels, joiner
from serve_app.live.detection import DetectedAudio, with_vad_events
from serve_app.live.endpointing import VoiceActivityDetector
from serve_app.live.session import LiveSession
from serve_app.merging.gaps import GapRepair
from serve_app.tasks import stop
from serve_app.transcript import Segment, Token
from serve_app.window import SAMPLE_RATE, Samples, Window

Recognise = Callable[[Window], Awaitable[list[Token]]]
"""Returns the tokens of one window, with times in samples from the window's start."""


class Commit:
    """Between the blocks of a live stream: the utterance ends here."""


async def transcribe(
    windows: AsyncGenerator[Window, None],
    recognise: Recognise,
    *,
    overlap_s: float,
    max_in_flight: Callable[[], int],
    channels: Channels | None = None,
) -> AsyncGenerator[Event, None]:
    """Transcribe a recording, cut by the planner into windows that overlap by `overlap_s` seconds.

    With `channels`, every channel has windows of its own, and all come in the order in which they end.

    At most `max_in_flight()` windows, called before each, are with `recognise` at once, and the retries of their gaps. Errors of
    `windows` and `recognise` pass through; however the flow ends, no window is left running.
    """
    joined = joiner(overlap_s, channels)
    repairs: defaultdict[int, GapRepair] = defaultdict(lambda: GapRepair(recognise))
    running: deque[tuple[Window, asyncio.Future[list[Token]]]] = deque()
    planning: asyncio.Future[Window | None] | None = None
    is_planned = False
    segments: list[Segment] = []
    samples = planned = done = 0

    try:
        while True:
            if planning is None and not is_planned and len(running) < max_in_flight():
                planning = asyncio.ensure_future(anext(windows, None))
            waiting = {task for task in (planning, running[0][1] if running else None) if task is not None}
            if not waiting:
                break
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            if planning is not None and planning.done():
                window, planning = planning.result(), None
                if window is None:
                    is_planned = True
                else:
                    planned, samples = planned + 1, max(samples, window.end_sample)
                    running.append((window, asyncio.ensure_future(repairs[window.channel](window))))
            while running and running[0][1].done():
                window, tokens = running[0][0], running.popleft()[1].result()
                done += 1
                for segment in joined.add(window, tokens):
                    segments.append(segment)
                    yield SegmentFinal(segment)
                yield Progress(done, planned, joined.end_sample / SAMPLE_RATE)
        for segment in joined.finish():
            segments.append(segment)
            yield SegmentFinal(segment)
        yield Done(tuple(segments), samples / SAMPLE_RATE)
    finally:
        await stop(planning, *(task for _, task in running), closing=[windows])


async def transcribe_live(
    audio: AsyncGenerator[Samples | Commit, None],
    recognise: Recognise,
    vad: VoiceActivityDetector,
    session: LiveSession,
    *,
    max_backlog: int,
) -> AsyncGenerator[LiveEvent, None]:
    """Transcribe int16 [samples] blocks at 16 kHz while they are spoken. `session` decides; here is the waiting.

    One step at a time: where the models are slow, steps grow. No audio is read while more than `max_backlog` samples are not
    decoded, or while an utterance is ending. Errors of `audio` and `recognise` pass through.
    """
    reading: asyncio.Future[DetectedAudio | Commit | None] | None = None
    audio_and_events = with_vad_events(audio, vad)
    step: asyncio.Future[list[Token]] | None = None
    try:
        while True:
            if (window := session.next_window()) is not None:
                step = asyncio.ensure_future(recognise(without_zeros(window)))
            for event in session.take_events():
                yield event
            can_read = not session.is_finished and not session.is_ending and session.backlog < max_backlog
            if reading is None and can_read:
                reading = asyncio.ensure_future(anext(audio_and_events, None))
            waiting = {task for task in (reading, step) if task is not None}
            if not waiting:
                break
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            # Audio before the step: whether a pause ends the utterance depends on the newest VAD events.
            if reading is not None and reading.done():
                item, reading = reading.result(), None
                if item is None:
                    session.finish()
                elif isinstance(item, Commit):
                    session.commit()
                else:
                    session.push(item.block, item.vad_events, item.possible_speech_until)
            if step is not None and step.done():
                tokens, step = step.result(), None
                session.add(tokens)
    finally:
        await stop(reading, step, closing=[audio_and_events])
