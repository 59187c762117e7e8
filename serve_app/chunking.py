"""Cut a recording into overlapping windows, and merge the tokens of these windows.

`Planner` takes blocks of 16 kHz mono int16 samples and returns windows. Every sample is in at least one window. Windows start at
multiples of an encoder frame and are at most `window_s` long. Neighbouring windows share at least the overlap, and no window lies
within another. The windows do not depend on the size of the blocks. Memory: about one window and one block.

`Merger` takes the tokens of each window, with times in samples of the recording. It returns tokens as soon as they are final.
`merging/seams.py` merges the tokens of two windows.
"""

import math
import sys
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from serve_app.audio.buffer import AudioBuffer
from serve_app.merging.seams import merge, monotonic, settled_tokens
from serve_app.transcript import Token
from serve_app.window import FRAME_SAMPLES, SAMPLE_RATE, Samples, Window

_HALF_FRAME = FRAME_SAMPLES // 2
"""Resolution of the search for a quiet cut, samples (40 ms)."""

_SEARCH_FRAMES = SAMPLE_RATE // FRAME_SAMPLES
"""Maximum distance of a cut from its planned place, encoder frames (0.96 s)."""

_SETTLED = 2 * SAMPLE_RATE
"""`merge` never changes a word that ends more than this before the overlap, samples."""


def _overlap_frames(overlap_s: float) -> int:
    return math.ceil(overlap_s * SAMPLE_RATE / FRAME_SAMPLES - 1e-6)


