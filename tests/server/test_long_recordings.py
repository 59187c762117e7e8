"""Hours of speech over HTTP: what seams cost, whether times drift, in every format and in hard conditions."""

import concurrent.futures
import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from serve_app.audio.decoding import AudioFile
from serve_app.settings import WindowSettings
from serve_app.transcript import Word
from serve_app.window import FRAME_SAMPLES, SAMPLE_RATE, Samples, Window
from testing import media
from testing.accuracy import HELD_OUT_INDEXES
from testing.digit_strings import Bank, load_bank
from testing.long_recordings import CONDITIONS, FORMATS, Recording, compose_long, piece_starts, pieces, write
from testing.paths import ROOT
from testing.seam_accuracy import SeamFigures, judge_seams, seams_of
from testing.server import Server, serve_run
from tools.evaluate_seams import report

SIZES = WindowSettings()
CLIENTS = 32
ANSWER_S = 3600.0

WORD_ERROR_MARGIN = 0.002
UNLIKELY = 0.01
"""Seams are at fault when so many faults near them would come about by chance less often than this."""
MINUTE_MARGIN_S = 0.03
"""The median of a minute, some 60 words timed to frames of 80 ms, varies by about 10 ms from minute to minute."""
DRIFT_S = FRAME_SAMPLES / SAMPLE_RATE / 4


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """configs/demo.yaml, with batches of more than one window: the bundled model costs mostly per batch."""
    args = {"batching": {"max_batch_audio_s": 600}}
    with serve_run(ROOT / "configs" / "demo.yaml", tmp_path_factory.mktemp("long"), args=args) as server:
        server.wait_for_state("digits", "ready")
        yield server


@pytest.fixture(scope="module")
def held_out(recordings: Path) -> Bank:
    return load_bank(recordings, HELD_OUT_INDEXES)


def words_of(server: Server, name: str, content: Any) -> list[Word]:
    """What the server hears in a file, times in seconds."""
    response = server.client.post(
        "/v1/audio/transcriptions",
        files={"file": (name, content)},
        data={"response_format": "verbose_json", "timestamp_granularities[]": "word"},
        timeout=ANSWER_S,
    )
    assert response.status_code == 200, response.text
    return [Word(w["word"], w["start"], w["end"], w["confidence"]) for w in response.json()["words"]]


def words_of_pieces(server: Server, windows: Sequence[Window]) -> list[Word]:
    """What the server hears in pieces of a recording sent one by one, times in seconds of the recording."""

    def heard(window: Window) -> list[Word]:
        words = words_of(server, "piece.wav", media.wav(window.samples))
        start_s = window.start_sample / SAMPLE_RATE
        return [Word(w.text, start_s + w.start_s, start_s + w.end_s, w.confidence) for w in words]

    with concurrent.futures.ThreadPoolExecutor(CLIENTS) as clients:
        return [word for words in clients.map(heard, windows) for word in words]


def decoded(path: Path) -> Samples:
    with path.open("rb") as file:
        return np.concatenate(list(AudioFile(file).blocks()))


def transcribe_both_ways(server: Server, recording: Recording, ending: str, folder: Path) -> tuple[SeamFigures, SeamFigures]:
    """A recording as one file, and the audio of that file in pieces of about a window, cut at true silences."""
    path = folder / f"long.{ending}"
    write(path, recording.samples, *FORMATS[ending])
    with path.open("rb") as file:
        whole = words_of(server, path.name, file)
    samples, starts = decoded(path), piece_starts(recording, SIZES.window_s)
    path.unlink()
    apart = words_of_pieces(server, pieces(samples, starts))
    figures = judge_seams(recording, whole, seams_of(samples, SIZES.window_s, SIZES.overlap_s))
    reference = judge_seams(recording, apart, starts[1:])
    print(report(f"{ending}, whole", figures), report(f"{ending}, in pieces", reference), sep="\n")
    return figures, reference


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


class TestFigures:
    """The judge itself, on faults that are made on purpose."""

    @pytest.fixture(scope="class")
    @classmethod
    def recording(cls, bank: Bank) -> Recording:
        return compose_long(bank, 300, seed=5)

    def heard(self, recording: Recording) -> list[Word]:
        return [Word(w.text, w.start_sample / SAMPLE_RATE, w.end_sample / SAMPLE_RATE, 1.0) for w in recording.words]

    def test_the_truth_is_without_fault(self, recording: Recording) -> None:
        figures = judge_seams(recording, self.heard(recording), [100 * SAMPLE_RATE])
        assert (figures.word_error_rate, figures.near, figures.elsewhere, figures.chance) == (0, 0, 0, 1)
        assert figures.near_share == pytest.approx(4 / figures.duration_s)
        assert max(figures.errors_by_s(60)) == pytest.approx(0, abs=1e-9)

    def test_words_that_are_lost_or_doubled_at_seams_count_there(self, recording: Recording) -> None:
        heard = self.heard(recording)
        seams = [recording.words[k].start_sample for k in (40, 80, 120)]
        del heard[120]
        heard[80:80] = [replace(heard[80], text="Six.")]
        heard[60] = replace(heard[60], text="oh")
        del heard[40]
        figures = judge_seams(recording, heard, seams)
        assert (figures.near, figures.elsewhere) == (3, 0)
        assert figures.word_error_rate == pytest.approx(4 / figures.words)
        assert figures.chance < UNLIKELY
        with pytest.raises(AssertionError):
            assert_seams_and_times_are_sound(figures)

    def test_drift_is_seen(self, recording: Recording) -> None:
        late = [replace(w, start_s=w.start_s * 1.001) for w in self.heard(recording)]
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


@pytest.mark.serve
def test_ten_minutes(server: Server, bank: Bank, tmp_path: Path) -> None:
    recording = compose_long(bank, 600, seed=1)
    figures, reference = transcribe_both_ways(server, recording, "m4a", tmp_path)
    assert_no_more_errors(figures, reference)
    assert_seams_and_times_are_sound(figures)


@pytest.mark.serve
@pytest.mark.long
@pytest.mark.speech
@pytest.mark.parametrize("ending", FORMATS)
def test_three_hours(server: Server, held_out: Bank, tmp_path: Path, ending: str) -> None:
    recording = compose_long(held_out, 3 * 3600, seed=1)
    figures, reference = transcribe_both_ways(server, recording, ending, tmp_path)
    assert_no_more_errors(figures, reference)
    assert_seams_and_times_are_sound(figures)


@pytest.mark.serve
@pytest.mark.long
@pytest.mark.speech
@pytest.mark.parametrize("name", [name for name in CONDITIONS if name != "clean"])
def test_an_hour_in_hard_conditions(server: Server, held_out: Bank, tmp_path: Path, name: str) -> None:
    recording = compose_long(held_out, 3600, seed=2, condition=CONDITIONS[name])
    figures, reference = transcribe_both_ways(server, recording, "wav", tmp_path)
    assert_no_more_errors(figures, reference)
    assert_seams_and_times_are_sound(figures)
