"""Gap repair: find deletions in a window's tokens and decode them again.

A token-and-duration transducer sometimes skips a whole phrase (NeMo issue 14430). The deletion shows as a gap between tokens in
which the audio has the energy of speech. Decoded in a window that starts elsewhere, the phrase usually comes out. The model for
this is FluidAudio's repair of long transcriptions. All spans are samples from the window's start.
"""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

import numpy as np

from serve_app.merging.seams import group_words
from serve_app.transcript import Token
from serve_app.window import FRAME_SAMPLES, SAMPLE_RATE, Window

MIN_GAP = 3 * SAMPLE_RATE // 2
"""Shortest gap between tokens that can hide a deletion, samples."""

WORD_TAIL = 6 * FRAME_SAMPLES
"""A word sounds on after its last token: this much of a gap, in samples, belongs to the word before it."""

WORD_ONSET = 3 * FRAME_SAMPLES
"""A word sounds before its first token: this much of a gap, in samples, belongs to the word after it."""

SAME_WORD = 4 * FRAME_SAMPLES
"""A word of a retry that starts nearer than this to a known word is that word, samples."""

MIN_SPEECH_FRAMES = 5
"""A gap with fewer frames of speech energy is not decoded again."""

CONTEXT = 2 * SAMPLE_RATE
"""Audio on either side of the speech energy in a retry window, samples."""

FREE_RETRIES = 4
"""Retries of a recording that may find nothing, before WINDOWS_PER_RETRY limits them."""

WINDOWS_PER_RETRY = 5
"""Beyond the free ones, one retry may find nothing per this many windows: music has the energy of speech for hours."""

_FULL_SCALE = 32768.0
_MIN_LEVEL = 0.002
"""RMS level below which a frame is never speech, as a fraction of full scale."""

_ABOVE_NOISE = 3.0
"""Speech is at least this many times as loud as the window's noise floor (10th percentile of the frame levels)."""

_BELOW_SPEECH = 0.25
"""Speech is at least this fraction of the median level of the frames that have tokens."""


@dataclass(frozen=True, slots=True)
class Gap:
    """Half-open spans, samples from the window's start: the gap between tokens, and the speech energy within it."""

    start: int
    end: int
    speech_start: int
    speech_end: int


def suspicious_gaps(window: Window, tokens: Sequence[Token]) -> list[Gap]:
    """Gaps of at least MIN_GAP with speech energy, before the first and after the last token included."""
    frames = window.samples[: len(window.samples) // FRAME_SAMPLES * FRAME_SAMPLES].reshape(-1, FRAME_SAMPLES)
    if not len(frames):
        return []
    level = np.sqrt(np.square(frames.astype(np.float32) / _FULL_SCALE).mean(axis=1))
    has_token = np.zeros(len(level), dtype=bool)
    for token in tokens:
        has_token[token.start_sample // FRAME_SAMPLES : token.end_sample // FRAME_SAMPLES + 1] = True
    threshold = max(_MIN_LEVEL, _ABOVE_NOISE * float(np.percentile(level, 10)))
    if has_token.any():
        threshold = max(threshold, _BELOW_SPEECH * float(np.median(level[has_token])))

    gaps, start = [], 0
    for end, resume in [*((token.start_sample, token.end_sample) for token in tokens), (len(window.samples), 0)]:
        first = (start + WORD_TAIL) // FRAME_SAMPLES
        speech = first + np.flatnonzero(level[first : (end - WORD_ONSET) // FRAME_SAMPLES] > threshold)
        if end - start >= MIN_GAP and len(speech) >= MIN_SPEECH_FRAMES:
            gaps.append(Gap(start, end, int(speech[0]) * FRAME_SAMPLES, int(speech[-1] + 1) * FRAME_SAMPLES))
        start = max(start, resume)
    return gaps


def retry_window(window: Window, gap: Gap) -> Window:
    """The window in which a gap is decoded again: its speech energy and CONTEXT on either side, on the frame grid."""
    start = max(0, gap.speech_start - CONTEXT)
    samples = window.samples[start : gap.speech_end + CONTEXT]
    return Window(window.index, window.start_sample + start, samples, is_retry=True)


def filled(tokens: Sequence[Token], gap: Gap, retried: Sequence[Token]) -> list[Token]:
    """The tokens, with those words of the retry that lie in the gap."""
    before = [t for t in tokens if t.start_sample < gap.start or t.end_sample <= gap.start]
    after = tokens[len(before) :]
    # The retry decodes the words at the edges of the gap too, some frames off.
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
    """Recognises the windows of one recording and retries their suspicious gaps, as long as retries find words."""

    def __init__(self, recognise: Callable[[Window], Awaitable[list[Token]]]) -> None:
        self._recognise = recognise
        self._windows = 0
        self._empty_retries = 0

    async def __call__(self, window: Window) -> list[Token]:
        """Tokens of one window, with times in samples from its start."""
        self._windows += 1
        tokens = await self._recognise(window)
        for gap in suspicious_gaps(window, tokens):
            retry = retry_window(window, gap)
            is_allowed = self._empty_retries < FREE_RETRIES + self._windows // WINDOWS_PER_RETRY
            if len(retry.samples) == len(window.samples) or not is_allowed:
                continue
            retried = [token.moved(retry.start_sample - window.start_sample) for token in await self._recognise(retry)]
            repaired = filled(tokens, gap, retried)
            self._empty_retries += len(repaired) == len(tokens)
            tokens = repaired
        return tokens