class Planner:
    """Cuts a stream into windows of at most `window_s` seconds that share `overlap_s`, rounded up to frames of 80 ms.

    The middle of an overlap is where the seam will be. It is placed at the quietest point within about a second of its planned
    place. The last window is not shorter than the others: it starts earlier, so its overlap is larger.

    Raises ValueError if `overlap_s` is not from 0 to half of `window_s`, or a window is too short to advance by one frame.
    """

    def __init__(self, window_s: float, overlap_s: float, channel: int = 0) -> None:
        """`channel`: that of the windows."""
        self._channel = channel
        self._window = int(window_s * SAMPLE_RATE + 1e-6)
        self._overlap_frames = _overlap_frames(overlap_s)
        # A step is the distance between the starts of two windows, in frames. It is at least half of max_step, so that short
        # windows advance. It is at least the overlap, so that no audio is in three windows, except near the end of the recording.
        max_step = self._window // FRAME_SAMPLES - self._overlap_frames
        if not 0 <= overlap_s <= window_s / 2 or max_step < 1:
            raise ValueError("overlap_s must be from 0 to half of window_s, and window_s longer than a frame")
        self._planned_step = max_step - min(_SEARCH_FRAMES, max_step // 4)
        search = max_step - self._planned_step
        self._steps = range(max(1, self._planned_step - search, min(self._overlap_frames, max_step)), max_step + 1)
        self._audio = AudioBuffer()
        self._start = 0  # first sample of the next window
        self._index = 0

    def push(self, block: Samples) -> list[Window]:
        """Add a block, int16 [samples]; return the windows that are now complete."""
        self._audio.push(block)
        windows = []
        while self._audio.total - self._start > self._window:
            next_start = self._start + self._quietest_step() * FRAME_SAMPLES
            windows.append(self._take(self._start, next_start + self._overlap_frames * FRAME_SAMPLES))
            self._start = next_start
        self._audio.drop_before(min(self._start, self._audio.total - self._window))
        return windows

    def finish(self) -> list[Window]:
        """Return the last window, or an empty list if there was no audio. Call it once, after the last block."""
        total = self._audio.total
        if not total:
            return []
        earliest = max(0, total - self._window)
        return [self._take(math.ceil(earliest / FRAME_SAMPLES) * FRAME_SAMPLES, total)]

    def _take(self, start: int, stop: int) -> Window:
        self._index += 1
        return Window(self._index - 1, start, self._audio.read(start, stop), channel=self._channel)

    def _quietest_step(self) -> int:
        """The step, in frames, that puts the middle of the overlap at the quietest point.

        A point is quiet if both the 80 ms and the 240 ms around it have little power.
        """
        # Half frames from the window's start to the first and the last one that are examined.
        first = max(0, 2 * self._steps[0] + self._overlap_frames - 3)
        last = min(self._window // _HALF_FRAME, 2 * self._steps[-1] + self._overlap_frames + 3)
        audio = self._audio.read(self._start + first * _HALF_FRAME, self._start + last * _HALF_FRAME)
        halves = audio.reshape(-1, _HALF_FRAME).astype(np.float32)
        power = np.vecdot(halves, halves)

        def loudness(step: int) -> tuple[float, int]:
            middle = 2 * step + self._overlap_frames - first
            narrow, wide = power[middle - 1 : middle + 1], power[max(0, middle - 3) : middle + 3]
            return float(narrow.mean() + wide.mean()), abs(step - self._planned_step)

        return min(self._steps, key=loudness)


def windows(blocks: Iterable[Samples], window_s: float, overlap_s: float) -> Iterator[Window]:
    """The windows of a recording in blocks of int16 [samples]. Raises ValueError as Planner does."""
    planner = Planner(window_s, overlap_s)
    for block in blocks:
        yield from planner.push(block)
    yield from planner.finish()


def channel_windows(blocks: Iterable[Samples], window_s: float, overlap_s: float) -> Iterator[Window]:
    """The windows of every channel of a recording in blocks of int16 [channels, samples], in the order in which they end.

    Each channel has its own windows, with indexes from 0. Raises ValueError as Planner does.
    """
    planners: list[Planner] = []
    for block in blocks:
        planners = planners or [Planner(window_s, overlap_s, channel) for channel in range(len(block))]
        yield from _by_end([planner.push(samples) for planner, samples in zip(planners, block, strict=True)])
    yield from _by_end([planner.finish() for planner in planners])


def _by_end(windows: Iterable[list[Window]]) -> list[Window]:
    return sorted((window for channel in windows for window in channel), key=lambda window: (window.end_sample, window.channel))


class Merger:
    """Merges the tokens of windows, which must come in order, and returns tokens once no later window can change them.

    With the planner's `overlap_s`, only that much of the audio that two windows share is merged. Tokens are final up to two
    seconds before the next overlap. The last window may share more with the window before it, whose tokens are then kept.
    Without `overlap_s`, all the audio that two windows share is merged, and a window's tokens are held until the next window.
    """

    def __init__(self, overlap_s: float = math.inf) -> None:
        self._max_overlap = sys.maxsize if math.isinf(overlap_s) else _overlap_frames(overlap_s) * FRAME_SAMPLES
        self._pending: list[Token] = []
        self._end = 0
        self._floor = 0
        self._settled = 0

    def add(self, window_start: int, window_end: int, tokens: Sequence[Token]) -> list[Token]:
        """Add the tokens of the next window; return the tokens that are now final.

        The half-open span of the window and the times of the tokens are samples of the recording.
        """
        merged = merge(self._pending, tokens, (max(window_start, self._end - self._max_overlap), self._end))
        self._end = window_end
        self._settled = max(window_start, window_end - self._max_overlap) - _SETTLED
        count = settled_tokens(merged, self._settled)
        self._pending = merged[count:]
        return self._clamped(merged[:count])

    @property
    def settled_sample(self) -> int:
        """No token that is still to be returned starts before this, samples of the recording."""
        starts = [self._settled, *(token.start_sample for token in self._pending[:1])]
        return max(self._floor, min(starts))

    def finish(self) -> list[Token]:
        """Return the tokens that are still held. Call it once, after the last window."""
        tokens, self._pending = self._pending, []
        return self._clamped(tokens)

    def _clamped(self, tokens: list[Token]) -> list[Token]:
        tokens = monotonic(tokens, self._floor)
        self._floor = tokens[-1].start_sample if tokens else self._floor
        return tokens
