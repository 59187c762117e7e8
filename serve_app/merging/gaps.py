"""Stage 3: find speech that a model passed over, and put in what a second look at it gives.

A token-and-duration transducer now and then jumps over a whole phrase (NeMo issue 14430). It shows as a gap between tokens where
the audio is as loud as speech. Decoded again in a window that begins elsewhere, the phrase mostly comes out; FluidAudio's
repair of long transcriptions is the model for this.
"""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

import numpy as np

from serve_app.merging.seams import group_words
from serve_app.transcript import Token
from serve_app.window import FRAME_SAMPLES, SAMPLE_RATE, Window

MIN_GAP = 3 * SAMPLE_RATE // 2
WORD_TAIL = 6 * FRAME_SAMPLES
WORD_ONSET = 3 * FRAME_SAMPLES
"""A word sounds on after its last token and begins before its first, samples: this much of a gap belongs to its neighbours."""

SAME_WORD = 4 * FRAME_SAMPLES
"""Nearer than this a word is the same one, heard again."""

MIN_SPEECH_FRAMES = 5
CONTEXT = 2 * SAMPLE_RATE
"""Audio decoded to either side of the speech in a gap, samples."""

FREE_RETRIES = 4
WINDOWS_PER_RETRY = 5
"""Second looks that may find nothing: a few, and one more for so many windows. Music sounds like speech for hours."""

_FULL_SCALE = 32768.0
_MIN_LEVEL = 0.002
_ABOVE_NOISE = 3.0
_BELOW_SPEECH = 0.25


@dataclass(frozen=True, slots=True)
class Gap:
    """Half-open spans, samples from the window's start: the one without tokens, and within it the one that is loud."""

    start: int
    end: int
    speech_start: int
    speech_end: int


def suspicious_gaps(window: Window, tokens: Sequence[Token]) -> list[Gap]:
    """Gaps of a window, edges included, that sound like speech. Token times: samples from the window's start."""
    frames = window.samples[: len(window.samples) // FRAME_SAMPLES * FRAME_SAMPLES].reshape(-1, FRAME_SAMPLES)
    if not len(frames):
        return []
    level = np.sqrt(np.square(frames.astype(np.float32) / _FULL_SCALE).mean(axis=1))
    spoken = np.zeros(len(level), dtype=bool)
    for token in tokens:
        spoken[token.start_sample // FRAME_SAMPLES : token.end_sample // FRAME_SAMPLES + 1] = True
    threshold = max(_MIN_LEVEL, _ABOVE_NOISE * float(np.percentile(level, 10)))
    if spoken.any():
        threshold = max(threshold, _BELOW_SPEECH * float(np.median(level[spoken])))

    gaps, start = [], 0
    for end, resume in [*((token.start_sample, token.end_sample) for token in tokens), (len(window.samples), 0)]:
        first = (start + WORD_TAIL) // FRAME_SAMPLES
        loud = first + np.flatnonzero(level[first : (end - WORD_ONSET) // FRAME_SAMPLES] > threshold)
        if end - start >= MIN_GAP and len(loud) >= MIN_SPEECH_FRAMES:
            gaps.append(Gap(start, end, int(loud[0]) * FRAME_SAMPLES, int(loud[-1] + 1) * FRAME_SAMPLES))
        start = max(start, resume)
    return gaps


def retry_window(window: Window, gap: Gap) -> Window:
    """The window in which a gap is to be heard again: what is loud in it and a little around, on the frame grid."""
    start = max(0, gap.speech_start - CONTEXT)
    samples = window.samples[start : gap.speech_end + CONTEXT]
    return Window(window.index, window.start_sample + start, samples, is_retry=True)


def filled(tokens: Sequence[Token], gap: Gap, found: Sequence[Token]) -> list[Token]:
    """The tokens with those of `found` that lie in the gap; all times: samples from the window's start."""
    before = [t for t in tokens if t.start_sample < gap.start or t.end_sample <= gap.start]
    after = tokens[len(before) :]
    # The words at the edges of the gap are heard again too, some frames off.
    edges = [word.start for word in (*group_words(before)[-1:], *group_words(after)[:1])]
    inside = [
        token
        for word in group_words(found)
        if gap.start <= word.start and word.tokens[-1].end_sample <= gap.end
        if all(abs(word.start - start) >= SAME_WORD for start in edges)
        for token in word.tokens
    ]
    return [*before, *inside, *after]


class GapRepair:
    """Recognises the windows of one recording, and hears suspicious gaps again for as long as that pays."""

    def __init__(self, recognise: Callable[[Window], Awaitable[list[Token]]]) -> None:
        self._recognise = recognise
        self._windows = 0
        self._fruitless = 0

    async def __call__(self, window: Window) -> list[Token]:
        """Tokens of one window, with times in samples from its start."""
        self._windows += 1
        tokens = await self._recognise(window)
        for gap in suspicious_gaps(window, tokens):
            look = retry_window(window, gap)
            if len(look.samples) == len(window.samples) or self._fruitless >= FREE_RETRIES + self._windows // WINDOWS_PER_RETRY:
                continue
            found = [token.moved(look.start_sample - window.start_sample) for token in await self._recognise(look)]
            more = filled(tokens, gap, found)
            self._fruitless += len(more) == len(tokens)
            tokens = more
        return tokens
