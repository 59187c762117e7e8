"""Delay, accuracy and CPU time of live transcription with several streams at once.

    python -m benchmarks.live RECORDINGS [--minutes 2] [--streams 1 4 8 16] [--json PATH]
    python -m benchmarks.live --simulated [--minutes 2] [--streams 1 4 8 16] [--json PATH]

Starts its own server with configs/demo.yaml. For every number of streams, each stream sends digit strings of its own at the pace
of speech, from a process that all streams share. The delays of a word are measured from its end, as the decoder places it, to its
first appearance and to its final form.

RECORDINGS is the folder of the Free Spoken Digit Dataset; recordings that the bundled model was not trained on are used. Word
errors are given for the live text and for the same audio sent as a file. With --simulated, the model takes the time of an H200
and recognises words that depend on the audio alone, so that a word which is lost or doubled is certain to be.
"""

import argparse
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path

import jiwer
import numpy as np

from benchmarks.live_streams import Outcome, run_streams
from benchmarks.report import (
    CONFIG,
    ELSEWHERE,
    PLAIN_NICENESS,
    Meter,
    Usage,
    add_json_option,
    cpu_cells,
    cpu_head,
    elsewhere_cell,
    finish,
    machine,
    percentiles,
    simulated_model,
    simulated_server,
    table,
)
from benchmarks.speech import hoarse, spoken_digits
from serve_app.engine.simulated import SimulatedEngine
from serve_app.settings import SimulationSettings
from serve_app.window import FRAME_SAMPLES, SAMPLE_RATE, Samples
from testing import media
from testing.accuracy import HELD_OUT_INDEXES, held_out_strings
from testing.cpu_time import Kind
from testing.digit_strings import Bank, load_bank, to_int16
from testing.paths import DIGITS
from testing.server import Server, serve_run

MAX_PAUSE_S = 2.0
"""Longest pause between two digit strings, seconds."""

STEP_S, SECONDS_PER_AUDIO_S = 0.03, 0.00015
"""Duration of a batch of the simulated model: fixed, and for every second of its padded audio."""

BUSY: tuple[Kind, ...] = ("proxy", "ingress", "replica", "client")
"""The kinds of which the busiest process is shown."""


@dataclass(frozen=True, slots=True)
class Speech:
    """The audio of one stream, int16 [samples] at 16 kHz, and its true text, where that is known."""

    samples: Samples
    text: str = ""


@dataclass(frozen=True, slots=True)
class Errors:
    """Words of a text that differ from the true ones."""

    words: int
    """Of the true text."""
    substitutions: int
    insertions: int
    deletions: int

    @property
    def wer(self) -> float:
        return (self.substitutions + self.insertions + self.deletions) / max(1, self.words)


@dataclass(frozen=True, slots=True)
class Figures:
    """Results of several streams at once. Delays in seconds, one for every word."""

    streams: int
    audio_s: float
    """Of all streams together."""
    first_s: list[float]
    final_s: list[float]
    changed_finals: int
    usage: Usage
    live: Errors
    """Of the live text."""
    files: Errors | None
    """Of the same audio sent as files; None with the simulated model."""


def recorded(bank: Bank, minutes: float, seed: int) -> Speech:
    """Digit strings with pauses between them."""
    rng = np.random.default_rng(seed)
    parts, words, samples = list[np.ndarray](), list[str](), 0
    for string in held_out_strings(bank, round(minutes * 60), seed):
        if samples >= minutes * 60 * SAMPLE_RATE:
            break
        pause = np.zeros(round(rng.uniform(0.3, MAX_PAUSE_S) * SAMPLE_RATE), np.float32)
        parts += [string.samples, pause]
        samples += len(string.samples) + len(pause)
        words.append(string.text)
    return Speech(to_int16(np.concatenate(parts)), " ".join(words))


def word_errors(true_texts: Sequence[str], texts: Sequence[str]) -> Errors:
    reference, hypothesis = ([text.lower().replace(".", "") for text in each] for each in (true_texts, texts))
    found = jiwer.process_words(reference, hypothesis)
    words = found.hits + found.substitutions + found.deletions
    return Errors(words, found.substitutions, found.insertions, found.deletions)


