"""Gap repair: find deletions in a window's tokens and decode them again.

A token-and-duration transducer sometimes skips a whole phrase (NeMo issue 14430). The deletion is a gap between tokens where the
audio has speech energy. The phrase is usually decoded in a window that starts elsewhere. The method follows FluidAudio's repair
of long transcriptions. All spans are samples from the window's start.
"""

import asyncio
import math
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np

from serve_app.merging.seams import group_words
from serve_app.tasks import stop
from serve_app.transcript import Token
from serve_app.window import FRAME_SAMPLES, SAMPLE_RATE, Levels, Samples, Window

MIN_GAP = 3 * SAMPLE_RATE // 2
"""Shortest gap between tokens that can hide a deletion, samples."""

WORD_TAIL = 6 * FRAME_SAMPLES
"""Start of a gap that is not searched, samples: there the previous word may still sound after its last token."""

WORD_ONSET = 3 * FRAME_SAMPLES
"""End of a gap that is not searched, samples: there the next word may already sound before its first token."""

SAME_WORD = 4 * FRAME_SAMPLES
"""A word of a retry counts as the known word beside the gap if their starts differ by less than this, samples."""

MIN_SPEECH_FRAMES = 5
"""Minimum number of encoder frames with speech energy for a retry."""

CONTEXT = 2 * SAMPLE_RATE
"""Left and right context of the speech energy in a retry window, samples."""

FREE_RETRIES = 4
"""Number of retries per recording that may find no words before WINDOWS_PER_RETRY limits them."""

WINDOWS_PER_RETRY = 5
"""After the free retries, one more retry may find no words for every this many windows.

Without the limit, hours of music, which has speech energy, would cause a retry in every window.
"""

RETRY_LAG = 8
"""A window counts the retries of windows that are at least this many before it, so that as many can be at work at once."""

_FULL_SCALE = 32768.0
"""Full scale of int16 samples."""

_MIN_LEVEL = 0.002
"""RMS level, as a fraction of full scale, below which a frame is never speech."""

_MIN_NOISE_RATIO = 3.0
"""Minimum ratio of the RMS level of speech to the window's noise floor (10th percentile of the frame levels)."""

_MIN_TOKEN_RATIO = 0.25
"""Minimum ratio of the RMS level of speech to the median level of the frames that have tokens."""


@dataclass(frozen=True, slots=True)
class Gap:
    """Two half-open spans, samples from the window's start: the gap between tokens, and the speech energy within the gap."""

    start: int
    end: int
    speech_start: int
    speech_end: int


