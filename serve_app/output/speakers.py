"""Segments of one speaker each, from the words of a recording and a diarizer's probabilities. Pure.

Sentences come first: a segment has the speaker of most of its time, and is split at a word where another speaker takes over for
long enough. So that of all divisions of a segment's words among speakers, the one with the highest sum counts: of the probability
of each word's speaker times the duration of the word, less CHANGE_COST_S for every change.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from serve_app.output.segments import split
from serve_app.transcript import Segment, Word
from serve_app.window import FRAME_SAMPLES, SAMPLE_RATE

FRAME_S = FRAME_SAMPLES / SAMPLE_RATE

CHANGE_COST_S = 0.3
"""Cost of a change of speaker within a segment, seconds times probability. A speaker whose probability is higher by 1 gets the
first or last words of a segment from this duration on, words in its middle from twice of it on."""

PREVIOUS_BONUS_S = 1e-6
"""Where nothing else decides, the speaker of the segment before speaks on."""

MIN_PROBABILITY = 0.5
"""A word whose speaker has less is not sure."""

MAX_UNSURE = 0.1
"""Share of the words' time that may be unsure before more people seem to speak than a diarizer can tell apart."""


class SpeakerJoin:
    """Takes segments and frames of 80 ms as they come, and gives segments back, in order, once all frames of theirs are here.

    What it gives back does not depend on how many segments and frames come at a time. Segments have new indexes, as some are
    split. Holds the frames from the first word on that is still to come.
    """

    def __init__(self, known: Mapping[int, str], taken: Collection[str] = ()) -> None:
        """`known`: names of speakers by their column. The others get the letters A, B, ... as they begin to speak, without those
        in `taken`: names of known speakers, also of those who were not found."""
        self._names = dict(known)
        self._speaking = set[int]()
        """Columns of those who have spoken."""
        self._letters = (letter for letter in map(_letters, range(1 << 30)) if letter not in {*known.values(), *taken})
        self._frames: NDArray[np.float32] | None = None
        """[frames, speakers], from `_first_frame` on."""
        self._new_frames: list[NDArray[np.float32]] = []
        """Those that follow them."""
        self._first_frame = 0
        self._is_complete = self._is_given_up = False
        self._pending: list[Segment] = []
        self._next_index = 0
        self._previous: int | None = None
        """Column of the last speaker."""
        self._words_s = self._unsure_s = 0.0

    def add_segments(self, segments: Sequence[Segment]) -> list[Segment]:
        """Add the next segments, with words and tokens."""
        self._pending += segments
        return self._released()

    def add_frames(self, probabilities: NDArray[np.floating]) -> list[Segment]:
        """Add the next frames, [frames, speakers]."""
        if not len(probabilities):
            return []
        self._new_frames.append(probabilities.astype(np.float32))
        # They are joined only when they are needed: in hours without words each time would copy all of them.
        return self._released() if self._pending else []

    def finish_frames(self) -> list[Segment]:
        """No frames follow. Words that end after the last one have the speaker of those that there are."""
        self._is_complete = True
        return self._released()

    def give_up(self) -> list[Segment]:
        """No frames follow, although there are words after the last one: from there on, segments have no speakers."""
        self._is_given_up = True
        return self._released()

    @property
    def is_crowded(self) -> bool:
        """Whether more people seem to speak than the diarizer can tell apart: as many have spoken, and many words fit nobody."""
        columns = 0 if self._frames is None else self._frames.shape[1]
        return 0 < columns == len(self._speaking) and self._unsure_s > MAX_UNSURE * self._words_s

    def _released(self) -> list[Segment]:
        if self._new_frames:
            old = [] if self._frames is None else [self._frames]
            self._frames, self._new_frames = np.concatenate([*old, *self._new_frames]), []
        until = math.inf if self._is_complete else self._first_frame + (0 if self._frames is None else len(self._frames))
        ready = 0
        while ready < len(self._pending) and max(_span(word)[1] for word in self._pending[ready].words) <= until:
            ready += 1
        done, self._pending = self._pending[:ready], self._pending[ready:]
        segments = [part for segment in done for part in self._divided(segment)]
        if done:
            self._drop_before(_span(done[-1].words[-1])[0])
        if self._is_given_up:
            segments += [self._numbered(segment, None) for segment in self._pending]
            self._pending = []
        return segments

    def _drop_before(self, frame: int) -> None:
        """No later word needs earlier frames."""
        if self._frames is not None and frame > self._first_frame:
            # The last one stays, for words that end after it.
            dropped = min(frame - self._first_frame, len(self._frames) - 1)
            self._frames, self._first_frame = self._frames[dropped:], self._first_frame + dropped

    def _divided(self, segment: Segment) -> list[Segment]:
        gains = [self._gains(word) for word in segment.words]
        columns = _best_columns(gains, self._previous)
        self._previous = columns[-1]
        starts = [index for index, column in enumerate(columns) if index == 0 or column != columns[index - 1]]
        parts = [segment] if len(starts) == 1 else split(segment, starts)
        return [self._numbered(part, self._name(columns[start])) for part, start in zip(parts, starts, strict=True)]

    def _numbered(self, segment: Segment, speaker: str | None) -> Segment:
        self._next_index += 1
        return replace(segment, index=self._next_index - 1, speaker=speaker)

    def _gains(self, word: Word) -> list[float]:
        """Of each speaker: the mean probability in the word's frames times their duration, seconds."""
        first, end = _span(word)
        duration_s = (end - first) * FRAME_S
        if self._frames is None:
            return [0.0]
        at = min(max(0, first - self._first_frame), len(self._frames) - 1)
        means: list[float] = self._frames[at : max(at + 1, end - self._first_frame)].mean(axis=0).tolist()
        self._words_s += duration_s
        self._unsure_s += duration_s if max(means) < MIN_PROBABILITY else 0.0
        return [mean * duration_s for mean in means]

    def _name(self, column: int) -> str:
        self._speaking.add(column)
        if column not in self._names:
            self._names[column] = next(self._letters)
        return self._names[column]


def _span(word: Word) -> tuple[int, int]:
    """The frames of a word, with the one before it: the first one, and the one after the last."""
    start, end = round(word.start_s * SAMPLE_RATE), round(word.end_s * SAMPLE_RATE)
    first = start // FRAME_SAMPLES
    return max(0, first - 1), max(first + 1, -(-end // FRAME_SAMPLES))


def _best_columns(gains: Sequence[Sequence[float]], previous: int | None) -> list[int]:
    """The column of each word, by dynamic programming."""
    totals = list(gains[0])
    if previous is not None and previous < len(totals):
        totals[previous] += PREVIOUS_BONUS_S
    came_from: list[list[int]] = []
    for gain in gains[1:]:
        best = totals.index(max(totals))
        after_change = totals[best] - CHANGE_COST_S
        came_from.append([column if total >= after_change else best for column, total in enumerate(totals)])
        totals = [max(total, after_change) + more for total, more in zip(totals, gain, strict=True)]
    columns = [totals.index(max(totals))]
    for origins in reversed(came_from):
        columns.append(origins[columns[-1]])
    return columns[::-1]


def _letters(number: int) -> str:
    """A, B, ..., Z, AA, AB, ... of a number from 0 on."""
    rest, last = divmod(number, 26)
    return ("" if rest == 0 else _letters(rest - 1)) + chr(ord("A") + last)
