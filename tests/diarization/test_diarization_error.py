"""The diarization error rate by cases worked out by hand."""

import numpy as np
import pytest

from testing.diarization_error import Span, diarization_error, spans_of

TWO = [Span("ann", 0.0, 10.0), Span("ben", 10.0, 20.0)]
"""Outside the collars of 0.25 s: 9.5 s of each."""


def test_a_perfect_answer_has_no_error_whatever_the_speakers_are_called() -> None:
    assert diarization_error(TWO, [Span("B", 0.0, 10.0), Span("A", 10.0, 20.0)]).rate == 0


def test_one_speaker_for_all_is_confused_for_half_of_the_speech() -> None:
    error = diarization_error(TWO, [Span("A", 0.0, 20.0)])
    assert (error.missed_s, error.false_alarm_s) == (0, 0)
    assert error.confused_s == pytest.approx(9.5)
    assert error.speech_s == pytest.approx(19.0)
    assert error.rate == pytest.approx(0.5)


def test_nothing_found_is_all_missed() -> None:
    error = diarization_error(TWO, [])
    assert error.missed_s == pytest.approx(19.0)
    assert error.rate == pytest.approx(1.0)


def test_speech_where_there_is_none_is_a_false_alarm() -> None:
    error = diarization_error([Span("ann", 0.0, 10.0)], [Span("A", 0.0, 14.0)])
    assert error.false_alarm_s == pytest.approx(14.0 - 10.25)
    assert error.speech_s == pytest.approx(9.5)


def test_errors_within_the_collar_do_not_count() -> None:
    assert diarization_error(TWO, [Span("A", 0.2, 10.2), Span("B", 10.2, 19.8)]).rate == 0
    assert diarization_error(TWO, [Span("A", 0.2, 10.2), Span("B", 10.2, 19.8)], collar_s=0.0).rate == pytest.approx(0.6 / 20)


def test_overlapping_speech_counts_for_each_person() -> None:
    reference = [Span("ann", 0.0, 10.0), Span("ben", 4.0, 8.0)]
    error = diarization_error(reference, [Span("A", 0.0, 10.0)])
    assert error.missed_s == pytest.approx(3.5)
    assert error.speech_s == pytest.approx(10.0 - 0.5 - 1.0 + 3.5)


def test_more_speakers_than_there_are_are_mapped_to_none() -> None:
    error = diarization_error([Span("ann", 0.0, 10.0)], [Span("A", 0.0, 6.0), Span("B", 6.0, 10.0)])
    assert error.confused_s == pytest.approx(3.75)


def test_recordings_add_up_by_their_speech() -> None:
    half = diarization_error(TWO, [Span("A", 0.0, 20.0)])
    none = diarization_error([Span("ann", 0.0, 40.0)], [Span("A", 0.0, 40.0)])
    assert (half + none).rate == pytest.approx(9.5 / (19.0 + 39.5))


def test_silence_has_no_rate() -> None:
    with pytest.raises(ValueError, match="no speech"):
        diarization_error([], [Span("A", 0.0, 1.0)])


def test_spans_are_the_runs_of_each_column() -> None:
    active = np.array([[1, 0], [1, 1], [0, 1], [1, 0]], bool)
    assert spans_of(active, 0.08) == [Span("0", 0.0, 0.16), Span("0", 0.24, 0.32), Span("1", 0.08, 0.24)]
