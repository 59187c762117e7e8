"""Hours of speech over HTTP: what seams cost, whether times drift, in every format and in hard conditions."""

import concurrent.futures
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from serve_app.settings import WindowSettings
from serve_app.transcript import Word
from serve_app.window import SAMPLE_RATE, Window
from testing import media
from testing.accuracy import HELD_OUT_INDEXES
from testing.digit_strings import Bank, load_bank
from testing.long_recordings import CONDITIONS, FORMATS, Recording, compose_long, piece_starts, pieces, write
from testing.paths import ROOT
from testing.seam_accuracy import SeamFigures, judge_seams, seams_of
from testing.seam_checks import assert_no_more_errors, assert_seams_and_times_are_sound, decoded
from testing.server import Server, serve_run
from tools.evaluate_seams import report

SIZES = WindowSettings()
CLIENTS = 32
ANSWER_S = 3600.0


@pytest.fixture(scope="module")
def large_batches(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """configs/demo.yaml, with batches of more than one window: the bundled model costs mostly per batch."""
    args = {"batching": {"max_batch_audio_s": 600}}
    with serve_run(ROOT / "configs" / "demo.yaml", tmp_path_factory.mktemp("long"), args=args) as server:
        server.wait_for_state("digits", "ready")
        yield server


@pytest.fixture(scope="module")
def held_out(recordings: Path) -> Bank:
    return load_bank(recordings, HELD_OUT_INDEXES)


def words_of(server: Server, name: str, content: Any) -> list[Word]:
    """What the server recognises in a file, times in seconds."""
    response = server.client.post(
        "/v1/audio/transcriptions",
        files={"file": (name, content)},
        data={"response_format": "verbose_json", "timestamp_granularities[]": "word"},
        timeout=ANSWER_S,
    )
    assert response.status_code == 200, response.text
    return [Word(w["word"], w["start"], w["end"], w["confidence"]) for w in response.json()["words"]]


def words_of_pieces(server: Server, windows: Sequence[Window]) -> list[Word]:
    """What the server recognises in pieces of a recording sent one by one, times in seconds of the recording."""

    def recognise(window: Window) -> list[Word]:
        words = words_of(server, "piece.wav", media.wav(window.samples))
        start_s = window.start_sample / SAMPLE_RATE
        return [Word(w.text, start_s + w.start_s, start_s + w.end_s, w.confidence) for w in words]

    with concurrent.futures.ThreadPoolExecutor(CLIENTS) as clients:
        return [word for words in clients.map(recognise, windows) for word in words]


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
def test_three_hours(large_batches: Server, held_out: Bank, tmp_path: Path, ending: str) -> None:
    recording = compose_long(held_out, 3 * 3600, seed=1)
    figures, reference = transcribe_both_ways(large_batches, recording, ending, tmp_path)
    assert_no_more_errors(figures, reference)
    assert_seams_and_times_are_sound(figures)


@pytest.mark.serve
@pytest.mark.long
@pytest.mark.speech
@pytest.mark.parametrize("name", [name for name in CONDITIONS if name != "clean"])
def test_an_hour_in_hard_conditions(large_batches: Server, held_out: Bank, tmp_path: Path, name: str) -> None:
    recording = compose_long(held_out, 3600, seed=2, condition=CONDITIONS[name])
    figures, reference = transcribe_both_ways(large_batches, recording, "wav", tmp_path)
    assert_no_more_errors(figures, reference)
    assert_seams_and_times_are_sound(figures)