def frame_levels(samples: Samples) -> Levels:
    """The level of each whole encoder frame of int16 [samples]."""
    frames = samples[: len(samples) // FRAME_SAMPLES * FRAME_SAMPLES].reshape(-1, FRAME_SAMPLES).astype(np.float32)
    levels: Levels = np.sqrt(np.vecdot(frames, frames) / FRAME_SAMPLES) / np.float32(_FULL_SCALE)
    return levels


def suspicious_gaps(window: Window, tokens: Sequence[Token]) -> list[Gap]:
    """Gaps of at least MIN_GAP that contain speech energy, also before the first token and after the last one."""
    level = frame_levels(window.samples) if window.levels is None else window.levels
    if not len(level):
        return []
    has_token = np.zeros(len(level), dtype=bool)
    for token in tokens:
        has_token[token.start_sample // FRAME_SAMPLES : token.end_sample // FRAME_SAMPLES + 1] = True
    threshold = max(_MIN_LEVEL, _MIN_NOISE_RATIO * _quantile(level, 0.1))
    if has_token.any():
        threshold = max(threshold, _MIN_TOKEN_RATIO * _quantile(level[has_token], 0.5))

    gaps, start = [], 0
    for end, next_start in [*((token.start_sample, token.end_sample) for token in tokens), (len(window.samples), 0)]:
        if end - start >= MIN_GAP:
            first = (start + WORD_TAIL) // FRAME_SAMPLES
            speech = first + np.flatnonzero(level[first : (end - WORD_ONSET) // FRAME_SAMPLES] > threshold)
            if len(speech) >= MIN_SPEECH_FRAMES:
                gaps.append(Gap(start, end, int(speech[0]) * FRAME_SAMPLES, int(speech[-1] + 1) * FRAME_SAMPLES))
        start = max(start, next_start)
    return gaps


def _quantile(values: Levels, share: float) -> float:
    """As np.quantile, which takes several times as long on so few values."""
    ordered = np.sort(values)
    place = share * (len(ordered) - 1)
    below = ordered[int(place)]
    return float(below + (ordered[math.ceil(place)] - below) * (place - int(place)))


def retry_window(window: Window, gap: Gap) -> Window:
    """The window in which a gap is decoded again: its speech energy with CONTEXT on either side, aligned to encoder frames."""
    start = max(0, gap.speech_start - CONTEXT)
    samples = window.samples[start : gap.speech_end + CONTEXT]
    return Window(window.index, window.start_sample + start, samples, is_retry=True, channel=window.channel)


def filled(tokens: Sequence[Token], gap: Gap, retried: Sequence[Token]) -> list[Token]:
    """`tokens` with the words of `retried` that lie in the gap inserted. All times: samples from the same start."""
    before = [t for t in tokens if t.start_sample < gap.start or t.end_sample <= gap.start]
    after = tokens[len(before) :]
    # The retry also decodes the words at the edges of the gap, at times that differ by some frames.
    edges = [word.start for word in (*group_words(before)[-1:], *group_words(after)[:1])]
    inside = [
        token
        for word in group_words(retried)
        if gap.start <= word.start and word.tokens[-1].end_sample <= gap.end
        if all(abs(word.start - start) >= SAME_WORD for start in edges)
        for token in word.tokens
    ]
    return [*before, *inside, *after]


class GapRepair:
    """Recognises the windows of one recording and repairs deletions: it decodes each gap with speech energy once more.

    The number of retries that may find no words is limited by FREE_RETRIES and WINDOWS_PER_RETRY. What a gap may do depends on
    the gaps before it in its window and on windows before that (RETRY_LAG) alone, however many are recognised at once and in
    which order they are done.
    """

    def __init__(self, recognise: Callable[[Window], Awaitable[list[Token]]]) -> None:
        self._recognise = recognise
        self._empty_before = [0]  # retries without words in all windows before each one, as far as those are done
        self._done: dict[int, int] = {}  # the same of single windows behind one that is not done, by index
        # Whether its retry found no words, for each gap of the windows that are decoded and not done, by index; None: not known
        self._is_empty: dict[int, list[bool | None]] = {}
        self._bounds: list[tuple[int, float]] | None = None  # see _empty_retry_bounds; None: something has changed
        self._waiting: list[tuple[int, int, asyncio.Future[bool]]] = []  # arguments and result of _decision

    async def __call__(self, window: Window) -> list[Token]:
        """Tokens of one window, with times in samples from its start. The windows have the indexes 0, 1, 2, ..."""
        tokens = await self._recognise(window)
        gaps = [(gap, retry_window(window, gap)) for gap in suspicious_gaps(window, tokens)]
        gaps = [(gap, retry) for gap, retry in gaps if len(retry.samples) < len(window.samples)]
        self._is_empty[window.index] = [None] * len(gaps)
        self._note_change()
        retries = [
            asyncio.ensure_future(self._retry(window, tokens, number, gap, retry)) for number, (gap, retry) in enumerate(gaps)
        ]
        try:
            for (gap, _), retried in zip(gaps, retries, strict=True):
                tokens = filled(tokens, gap, await retried)
        finally:
            await stop(*retries)
        self._note_done(window.index)
        return tokens

    async def _retry(self, window: Window, tokens: Sequence[Token], number: int, gap: Gap, retry: Window) -> list[Token]:
        """The tokens of gap `number` of a window that has `tokens`, with times from the start of the window; none if it may not
        be decoded again."""
        retried: list[Token] = []
        if may_retry := await self._may_retry(window.index, number):
            moved = retry.start_sample - window.start_sample
            retried = [token.moved(moved) for token in await self._recognise(retry)]
        is_empty = self._is_empty[window.index]
        is_empty[number] = may_retry and len(filled(tokens, gap, retried)) == len(tokens)
        if None in is_empty:  # otherwise the window is done
            self._note_change()
        return retried

    async def _may_retry(self, index: int, number: int) -> bool:
        """Whether gap `number` of window `index` may be decoded again; waits until that is known."""
        if (decision := self._decision(index, number)) is not None:
            return decision
        decided: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._waiting.append((index, number, decided))
        return await decided

    def _decision(self, index: int, number: int) -> bool | None:
        """Whether few enough retries that count for gap `number` of window `index` find no words; None while it is not known."""
        limit = FREE_RETRIES + (index + 1) // WINDOWS_PER_RETRY
        minimum, maximum = self._empty_retries_before(max(0, index - RETRY_LAG))
        own_minimum, own_maximum = _bounds(self._is_empty[index][:number])
        return False if minimum + own_minimum >= limit else True if maximum + own_maximum < limit else None

    def _empty_retries_before(self, index: int) -> tuple[int, float]:
        """Minimum and maximum number of retries without words in the windows before `index`, as far as is known."""
        done = len(self._empty_before) - 1
        if index <= done:
            return self._empty_before[index], self._empty_before[index]
        if self._bounds is None:
            self._bounds = self._empty_retry_bounds()
        if index - done < len(self._bounds):
            return self._bounds[index - done]
        # Windows after the last one that was decoded have at least no retry, and maybe any number.
        return self._bounds[-1][0], math.inf

    def _empty_retry_bounds(self) -> list[tuple[int, float]]:
        """`_empty_retries_before` for the first window that is not done and those after it, up to the last decoded one. Prefix
        sums, as many windows ask for them."""
        done = len(self._empty_before) - 1
        others = [self._bounds_of(index) for index in range(done, max([done - 1, *self._is_empty, *self._done]) + 1)]
        minima = accumulate((minimum for minimum, _ in others), initial=self._empty_before[done])
        maxima = accumulate((maximum for _, maximum in others), initial=float(self._empty_before[done]))
        return list(zip(minima, maxima, strict=True))

    def _bounds_of(self, index: int) -> tuple[int, float]:
        """Minimum and maximum number of retries of window `index` that find no words."""
        if (count := self._done.get(index)) is not None:
            return count, count
        is_empty = self._is_empty.get(index)
        return (0, math.inf) if is_empty is None else _bounds(is_empty)

    def _note_done(self, index: int) -> None:
        self._done[index], _ = _bounds(self._is_empty.pop(index))
        while (count := self._done.pop(len(self._empty_before) - 1, None)) is not None:
            self._empty_before.append(self._empty_before[-1] + count)
        self._note_change()

    def _note_change(self) -> None:
        self._bounds = None
        waiting, self._waiting = self._waiting, []
        for index, number, decided in waiting:
            if decided.done():  # cancelled
                continue
            if (decision := self._decision(index, number)) is None:
                self._waiting.append((index, number, decided))
            else:
                decided.set_result(decision)


def _bounds(is_empty: Sequence[bool | None]) -> tuple[int, int]:
    """Minimum and maximum number of retries that find no words."""
    return is_empty.count(True), len(is_empty) - is_empty.count(False)
