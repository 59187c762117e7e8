"""The diarization error rate (DER): missed speech, false alarms and confused speakers, as a share of the speech.

Times are quantised to frames of 10 ms. Overlapping speech is scored. Around the start and end of every turn of the reference, a
collar is not scored, as in the evaluations of NIST. The speakers found are mapped to those of the reference in the best way.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

FRAME_S = 0.01
"""Resolution of the score, seconds."""

COLLAR_S = 0.25
"""Unscored time on either side of a boundary, seconds."""


@dataclass(frozen=True, slots=True)
class Span:
    """Speech of one person, seconds."""

    speaker: str
    start_s: float
    end_s: float


@dataclass(frozen=True, slots=True)
class DiarizationError:
    """Times in seconds of speech; where several people speak, each counts."""

    missed_s: float
    false_alarm_s: float
    confused_s: float
    speech_s: float

    @property
    def rate(self) -> float:
        return (self.missed_s + self.false_alarm_s + self.confused_s) / self.speech_s

    def __add__(self, other: "DiarizationError") -> "DiarizationError":
        return DiarizationError(
            self.missed_s + other.missed_s,
            self.false_alarm_s + other.false_alarm_s,
            self.confused_s + other.confused_s,
            self.speech_s + other.speech_s,
        )


def diarization_error(reference: Iterable[Span], found: Iterable[Span], *, collar_s: float = COLLAR_S) -> DiarizationError:
    """The error of one recording. Raises ValueError if the reference has no speech outside the collars."""
    reference, found = list(reference), list(found)
    frames = round(max((span.end_s for span in [*reference, *found]), default=0.0) / FRAME_S)
    truth, guess = _activity(reference, frames), _activity(found, frames)
    scored = np.ones(frames, bool)
    for span in reference:
        for boundary in (span.start_s, span.end_s):
            scored[max(0, round((boundary - collar_s) / FRAME_S)) : round((boundary + collar_s) / FRAME_S)] = False
    truth, guess = truth[:, scored], guess[:, scored]
    speaking, claimed = truth.sum(0), guess.sum(0)
    if not speaking.any():
        raise ValueError("no speech to score")
    together = truth.astype(np.int64) @ guess.T.astype(np.int64)
    rows, columns = linear_sum_assignment(-together)
    right = np.zeros(truth.shape[1], np.int64)
    for row, column in zip(rows, columns, strict=True):
        right += truth[row] & guess[column]
    missed = np.maximum(speaking - claimed, 0).sum()
    false_alarm = np.maximum(claimed - speaking, 0).sum()
    confused = (np.minimum(speaking, claimed) - right).sum()
    return DiarizationError(*(float(count) * FRAME_S for count in (missed, false_alarm, confused, speaking.sum())))


def spans_of(active: NDArray[np.bool_], frame_s: float) -> list[Span]:
    """The runs of an activity matrix, bool [frames, speakers]; speakers are named by their column."""
    spans: list[Span] = []
    for column in range(active.shape[1]):
        padded = np.concatenate([[False], active[:, column], [False]]).astype(np.int8)
        starts, ends = np.flatnonzero(np.diff(padded) == 1), np.flatnonzero(np.diff(padded) == -1)
        spans += [Span(str(column), s * frame_s, e * frame_s) for s, e in zip(starts, ends, strict=True)]
    return spans


def _activity(spans: list[Span], frames: int) -> NDArray[np.bool_]:
    """bool [speakers, frames]"""
    names = sorted({span.speaker for span in spans})
    active = np.zeros((len(names), frames), bool)
    for span in spans:
        active[names.index(span.speaker), round(span.start_s / FRAME_S) : round(span.end_s / FRAME_S)] = True
    return active
