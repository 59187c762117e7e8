"""Measure errors at the seams between windows, on hours of recordings, and print the figures.

    python -m tools.evaluate_seams RECORDINGS [--hours H] [--window-s S] [--overlap-s S] [--seed N] [--conditions NAME ...]

RECORDINGS is the folder of the Free Spoken Digit Dataset; indexes 5 to 9 of all speakers are joined (`testing.long_recordings`).
The bundled model transcribes them in overlapping windows as the server does, and again in pieces that are cut at true silences.
"""

import argparse
import asyncio
from pathlib import Path

from serve_app.engine.parakeet import ParakeetEngine
from serve_app.engine.protocol import Engine
from serve_app.model_source import bundled_model_path
from serve_app.settings import WindowSettings
from testing.accuracy import HELD_OUT_INDEXES
from testing.digit_strings import load_bank
from testing.long_recordings import CONDITIONS, Recording, compose_long, piece_starts, pieces
from testing.seam_accuracy import SeamFigures, in_batches, judge_seams, seams_of, transcribe_long, transcribe_pieces


def report(name: str, figures: SeamFigures) -> str:
    """One line of the table that `main` prints."""
    near_h = figures.near_share * figures.duration_s / 3600
    elsewhere_h = figures.duration_s / 3600 - near_h
    minutes_s = figures.errors_by_s(60)
    return (
        f"{name:<36} {figures.words:>6} {100 * figures.word_error_rate:>6.2f} %"
        f" {figures.near:>4} {figures.near / max(near_h, 1e-9):>7.0f}"
        f" {figures.elsewhere:>5} {figures.elsewhere / elsewhere_h:>7.0f} {figures.chance:>6.2f}"
        f" {1000 * minutes_s[0]:>5.0f} {1000 * max(minutes_s):>5.0f} {1000 * figures.drift_s:>6.1f}"
    )


async def compare(engine: Engine, name: str, recording: Recording, window_s: float, overlap_s: float) -> None:
    """Transcribe a recording in overlapping windows and in pieces, and print the figures of both."""
    seams, starts = seams_of(recording.samples, window_s, overlap_s), piece_starts(recording, window_s)
    whole = await transcribe_long(in_batches(engine), recording.samples, window_s, overlap_s)
    print(report(name, judge_seams(recording, whole, seams)), flush=True)
    apart = await transcribe_pieces(in_batches(engine), pieces(recording.samples, starts))
    print(report(f"{name}, in pieces", judge_seams(recording, apart, starts[1:])), flush=True)


def main() -> None:
    sizes = WindowSettings()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recordings", type=Path)
    parser.add_argument("--hours", type=float, default=1.0)
    parser.add_argument("--window-s", type=float, default=sizes.window_s)
    parser.add_argument("--overlap-s", type=float, default=sizes.overlap_s)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--conditions", nargs="+", choices=CONDITIONS, default=list(CONDITIONS))
    arguments = parser.parse_args()
    engine = ParakeetEngine.load(bundled_model_path())
    bank = load_bank(arguments.recordings, HELD_OUT_INDEXES)
    print(f"{'insertions and deletions:':>54} {'near a seam':>12} {'elsewhere':>13} {'':>6} {'start error, ms':>18}")
    print(f"{'words':>43} {'WER':>8} {'n':>4} {'per h':>7} {'n':>5} {'per h':>7} {'chance':>6} {'first worst':>11} {'drift':>6}")
    for name in arguments.conditions:
        recording = compose_long(bank, arguments.hours * 3600, arguments.seed, CONDITIONS[name])
        asyncio.run(compare(engine, name, recording, arguments.window_s, arguments.overlap_s))


if __name__ == "__main__":
    main()