def simulated_errors(spoken: Sequence[Speech], outcomes: Sequence[Outcome]) -> Errors:
    """Words of the simulated engine that are missing, and those that are too many or at another time."""
    engine, words, lost, extra = SimulatedEngine(SimulationSettings(step_s=0, seconds_per_audio_s=0)), 0, 0, 0
    for speech, outcome in zip(spoken, outcomes, strict=True):
        tokens = engine.transcribe([speech.samples])[0]
        expected = Counter((token.piece.strip("▁"), token.start_sample // FRAME_SAMPLES) for token in tokens)
        received = Counter((word, round(start_s * SAMPLE_RATE / FRAME_SAMPLES)) for word, start_s in outcome.words)
        words += expected.total()
        lost += (expected - received).total()
        extra += (received - expected).total()
    return Errors(words, 0, extra, lost)


def measure(server: Server, spoken: Sequence[Speech], *, is_simulated: bool = False) -> Figures:
    """Figures of one stream for each speech, all at once."""
    with ProcessPoolExecutor(1, get_context("spawn")) as process:
        # The process has imported everything before the measurement starts.
        process.submit(run_streams, server.url, []).result()
        meter = Meter(server)
        outcomes, client_cpu_s = process.submit(run_streams, server.url, [each.samples for each in spoken]).result()
        usage = meter.stop(client_cpu_s)
    files = None
    if is_simulated:
        live = simulated_errors(spoken, outcomes)
    else:
        true_texts = [each.text for each in spoken]
        live = word_errors(true_texts, [outcome.text for outcome in outcomes])
        files = word_errors(true_texts, [server.transcribe(media.wav(each.samples)).json()["text"] for each in spoken])
    return Figures(
        streams=len(spoken),
        audio_s=sum(len(each.samples) for each in spoken) / SAMPLE_RATE,
        first_s=[seconds for outcome in outcomes for seconds in outcome.first_s],
        final_s=[seconds for outcome in outcomes for seconds in outcome.final_s],
        changed_finals=sum(outcome.changed_finals for outcome in outcomes),
        usage=usage,
        live=live,
        files=files,
    )


def delays(rows: Sequence[Figures]) -> str:
    head = ["streams", "first partial, s: p50", "p95", "final word, s: p50", "p95", "words", "deleted", "inserted"]
    return table(
        [*head, "final words changed", "WER live", "WER of the same audio as files"],
        [
            [
                str(row.streams),
                *(f"{s:.2f}" for seconds in (row.first_s, row.final_s) for s in percentiles(seconds, (50, 95))),
                *(str(number) for number in (row.live.words, row.live.deletions, row.live.insertions, row.changed_finals)),
                *(f"{100 * errors.wer:.2f} %" if errors else "-" for errors in (row.files and row.live, row.files)),
            ]
            for row in rows
        ],
    )


def costs(rows: Sequence[Figures]) -> str:
    return table(
        [*cpu_head("streams, CPU ms per stream and second"), *(f"busiest {kind}, % of a core" for kind in BUSY), ELSEWHERE],
        [
            [
                str(row.streams),
                *cpu_cells([row.usage], row.audio_s / 1000),
                *(f"{100 * row.usage.busiest_cores[kind]:.0f}" for kind in BUSY),
                elsewhere_cell([row.usage]),
            ]
            for row in rows
        ],
    )


@contextmanager
def server_of(is_simulated: bool) -> Iterator[Server]:
    """A server that is ready: of the simulated model, or of the bundled one."""
    if is_simulated:
        with simulated_server(simulated_model(STEP_S, SECONDS_PER_AUDIO_S)) as server:
            yield server
        return
    with tempfile.TemporaryDirectory() as folder, serve_run(CONFIG, Path(folder), env=PLAIN_NICENESS) as server:
        server.wait_for_state("digits", "ready")
        yield server


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("recordings", type=Path, nargs="?")
    source.add_argument("--simulated", action="store_true", help="a model that takes the time of an H200; needs no recordings")
    parser.add_argument("--minutes", type=float, default=2.0)
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 4, 8, 16])
    add_json_option(parser)
    options = parser.parse_args()
    bank = load_bank(DIGITS) if options.simulated else load_bank(options.recordings, HELD_OUT_INDEXES)

    def speech(seed: int) -> Speech:
        if options.simulated:
            return Speech(hoarse(spoken_digits(bank, 60 * options.minutes, seed), seed))
        return recorded(bank, options.minutes, seed)

    rows = list[Figures]()
    with server_of(options.simulated) as server:
        for streams in options.streams:
            spoken = [speech(seed) for seed in range(streams)]
            rows.append(measure(server, spoken, is_simulated=options.simulated))
            print(f"streams: {streams}, done", flush=True)
    model = (
        f"simulated, {STEP_S} s and {SECONDS_PER_AUDIO_S} s per second of audio for a batch" if options.simulated else "bundled"
    )
    finish(
        options.json,
        machine(),
        f"streams of {options.minutes:g} minutes; model: {model}",
        [delays(rows), costs(rows)],
        minutes=options.minutes,
        model=model,
        rows=[asdict(row) for row in rows],
    )


if __name__ == "__main__":
    main()
