"""A diarizer beside the recognition of a recording, on the same audio.

    windows ──┬──▶ recognise ──▶ segments ─────────┐
              └──▶ chunks ──▶ diarizer ──▶ frames ─┴──▶ segments of one speaker each

Chunks go one after the other, as each needs the state that the one before returned. Where that is slower than the recognition, no
more windows are read, so what is held stays bounded.
"""

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import AbstractContextManager, aclosing, nullcontext
from dataclasses import dataclass, replace
from typing import Protocol

from serve_app.diarization.chunks import Chunk, ChunkCutter
from serve_app.diarization.protocol import DiarizerShape, Probabilities
from serve_app.diarization.references import KnownSpeaker, References
from serve_app.errors import SpeechError
from serve_app.events import Done, Event, SegmentFinal
from serve_app.output.speakers import SpeakerJoin
from serve_app.tasks import stop
from serve_app.transcript import Segment
from serve_app.window import FRAME_SAMPLES, SAMPLE_RATE, Samples, Window

MAX_BEHIND_S = 120.0
"""While more audio than this waits for the diarizer, in whole chunks, no window is read, seconds."""

CROWDED = "Many words fit none of the speakers well: more people may speak than the diarizer can tell apart."
"""A warning."""


class Diarizer(Protocol):
    """How the chunks of a recording are processed, wherever that is. Both methods raise SpeechError."""

    async def shape(self) -> DiarizerShape:
        """How a recording is to be cut. Raises ModelUnavailable where the diarizer is unavailable."""
        ...

    async def step(self, chunk: Chunk, state: bytes | None) -> tuple[Probabilities, bytes]:
        """See DiarizerEngine.step."""
        ...


@dataclass(frozen=True, slots=True)
class SpeakerOptions:
    """What a request wants to know of who speaks."""

    diarizer: str
    """Its name."""
    known: tuple[KnownSpeaker, ...] = ()
    is_optional: bool = False
    """Where the diarizer fails, the rest of the transcript has no speakers, and a warning says so."""


def unknown_speakers(error: SpeechError, from_s: float = 0.0) -> str:
    """A warning: why there are no speakers from a time on, seconds."""
    where = f" from {from_s:.0f} s on" if from_s > 0 else ""
    return f"The speakers are unknown{where}: {error.message}"


