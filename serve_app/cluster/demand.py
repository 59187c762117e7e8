"""The audio that is still to be transcribed, as the ingress that has the jobs knows it: what replicas are scaled by. Pure.

A replica sees a few windows of a file at a time, and one window of a stream.
"""

import math
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from serve_app.events import Done, Event, Progress
from serve_app.live.windows import LiveWindows
from serve_app.window import SAMPLE_RATE, Window

LIVE_MEMORY_S = 10.0
"""Time constant of the mean load of a live stream, seconds of its audio."""

PAUSE_S = 20.0
"""A stream without a step for so long needs nothing, seconds. In silence, one takes 8 s, and late ones take longer."""


@dataclass(frozen=True, slots=True)
class Demand:
    """What there is to do for the replicas of one model."""

    remaining_s: float = 0.0
    """Audio of files that is not transcribed yet, seconds."""
    live_load: float = 0.0
    """Audio that live streams need decoded, seconds per second."""

    @classmethod
    def total(cls, demands: "Iterable[Demand]") -> "Demand":
        demands = list(demands)
        return cls(sum(demand.remaining_s for demand in demands), sum(demand.live_load for demand in demands))


class FileDemand:
    """Of one file, seconds of its audio."""

    def __init__(self, max_audio_s: float) -> None:
        """A file that announces more than `max_audio_s` is refused once it reaches that."""
        self._max_audio_s = max_audio_s
        self._length_s = 0.0
        self._done_s = 0.0
        self._channels = 1

    @property
    def remaining_s(self) -> float:
        return self._channels * max(0.0, self._length_s - self._done_s)

    def planned(self, until_s: float, announced_s: float | None, channels: int = 1) -> None:
        """The recording is cut into windows up to here. `announced_s`: the length that the file announces, None if unknown.
        `channels`: how many of them are transcribed."""
        self._channels = channels
        self._length_s = max(until_s, min(announced_s or 0.0, self._max_audio_s))

    def take(self, event: Event) -> None:
        """An event of the pipeline."""
        match event:
            case Progress():
                self._done_s = event.done_s
            case Done():
                self._done_s = self._length_s


class StreamDemand:
    """Of one live stream.

    Its audio comes at the pace of speech, however slowly it is decoded. So its load is what a second of its audio needs, by the
    audio that it had decoded lately: where replicas are too slow, it does not seem to need less.
    """

    def __init__(self, windows: LiveWindows, now_s: Callable[[], float]) -> None:
        self._now_s = now_s
        self._step_s = windows.step / SAMPLE_RATE
        self._usual_s = (windows.left + windows.right + windows.step) / SAMPLE_RATE
        self._until_s = 0.0
        self._stepped_at_s = -math.inf
        self._needed_s = 0.0
        self._audio_s = 0.0

    @property
    def load(self) -> float:
        """Seconds per second."""
        return self._needed_s / self._audio_s if self._now_s() - self._stepped_at_s < PAUSE_S else 0.0

    def decodes(self, window: Window, *, is_active: bool) -> None:
        """A step begins. `is_active`: steps should be short now.

        A late step covers more. What counts is what the same audio needs in as many steps as it should have.
        """
        length_s, until_s = len(window.samples) / SAMPLE_RATE, window.end_sample / SAMPLE_RATE
        passed_s, self._until_s = max(0.0, until_s - self._until_s), max(until_s, self._until_s)
        # The rest is silence that needed no model.
        new_s = min(passed_s, length_s)
        late_s = new_s - self._step_s
        needed_s = length_s
        if is_active and late_s > 0:
            # The windows of the missing steps would have ended at even distances before this one.
            needed_s = min(length_s - late_s / 2, self._usual_s) * new_s / self._step_s
        kept = math.exp(-passed_s / LIVE_MEMORY_S)
        self._needed_s = kept * self._needed_s + needed_s
        self._audio_s = kept * self._audio_s + passed_s
        self._stepped_at_s = self._now_s()


class DemandMeter:
    """The jobs of one ingress. Belongs to one event loop."""

    def __init__(self, max_audio_s: float, now_s: Callable[[], float] = time.monotonic) -> None:
        self._max_audio_s = max_audio_s
        self._files: defaultdict[str, set[FileDemand]] = defaultdict(set)
        self._streams: defaultdict[str, set[StreamDemand]] = defaultdict(set)
        self._now_s = now_s

    @contextmanager
    def file(self, model: str) -> Iterator[FileDemand]:
        """Count a file while the block runs."""
        demand = FileDemand(self._max_audio_s)
        self._files[model].add(demand)
        try:
            yield demand
        finally:
            self._files[model].remove(demand)

    @contextmanager
    def stream(self, model: str, windows: LiveWindows) -> Iterator[StreamDemand]:
        """Count a live stream while the block runs."""
        demand = StreamDemand(windows, self._now_s)
        self._streams[model].add(demand)
        try:
            yield demand
        finally:
            self._streams[model].remove(demand)

    def of(self, model: str) -> Demand:
        """Of all jobs of a model together."""
        return Demand(sum(file.remaining_s for file in self._files[model]), sum(stream.load for stream in self._streams[model]))
