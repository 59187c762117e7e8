"""The figures of seams on faults that are made on purpose, and the long recordings that they are measured on."""

from pathlib import Path

import numpy as np
import pytest

from serve_app.transcript import Word
from serve_app.window import SAMPLE_RATE
from testing.digit_strings import Bank
from testing.long_recordings import CONDITIONS, FORMATS, Recording, compose_long, piece_starts, pieces, write
from testing.seam_accuracy import judge_seams
from testing.seam_checks import UNLIKELY, assert_seams_and_times_are_sound, decoded


class TestFigures:
    """The judge itself, on faults that are made on purpose."""

    @pytest.fixture(scope="class")
    @classmethod
    def recording(cls, bank: Bank) -> Recording:
        return compose_long(bank, 300, seed=5)

    def recognised(self, recording: Recording) -> list[Word]:
        return [Word(w.text, w.start_sample / SAMPLE_RATE, w.end_sample / SAMPLE_RATE, 1.0) for w in recording.words]

    def test_the_truth_is_without_fault(self, recording: Recording) -> None:
        figures = judge_seams(recording, self.recognised(recording), [100 * SAMPLE_RATE])
        assert (figures.word_error_rate, figures.near, figures.elsewhere, figures.chance) == (0, 0, 0, 1)
        assert figures.near_share == pytest.approx(4 / figures.duration_s)
        assert max(figures.errors_by_s(60)) == pytest.approx(0, abs=1e-9)

    def test_words_that_are_lost_or_doubled_at_seams_count_there(self, recording: Recording) -> None:
        words = self.recognised(recording)
        seams = [recording.words[k].start_sample for k in (40, 80, 120)]
        del words[120]
        words[80:80] = [words[80]._replace(text="Six.")]
        words[60] = words[60]._replace(text="oh")
        del words[40]
        figures = judge_seams(recording, words, seams)
        assert (figures.near, figures.elsewhere) == (3, 0)
        assert figures.word_error_rate == pytest.approx(4 / figures.words)
        assert figures.chance < UNLIKELY
        with pytest.raises(AssertionError):
            assert_seams_and_times_are_sound(figures)

    def test_drift_is_seen(self, recording: Recording) -> None:
        late = [w._replace(start_s=w.start_s * 1.001) for w in self.recognised(recording)]
        figures = judge_seams(recording, late, [])
        assert figures.drift_s == pytest.approx(0.001 * figures.duration_s, rel=0.01)
        with pytest.raises(AssertionError):
            assert_seams_and_times_are_sound(figures)


@pytest.mark.parametrize("name", CONDITIONS)
def test_pieces_are_cut_between_words(bank: Bank, name: str) -> None:
    recording = compose_long(bank, 400, seed=6, condition=CONDITIONS[name])
    cut = pieces(recording.samples, piece_starts(recording, 20))
    assert np.array_equal(np.concatenate([piece.samples for piece in cut]), recording.samples)
    assert all(len(piece.samples) <= 20 * SAMPLE_RATE for piece in cut)
    for piece in cut:
        assert not any(word.start_sample < piece.start_sample < word.end_sample for word in recording.words)


@pytest.mark.parametrize("ending", FORMATS)
def test_what_is_written_is_read_at_the_same_time(bank: Bank, tmp_path: Path, ending: str) -> None:
    recording, path = compose_long(bank, 60, seed=7), tmp_path / "file"
    write(path, recording.samples, *FORMATS[ending])
    samples = decoded(path)
    assert 0 <= len(samples) - len(recording.samples) < SAMPLE_RATE // 5
    assert np.corrcoef(samples[: len(recording.samples)], recording.samples)[0, 1] > 0.9
