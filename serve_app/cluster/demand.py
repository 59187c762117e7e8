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

LIVE_MEMORY_S = 3.0
"""Time constant of the mean load of live streams, seconds."""

MIN_LIVE_LOAD = 0.1
"""A lower load is none, or the end of the last stream would keep a replica for long. One stream in silence needs about 1."""


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


class _LiveLoad:
    """Mean load of the streams of one model."""

    def __init__(self, now_s: Callable[[], float]) -> None:
        self._now_s = now_s
        self._at_s = now_s()
        self._recent_s = 0.0

    def add(self, audio_s: float) -> None:
        self._recent_s = self._faded_s() + audio_s

    @property
    def value(self) -> float:
        """Seconds per second."""
        load = self._faded_s() / LIVE_MEMORY_S
        return load if load >= MIN_LIVE_LOAD else 0.0

    def _faded_s(self) -> float:
        now_s = self._now_s()
        self._recent_s *= math.exp((self._at_s - now_s) / LIVE_MEMORY_S)
        self._at_s = now_s
        return self._recent_s


class StreamDemand:
    """Of one live stream."""

    def __init__(self, load: _LiveLoad, windows: LiveWindows) -> None:
        self._load = load
        self._step_s = windows.step / SAMPLE_RATE
        self._usual_s = (windows.left + windows.right + windows.step) / SAMPLE_RATE
        self._until_s = 0.0

    def decodes(self, window: Window, *, is_active: bool) -> None:
        """A step begins. `is_active`: steps should be short now.

        Where the replicas are too slow, a step covers more, so that they do less than is needed. What counts is what the same
        audio needs in as many steps as it should have.
        """
        length_s, until_s = len(window.samples) / SAMPLE_RATE, window.end_sample / SAMPLE_RATE
        new_s, self._until_s = until_s - self._until_s, max(until_s, self._until_s)
        late_s = new_s - self._step_s
        if is_active and late_s > 0:
            # The windows of the missing steps would have ended at even distances before this one.
            self._load.add(min(length_s - late_s / 2, self._usual_s) * new_s / self._step_s)
        else:
            self._load.add(length_s)


class DemandMeter:
    """The jobs of one ingress. Belongs to one event loop."""

    def __init__(self, max_audio_s: float, now_s: Callable[[], float] = time.monotonic) -> None:
        self._max_audio_s = max_audio_s
        self._files: defaultdict[str, set[FileDemand]] = defaultdict(set)
        self._live: defaultdict[str, _LiveLoad] = defaultdict(lambda: _LiveLoad(now_s))

    @contextmanager
    def file(self, model: str) -> Iterator[FileDemand]:
        """Count a file while the block runs."""
        demand = FileDemand(self._max_audio_s)
        self._files[model].add(demand)
        try:
            yield demand
        finally:
            self._files[model].remove(demand)

    def stream(self, model: str, windows: LiveWindows) -> StreamDemand:
        """A live stream, which counts as long as it has windows decoded."""
        return StreamDemand(self._live[model], windows)

    def of(self, model: str) -> Demand:
        """Of all jobs of a model together."""
        return Demand(sum(file.remaining_s for file in self._files[model]), self._live[model].value)
