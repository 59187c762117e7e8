"""What the benchmarks compute from what they measure."""

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks import engine
from benchmarks.autoscaling import Round
from benchmarks.live import Speech, simulated_errors
from benchmarks.live_streams import Outcome
from benchmarks.load import poisson_arrivals, transcription
from benchmarks.report import busiest_cores, write_json
from benchmarks.served import FILE_S, ratio
from benchmarks.speech import cut, hoarse, spoken_digits
from serve_app.engine.simulated import SimulatedEngine
from serve_app.settings import SimulationSettings, WindowSettings
from serve_app.window import SAMPLE_RATE
from testing.cpu_time import Key, Snapshot
from testing.digit_strings import load_bank
from testing.paths import DIGITS


def test_arrivals_have_their_rate_and_the_distances_of_a_poisson_process() -> None:
    times = poisson_arrivals(20.0, 500.0, seed=1)
    distances = np.diff([0.0, *times])
    assert times == sorted(times)
    assert times[-1] < 500
    assert len(times) == pytest.approx(10_000, rel=0.05)
    # The standard deviation of an exponential distribution is its mean.
    assert np.std(distances) == pytest.approx(1 / 20, rel=0.05)


def test_arrivals_are_the_same_for_a_seed_and_others_for_another() -> None:
    assert poisson_arrivals(5.0, 10.0, seed=1) == poisson_arrivals(5.0, 10.0, seed=1) != poisson_arrivals(5.0, 10.0, seed=2)


def test_a_ratio_is_of_one_round() -> None:
    # The machine was half as fast in the second round: the ratio of the medians would be 0.6.
    assert ratio([90.0, 40.0, 60.0], [100.0, 50.0, 120.0]) == 0.8


def test_the_busiest_process_of_a_kind_is_one_process() -> None:
    first, second, new = (Key(number, 0.0) for number in range(3))
    before: Snapshot = {first: ("ingress", 10.0), second: ("ingress", 1.0)}
    ended = Key(0, 0.0, is_ended_below=True)
    after: Snapshot = {
        first: ("ingress", 11.0),
        second: ("ingress", 4.0),
        new: ("decoder", 0.5),
        ended: ("decoder", 9.0),
    }
    cores = busiest_cores(before, after, wall_s=4.0)
    assert (cores["ingress"], cores["decoder"], cores["proxy"]) == (0.75, 0.125, 0.0)


def test_replica_seconds_are_those_beyond_the_one_that_is_always_there() -> None:
    burst = Round([3.0], [(0.5, 1), (1.0, 1), (2.0, 3), (2.5, 3), (4.0, 1), (9.0, 1)])
    assert burst.added_replica_s == 2 * 2.0
    assert burst.changes == [(0.5, 1), (2.0, 3), (4.0, 1)]


def test_a_request_states_the_length_of_its_body() -> None:
    head, _, body = transcription(b"audio\r\n\r\n", "text").data.partition(b"\r\n\r\n")
    assert f"Content-Length: {len(body)}".encode() in head.split(b"\r\n")


def test_a_file_of_the_served_benchmark_is_one_window_and_full_of_speech() -> None:
    samples = spoken_digits(load_bank(DIGITS), FILE_S, seed=1)
    (window,) = cut(samples, WindowSettings())
    assert len(samples) == len(window) == FILE_S * SAMPLE_RATE
    assert samples[-5 * SAMPLE_RATE :].any()


def test_lost_and_doubled_words_of_a_stream_are_counted() -> None:
    speech = Speech(hoarse(spoken_digits(load_bank(DIGITS), 20.0, seed=1), seed=1))
    tokens = SimulatedEngine(SimulationSettings(step_s=0, seconds_per_audio_s=0)).transcribe([speech.samples])[0]
    words = [(token.piece.removeprefix("▁"), round(token.start_sample / SAMPLE_RATE, 3)) for token in tokens]
    assert len(words) > 10

    def errors(received: list[tuple[str, float]]) -> tuple[int, int, int]:
        found = simulated_errors([speech], [Outcome(received, [], [], 0)])
        return found.words, found.deletions, found.insertions

    assert errors(words) == (len(words), 0, 0)
    assert errors(words[1:]) == (len(words), 1, 0)
    assert errors([*words, words[-1]]) == (len(words), 0, 1)


def test_results_are_written_with_the_machine(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    write_json(path, {"cores": "2"}, rows=[1.5])
    assert json.loads(path.read_text()) == {"machine": {"cores": "2"}, "rows": [1.5]}
    write_json(None, {})


@pytest.mark.filterwarnings("ignore:'pin_memory' argument is set as true:UserWarning")
def test_the_engines_stages_are_measured_beside_nemo(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    options = ["--batches", "1x2", "2x1", "--rounds", "2", "--fast-paths", "off", "subsampling,attention", "--json", str(path)]
    monkeypatch.setattr("sys.argv", ["engine", *options])
    engine.main()
    report = json.loads(path.read_text())
    assert [result["engine"] for result in report["results"]] == 2 * ["off", "subsampling, attention", engine.NEMO]
    for result in report["results"]:
        assert len(result["total_s"]) == 2
        for stage in engine.STAGES:
            seconds = result["stages_s"][stage]
            assert len(seconds) == (0 if result["engine"] == engine.NEMO else 2)
            assert all(0 < part < total for part, total in zip(seconds, result["total_s"], strict=False))


def test_ratios_of_engines_are_to_the_first_one_with_the_same_batch() -> None:
    stages = {"features": [0.1], "encoder": [0.5], "decode": [0.1]}
    faster = {"features": [0.1], "encoder": [0.1], "decode": [0.1]}
    small, large = engine.Batch(1, 2.0), engine.Batch.parse("4x10")
    results = [
        engine.Times("off", small, [1.0], stages),
        engine.Times("auto", small, [0.6], faster),
        engine.Times("off", large, [2.0], stages),
        engine.Times(engine.NEMO, large, [3.0]),
    ]
    rows = engine.rows(results, {small: 0.05})
    assert [row[0] for row in rows] == ["1 x 2 s", "1 x 2 s", "4 x 10 s", "4 x 10 s"]
    assert [row[-3:] for row in rows] == [
        ["1.00", "1.00", "0.10"],
        ["0.20", "0.60", "0.50"],
        ["1.00", "1.00", ""],
        ["", "1.50", ""],
    ]
    assert [row[5] for row in rows] == ["300.0", "300.0", "1300.0", ""]
    assert rows[2][8] == "20"