class Diarization:
    """Of one recording: its windows pass through `tapped`, its events through `joined`."""

    def __init__(
        self,
        diarizer: Diarizer,
        options: SpeakerOptions,
        traced: Callable[[float], AbstractContextManager[object]] = nullcontext,
    ) -> None:
        """`diarizer`: the one that `options` names. `traced` surrounds each of its steps; it gets the length of its chunk,
        seconds."""
        self._diarizer = diarizer
        self._options = options
        self._traced = traced
        self._max_behind = round(MAX_BEHIND_S * SAMPLE_RATE)
        self._blocks = deque[Samples]()
        """Audio that is not in the cutter yet."""
        self._cutter: ChunkCutter | None = None
        self._join: SpeakerJoin | None = None
        self._is_fed = False
        self._is_wanted = True
        """The diarizer wants more audio."""
        self._read_until = 0
        """Samples of the recording that were read from its windows."""
        self._done_samples = 0
        """Samples of the recording whose speakers are known."""
        self._segments: list[Segment] = []
        """Those that came before there was a join."""
        self._ready = deque[Segment]()
        self._warnings: list[str] = []
        self._has_begun = False
        """It is known whether the diarizer is available."""
        self._audio, self._room, self._news = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def tapped(self, windows: AsyncGenerator[Window, None]) -> AsyncGenerator[Window, None]:
        """The same windows, of one channel. The diarizer gets their audio, each sample once."""
        async with aclosing(windows):
            async for window in windows:
                if self._is_wanted:
                    self._blocks.append(window.samples[max(0, self._read_until - window.start_sample) :])
                self._read_until = max(self._read_until, window.end_sample)
                self._audio.set()
                yield window
                while self._behind > self._max_behind:
                    self._room.clear()
                    await self._room.wait()
        self._is_fed = True
        self._audio.set()

    async def joined(self, events: AsyncGenerator[Event, None]) -> AsyncGenerator[Event, None]:
        """The same events, with segments of one speaker each. None comes before it is known whether the diarizer is available.

        Raises the SpeechError of a diarizer that fails, unless it is optional.
        """
        running = asyncio.ensure_future(self._run())
        reading: asyncio.Future[Event | None] | None = None
        noticing: asyncio.Future[bool] | None = None
        others = deque[Event]()
        segments: list[Segment] = []
        done: Done | None = None
        try:
            while done is None or not running.done():
                if reading is None and done is None:
                    reading = asyncio.ensure_future(anext(events, None))
                noticing = noticing or asyncio.ensure_future(self._news.wait())
                waiting = {task for task in (reading, noticing, None if running.done() else running) if task is not None}
                await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
                if running.done():
                    running.result()
                if noticing.done():
                    noticing = None
                    self._news.clear()
                if reading is not None and reading.done():
                    event, reading = reading.result(), None
                    if isinstance(event, SegmentFinal):
                        self._add(event.segment)
                    elif isinstance(event, Done):
                        done = event
                    elif event is not None:
                        others.append(event)
                while self._has_begun and (others or self._ready):
                    if others:
                        yield others.popleft()
                    else:
                        segments.append(self._ready.popleft())
                        yield SegmentFinal(segments[-1])
            # It may have failed while the reader was busy with the last event.
            running.result()
            if self._join is not None and self._join.is_crowded:
                self._warnings.append(CROWDED)
            yield replace(done, segments=tuple(segments), warnings=(*done.warnings, *self._warnings))
        finally:
            await stop(reading, noticing, running, closing=[events])

    @property
    def _behind(self) -> int:
        """Samples that wait for the diarizer; 0 while it waits for more."""
        return sum(map(len, self._blocks)) + (0 if self._cutter is None else self._cutter.waiting_samples)

    async def _run(self) -> None:
        try:
            await self._diarize()
        except SpeechError as error:
            if not self._options.is_optional:
                raise
            self._give_up(error)

    def _give_up(self, error: SpeechError) -> None:
        """The rest has no speakers."""
        self._warnings.append(unknown_speakers(error, self._done_samples / SAMPLE_RATE))
        self._is_wanted, self._cutter = False, None
        self._blocks.clear()
        self._has_begun = True
        if self._join is None:
            self._begin_join({})
        assert self._join is not None
        self._release(self._join.give_up())
        self._room.set()

    async def _diarize(self) -> None:
        self._cutter = cutter = ChunkCutter(await self._diarizer.shape())
        self._has_begun = True
        self._news.set()
        references = References(self._options.known)
        cutter.push(references.samples)
        state: bytes | None = None
        while True:
            while self._blocks:
                cutter.push(self._blocks.popleft())
            if self._behind <= self._max_behind:
                self._room.set()
            if (chunk := cutter.next(is_last=self._is_fed)) is not None:
                with self._traced(chunk.new_samples / SAMPLE_RATE):
                    probabilities, state = await self._diarizer.step(chunk, state)
                self._take(references, probabilities)
            elif self._is_fed:
                break
            else:
                self._audio.clear()
                await self._audio.wait()
        if self._join is None:
            self._begin_join({})
        assert self._join is not None
        self._release(self._join.finish_frames())

    def _take(self, references: References, probabilities: Probabilities) -> None:
        frames = references.take(probabilities)
        if self._join is None and len(frames):
            names, warnings = references.names()
            self._warnings += warnings
            self._begin_join(names)
        if self._join is not None:
            self._done_samples += len(frames) * FRAME_SAMPLES
            self._release(self._join.add_frames(frames))

    def _begin_join(self, names: Mapping[int, str]) -> None:
        self._join = SpeakerJoin(names, taken=[speaker.name for speaker in self._options.known])
        self._release(self._join.add_segments(self._segments))
        self._segments = []

    def _add(self, segment: Segment) -> None:
        if self._join is None:
            self._segments.append(segment)
        else:
            self._ready += self._join.add_segments([segment])

    def _release(self, segments: Sequence[Segment]) -> None:
        self._ready += segments
        self._news.set()
