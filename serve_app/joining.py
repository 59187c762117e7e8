"""From the tokens of windows to the segments of a recording: of one channel, or of several that are transcribed side by side."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from serve_app.chunking import Merger
from serve_app.merging.crosstalk import LOUDER, Crosstalk
from serve_app.merging.gaps import frame_levels
from serve_app.output.segments import Segmenter
from serve_app.output.turns import Turns
from serve_app.transcript import Segment, Token
from serve_app.window import Window


@dataclass(frozen=True, slots=True)
class Channels:
    """How channels that have windows of their own are joined."""

    count: Callable[[], int]
    """How many there are; called with the first window."""
    drops_crosstalk: bool = True
    """Words that a channel hears from another one are left out."""


class Joiner(Protocol):
    """Takes the windows in the order in which they end."""

    end_sample: int
    """So far every channel is here, samples."""

    def add(self, window: Window, tokens: Sequence[Token]) -> list[Segment]:
        """The tokens of the next window, with times from its start; returns the segments that are now final, in order."""
        ...

    def finish(self) -> list[Segment]:
        """The last segments. Call it once, after the last window."""
        ...


def joiner(overlap_s: float, channels: Channels | None) -> Joiner:
    """For windows that overlap by `overlap_s` seconds. `channels`: None: they are mixed."""
    return _OneChannel(overlap_s) if channels is None else _ManyChannels(overlap_s, channels)


class _OneChannel:
    def __init__(self, overlap_s: float) -> None:
        self.end_sample = 0
        self._merger, self._segmenter = Merger(overlap_s), Segmenter()

    def add(self, window: Window, tokens: Sequence[Token]) -> list[Segment]:
        self.end_sample = window.end_sample
        return self._segmenter.add(_add(self._merger, window, tokens))

    def finish(self) -> list[Segment]:
        return self._segmenter.add(self._merger.finish()) + self._segmenter.finish()


class _ManyChannels:
    def __init__(self, overlap_s: float, channels: Channels) -> None:
        self.end_sample = 0
        self._overlap_s = overlap_s
        self._channels = channels
        self._mergers: list[Merger] = []

    def add(self, window: Window, tokens: Sequence[Token]) -> list[Segment]:
        if not self._mergers:
            count = self._channels.count()
            self._mergers, self._turns = [Merger(self._overlap_s) for _ in range(count)], Turns(count)
            self._crosstalk = Crosstalk(count, LOUDER if self._channels.drops_crosstalk else math.inf)
            self._ends = [0] * count
        self._ends[window.channel] = window.end_sample
        self.end_sample = min(self._ends)
        levels = frame_levels(window.samples) if window.levels is None else window.levels
        self._crosstalk.add_levels(window.channel, window.start_sample, levels)
        return self._take(window.channel, _add(self._mergers[window.channel], window, tokens))

    def finish(self) -> list[Segment]:
        if not self._mergers:
            return []
        last = [segment for channel, merger in enumerate(self._mergers) for segment in self._take(channel, merger.finish())]
        return last + self._turns.add(self._crosstalk.finish(), self._crosstalk.positions) + self._turns.finish()

    def _take(self, channel: int, tokens: Sequence[Token]) -> list[Segment]:
        kept = self._crosstalk.add(channel, tokens, self._mergers[channel].settled_sample)
        return self._turns.add(kept, self._crosstalk.positions)


def _add(merger: Merger, window: Window, tokens: Sequence[Token]) -> list[Token]:
    moved = [token.moved(window.start_sample) for token in tokens]
    return merger.add(window.start_sample, window.end_sample, moved)
