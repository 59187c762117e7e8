"""What must hold of the seams and the word times of a long recording."""

import math
from pathlib import Path

import numpy as np

from serve_app.audio.decoding import AudioFile
from serve_app.window import FRAME_SAMPLES, SAMPLE_RATE, Samples
from testing.seam_accuracy import SeamFigures

WORD_ERROR_MARGIN = 0.002
"""Additional word error rate that a whole file may have over its pieces, a fraction."""

UNLIKELY = 0.01
"""Seams cause errors if so many errors near them would happen by chance with less than this probability."""

MINUTE_MARGIN_S = 0.03
"""Allowed rise of a minute's median start error, seconds: it varies by about 10 ms (some 60 words, timed to frames of 80 ms)."""

DRIFT_S = FRAME_SAMPLES / SAMPLE_RATE / 4
"""Allowed drift of the start times over a recording, seconds."""


def decoded(path: Path) -> Samples:
    with path.open("rb") as file:
        return np.concatenate(list(AudioFile(file).blocks()))


def assert_seams_and_times_are_sound(figures: SeamFigures) -> None:
    """Insertions and deletions are no more frequent near seams than elsewhere; times are as in the first minute throughout."""
    assert figures.chance > UNLIKELY
    first_s, *later_s = figures.errors_by_s(60)
    assert max(later_s) <= first_s + MINUTE_MARGIN_S
    assert max(figures.errors_by_s(600)) <= first_s + MINUTE_MARGIN_S / 2
    assert abs(figures.drift_s) <= DRIFT_S


def assert_no_more_errors(figures: SeamFigures, reference: SeamFigures) -> None:
    """Within 0.2 %, and twice the standard error of the difference: only words that one of the two got wrong tell them apart."""
    chance = 2 * math.sqrt(len(figures.wrong ^ reference.wrong)) / figures.words
    assert figures.word_error_rate <= reference.word_error_rate + WORD_ERROR_MARGIN + chance
