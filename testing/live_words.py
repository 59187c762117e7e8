"""Words at known times, and what a model makes of the windows of a live session in which they are said."""

import numpy as np

from serve_app.events import LiveEvent, SegmentFinal
from serve_app.transcript import Token
from serve_app.window import FRAME_SAMPLES, Window

WORD = 4 * FRAME_SAMPLES


def said(gaps: list[int]) -> list[Token]:
    """Words with so many frames of pause before each; the text of every third is the same, every tenth ends a sentence."""
    words, at = [], 0
    for n, gap in enumerate(gaps):
        at += gap * FRAME_SAMPLES
        words.append(Token(f"▁w{n if n % 3 else 0}" + "." * (n % 10 == 9), n, at, at + WORD, 0.9))
        at += WORD
    return words


def decoded(window: Window, words: list[Token], jitter: int = 0) -> list[Token]:
    """What a model makes of a window: the words that lie wholly in it, a frame off now and then, and of one that the window's end
    cuts off something else."""
    shift = FRAME_SAMPLES * (window.index % 2) * jitter
    tokens = []
    for word in words:
        if word.start_sample < window.start_sample or word.start_sample > window.end_sample - FRAME_SAMPLES:
            continue
        if word.end_sample <= window.end_sample:
            tokens.append(word.moved(shift - window.start_sample))
        else:
            tokens.append(Token("▁cut", 999, word.start_sample - window.start_sample, len(window.samples), 0.3))
    return tokens


def silence(samples: int) -> np.ndarray:
    return np.zeros(samples, np.int16)


def final_tokens(events: list[LiveEvent]) -> list[Token]:
    return [token for event in events if isinstance(event, SegmentFinal) for token in event.segment.tokens]
