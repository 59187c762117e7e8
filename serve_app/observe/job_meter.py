"""Metrics of one job, read from what passes through its pipeline. Pure."""

import time
from collections import deque
from collections.abc import Callable
from typing import Literal

from serve_app.events import Done, Event, Hypothesis, LiveEvent, Progress, SegmentFinal, SpeechStarted, UtteranceFinal
from serve_app.observe import catalogue
from serve_app.observe.recorder import Recorder
from serve_app.window import SAMPLE_RATE, Lane, Window

EntryPoint = Literal["rest", "websocket", "realtime"]
"""How a job reached the server."""

ARRIVAL_RESOLUTION_S = 0.1
"""Audio that arrives within this time counts as having arrived with the first of it, seconds."""

MAX_ARRIVALS = 1024
"""Arrivals of a stream that are kept, at least 100 s. A delay that reaches further back counts from the oldest one."""

LANE_NAMES = {lane: lane.name.lower() for lane in Lane}


class JobMeter:
    """Audio seconds of a job. Positions are seconds of its audio; each second counts once as received and as transcribed."""

    def __init__(self, recorder: Recorder, model: str, entry_point: EntryPoint, now_s: Callable[[], float]) -> None:
        self._recorder = recorder
        self._model = model
        self._entry_point = entry_point
        self._now_s = now_s
        self._began_s = now_s()
        self._received_until_s = 0.0
        self._transcribed_until_s = 0.0

    def received(self, until_s: float, lane: Lane) -> None:
        """The audio up to this position has come in."""
        self._count(catalogue.AUDIO_SECONDS_RECEIVED, until_s - self._received_until_s, lane)
        self._received_until_s = max(until_s, self._received_until_s)

    def decoded(self, window: Window, lane: Lane) -> None:
        """A model has decoded a window."""
        self._count(catalogue.AUDIO_SECONDS_DECODED, len(window.samples) / SAMPLE_RATE, lane)
        if window.is_retry:
            self._recorder.record(catalogue.GAPS_REDECODED, 1, self._model)

    def _transcribed(self, until_s: float, lane: Lane) -> None:
        self._count(catalogue.AUDIO_SECONDS_TRANSCRIBED, until_s - self._transcribed_until_s, lane)
        self._transcribed_until_s = max(until_s, self._transcribed_until_s)

    def _count(self, metric: catalogue.Metric, seconds: float, lane: Lane) -> None:
        if seconds > 0:
            self._recorder.record(metric, seconds, self._model, self._entry_point, LANE_NAMES[lane])

    def _observe(self, metric: catalogue.Metric, value: float) -> None:
        self._recorder.record(metric, value, self._model, self._entry_point)


class FileMeter(JobMeter):
    """Of a file."""

    def __init__(
        self, recorder: Recorder, model: str, entry_point: EntryPoint, now_s: Callable[[], float] = time.monotonic
    ) -> None:
        super().__init__(recorder, model, entry_point, now_s)
        self._has_text = False

    def take(self, event: Event) -> None:
        """An event of the pipeline."""
        match event:
            case Progress():
                self._transcribed(event.done_s, Lane.INTERACTIVE if event.windows_done == 1 else Lane.BULK)
            case SegmentFinal() if not self._has_text:
                self._has_text = True
                self._observe(catalogue.FIRST_TEXT_LATENCY_SECONDS, self._now_s() - self._began_s)
            case Done() if event.duration_s:
                self._observe(catalogue.REQUEST_RTF, (self._now_s() - self._began_s) / event.duration_s)


class StreamMeter(JobMeter):
    """Of a live stream. Delays are on the clock, from when the audio was read. What it has waited before that is not seen
    here: on the network, in the proxy, or because the stream had too much to do already."""

    def __init__(
        self, recorder: Recorder, model: str, entry_point: EntryPoint, now_s: Callable[[], float] = time.monotonic
    ) -> None:
        super().__init__(recorder, model, entry_point, now_s)
        self._arrived_until_s = 0.0
        self._arrivals = deque[tuple[float, float]](maxlen=MAX_ARRIVALS)
        """Ends of audio that has arrived together, positions, and when; both ascending."""
        self._speech_start_s: float | None = None

    def arrived(self, seconds: float) -> None:
        """The next audio of the stream was read."""
        self._arrived_until_s += seconds
        arrived_at_s = self._now_s()
        if self._arrivals and arrived_at_s - self._arrivals[-1][1] < ARRIVAL_RESOLUTION_S:
            arrived_at_s = self._arrivals.pop()[1]
        self._arrivals.append((self._arrived_until_s, arrived_at_s))

    def count_received(self) -> None:
        """Count what was read since the last call."""
        self.received(self._arrived_until_s, Lane.LIVE)

    def take(self, event: LiveEvent) -> None:
        """An event of the pipeline."""
        self.count_received()
        match event:
            case SpeechStarted() if self._speech_start_s is None:
                self._speech_start_s = event.at_s
            case Hypothesis() if event.final or event.partial:
                self._note_text()
            case SegmentFinal():
                self._note_text()
                self._observe(catalogue.LIVE_FINAL_LAG_SECONDS, self._since_arrival_s(event.segment.end_s))
                self._transcribed(event.segment.end_s, Lane.LIVE)
            case UtteranceFinal():
                self._speech_start_s = None
                self._transcribed(event.at_s, Lane.LIVE)
            case Done():
                self._transcribed(event.duration_s, Lane.LIVE)

    def _note_text(self) -> None:
        if self._speech_start_s is not None:
            self._observe(catalogue.FIRST_TEXT_LATENCY_SECONDS, self._since_arrival_s(self._speech_start_s))
            self._speech_start_s = None

    def _since_arrival_s(self, position_s: float) -> float:
        """Time since the audio at this position has arrived."""
        arrived_at_s = next((at_s for until_s, at_s in self._arrivals if until_s >= position_s), None)
        return 0.0 if arrived_at_s is None else self._now_s() - arrived_at_s
