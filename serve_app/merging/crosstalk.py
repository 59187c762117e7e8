"""Crosstalk: words that a channel has only because it hears the talker of another one. Pure.

Microphones in one room, and telephones with an echo, have every talker in every channel, at different levels. A word is left out
if another channel has the same word at the same time and clearly louder. Two talkers who say the same word at once have it at a
similar level, each in the own channel, and keep both.
"""

import sys
from bisect import bisect_left
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from serve_app.merging.seams import group_words
from serve_app.transcript import Token
from serve_app.window import FRAME_SAMPLES, Levels

SAME_TIME = 2 * FRAME_SAMPLES
"""Words are at the same time if their starts differ by at most this, samples (0.16 s)."""

LOUDER = 3.16
"""Ratio of RMS levels from which one word is clearly louder than another, 10 dB."""


class _Heard(NamedTuple):
    """A word of one channel."""

    start: int
    key: str
    """Its text for comparison."""
    levels: Levels
    """Of the encoder frames in which it sounds."""
    tokens: tuple[Token, ...]

    def is_louder(self, other: "_Heard", ratio: float) -> bool:
        """Whether this word is louder by this ratio of levels, where both sound.

        By the median of the frames: in some of them there may be another word as well.
        """
        ours, theirs = self.start // FRAME_SAMPLES, other.start // FRAME_SAMPLES
        first, last = max(ours, theirs), min(ours + len(self.levels), theirs + len(other.levels))
        if first >= last:
            return False
        level = np.median(self.levels[first - ours : last - ours])
        return bool(level >= ratio * np.median(other.levels[first - theirs : last - theirs]) > 0)


class _Channel:
    def __init__(self) -> None:
        self.words: list[_Heard] = []
        """In order; those that were decided are kept as long as words of other channels may be compared with them."""
        self.decided = 0
        """How many of them are decided."""
        self.settled = 0
        """No word that is still to come starts before this."""
        self._levels: Levels = np.zeros(0, np.float32)
        self._first_frame = 0

    @property
    def position(self) -> int:
        """No word that is undecided or still to come starts before this."""
        return min(self.settled, self.words[self.decided].start) if self.decided < len(self.words) else self.settled

    def add_levels(self, start_sample: int, levels: Levels) -> None:
        # The last window starts where it has its full length, even if most of that is done.
        known = start_sample // FRAME_SAMPLES - self._first_frame
        self._levels = np.concatenate([self._levels[: max(0, known)], levels[max(0, -known) :]])

    def add_words(self, tokens: Sequence[Token], settled: int) -> None:
        for word in group_words(tokens):
            self.words.append(_Heard(word.start, word.key, self._levels_of(word.start, word.end), word.tokens))
        self.settled = settled
        passed = min(max(0, settled // FRAME_SAMPLES - self._first_frame), len(self._levels))
        self._levels, self._first_frame = self._levels[passed:], self._first_frame + passed

    def has_louder(self, word: _Heard, ratio: float) -> bool:
        """Whether this channel has the same word at the same time, louder by this ratio of levels."""
        first = bisect_left(self.words, word.start - SAME_TIME, key=lambda other: other.start)
        for other in self.words[first:]:
            if other.start > word.start + SAME_TIME:
                break
            if other.key == word.key and other.is_louder(word, ratio):
                return True
        return False

    def forget_before(self, sample: int) -> None:
        passed = bisect_left(self.words, sample, hi=self.decided, key=lambda word: word.start)
        del self.words[:passed]
        self.decided -= passed

    def _levels_of(self, start: int, end: int) -> Levels:
        first = start // FRAME_SAMPLES - self._first_frame
        return self._levels[first : max(first + 1, -(-end // FRAME_SAMPLES) - self._first_frame)]


class Crosstalk:
    """The channels of one recording. What it holds does not grow with the recording, but with how far the channels are apart."""

    def __init__(self, channels: int, louder: float = LOUDER) -> None:
        """`louder`: ratio of levels from which a word is crosstalk of another; infinite: none is."""
        self._louder = louder
        self._channels = [_Channel() for _ in range(channels)]

    @property
    def positions(self) -> list[int]:
        """Of each channel: no token that is still to be returned starts before this, samples."""
        return [channel.position for channel in self._channels]

    def add_levels(self, channel: int, start_sample: int, levels: Levels) -> None:
        """The levels of the next window of a channel, which starts at this sample."""
        self._channels[channel].add_levels(start_sample, levels)

    def add(self, channel: int, tokens: Sequence[Token], settled: int) -> list[list[Token]]:
        """Add the next tokens of a channel, whole words, whose levels were added before; return those that stay, by channel.

        `settled`: no token that is still to come in this channel starts before this, samples.
        """
        self._channels[channel].add_words(tokens, settled)
        return self._decide()

    def finish(self) -> list[list[Token]]:
        """The same, once no channel has any more."""
        for channel in self._channels:
            channel.settled = sys.maxsize
        return self._decide()

    def _decide(self) -> list[list[Token]]:
        kept: list[list[Token]] = []
        for channel in self._channels:
            others = [other for other in self._channels if other is not channel]
            until = min((other.settled for other in others), default=sys.maxsize) - SAME_TIME
            kept.append([])
            while channel.decided < len(channel.words) and channel.words[channel.decided].start < until:
                word = channel.words[channel.decided]
                channel.decided += 1
                if not any(other.has_louder(word, self._louder) for other in others):
                    kept[-1] += word.tokens
        reach = min(self.positions) - SAME_TIME
        for channel in self._channels:
            channel.forget_before(reach)
        return kept
