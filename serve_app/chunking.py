"""Cut a recording into overlapping windows, and join the tokens of the windows again.

`Planner`: 16 kHz mono int16 blocks of any size in, windows out. Every sample lies in a window. Windows start on the frame grid
and are never longer than `window_s`. Neighbours share at least the overlap, and no window lies within another. The size of the
blocks makes no difference. It holds about one window and one block in memory.

`Merger`: the tokens of each window in, with times of the recording; one token list out, as soon as tokens are final.
`merging/seams.py` does what happens at one seam.
"""

import math
import sys
from collections.abc import Sequence

import numpy as np

from serve_app.audio.buffer import AudioBuffer
from serve_app.merging.seams import group_words, merge, monotonic
from serve_app.transcript import Token
from serve_app.window import FRAME_SAMPLES, SAMPLE_RATE, Samples, Window

_HALF_FRAME = FRAME_SAMPLES // 2
"""Resolution of the search for a quiet cut, samples (40 ms)."""

_SEARCH_FRAMES = SAMPLE_RATE // FRAME_SAMPLES
"""How far a cut may move to either side of the planned one, encoder frames (0.96 s)."""

_SETTLED = 2 * SAMPLE_RATE
"""A word that ends this long before the next overlap, samples, is out of reach of every rule of `merge`."""


def _overlap_frames(overlap_s: float) -> int:
    return math.ceil(overlap_s * SAMPLE_RATE / FRAME_SAMPLES - 1e-6)


class Planner:
    """Cuts a stream into windows of at most `window_s` seconds that share `overlap_s`, rounded up to frames of 80 ms.

    The middle of an overlap, where the seam will be, is the quietest point within about a second of the planned one. The last
    window is not shorter than the others: it starts earlier, and shares more with its predecessor.
    """

    def __init__(self, window_s: float, overlap_s: float) -> None:
        self._window = int(window_s * SAMPLE_RATE + 1e-6)
        self._overlap_frames = _overlap_frames(overlap_s)
        # A step is the distance between two starts, frames. It is at least half the longest step, so that narrow windows advance,
        # and at least the overlap, so that no audio lies in three windows (except where the last one reaches back).
        longest = self._window // FRAME_SAMPLES - self._overlap_frames
        if not 0 <= overlap_s <= window_s / 2 or longest < 1:
            raise ValueError("overlap_s must be from 0 to half of window_s, and window_s longer than a frame")
        self._planned_step = longest - min(_SEARCH_FRAMES, longest // 4)
        search = longest - self._planned_step
        self._steps = range(max(1, self._planned_step - search, min(self._overlap_frames, longest)), longest + 1)
        self._audio = AudioBuffer()
        self._start = 0  # sample at which the next window begins
        self._index = 0

    def push(self, block: Samples) -> list[Window]:
        """Take int16 [samples]; return the windows that are complete."""
        self._audio.push(block)
        windows = []
        while self._audio.total - self._start > self._window:
            following = self._start + self._quietest_step() * FRAME_SAMPLES
            windows.append(self._take(self._start, following + self._overlap_frames * FRAME_SAMPLES))
            self._start = following
        self._audio.drop_before(min(self._start, self._audio.total - self._window))
        return windows

    def finish(self) -> list[Window]:
        """Return the last window once the audio has ended, or none if there was no audio. Call it once."""
        total = self._audio.total
        if not total:
            return []
        earliest = max(0, total - self._window)
        return [self._take(math.ceil(earliest / FRAME_SAMPLES) * FRAME_SAMPLES, total)]

    def _take(self, start: int, stop: int) -> Window:
        self._index += 1
        return Window(self._index - 1, start, self._audio.read(start, stop))

    def _quietest_step(self) -> int:
        """Frames to the next start for which the 80 ms and the 240 ms around the middle of the overlap have the least power."""
        audio = self._audio.read(self._start, self._start + self._window)
        halves = audio[: len(audio) // _HALF_FRAME * _HALF_FRAME].reshape(-1, _HALF_FRAME)
        power = np.square(halves.astype(np.float32)).mean(axis=1)

        def loudness(step: int) -> tuple[float, int]:
            middle = 2 * step + self._overlap_frames
            near, around = power[middle - 1 : middle + 1], power[max(0, middle - 3) : middle + 3]
            return float(near.mean() + around.mean()), abs(step - self._planned_step)

        return min(self._steps, key=loudness)


class Merger:
    """Joins the token lists of windows, which must come in order, and returns tokens once no later window can change them.

    With the planner's `overlap_s`, tokens are final up to two seconds before the next overlap. Where the last window reaches
    farther back, the tokens of its predecessor are kept. Without `overlap_s`, all that two windows share is compared, and the
    tokens of a window are held until the next one has come.
    """

    def __init__(self, overlap_s: float = math.inf) -> None:
        self._reach = sys.maxsize if math.isinf(overlap_s) else _overlap_frames(overlap_s) * FRAME_SAMPLES
        self._pending: list[Token] = []
        self._end = 0
        self._floor = 0

    def add(self, window_start: int, window_end: int, tokens: Sequence[Token]) -> list[Token]:
        """Take the next window's tokens; return those now final. Span (half-open) and times: samples of the recording."""
        merged = merge(self._pending, tokens, (max(window_start, self._end - self._reach), self._end))
        self._end = window_end
        settled = max(window_start, window_end - self._reach) - _SETTLED
        count = 0
        for word in group_words(merged):
            if word.end > settled:
                break
            count += len(word.tokens)
        self._pending = merged[count:]
        return self._released(merged[:count])

    def finish(self) -> list[Token]:
        """Return the tokens still held."""
        tokens, self._pending = self._pending, []
        return self._released(tokens)

    def _released(self, tokens: list[Token]) -> list[Token]:
        tokens = monotonic(tokens, self._floor)
        self._floor = tokens[-1].start_sample if tokens else self._floor
        return tokens
