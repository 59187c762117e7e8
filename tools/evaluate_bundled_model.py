"""Measure the bundled model on recordings that it was not trained on, and print the figures of its model card.

    python -m tools.evaluate_bundled_model RECORDINGS [--model FILE.nemo] [--strings N] [--seed N]

RECORDINGS is the folder of the Free Spoken Digit Dataset; recordings with the indexes 5 to 9 are joined into strings of 1 to 12
digits of one speaker, with pauses. A sentence is exact when all its words, its capital letter and its full stop are right and
nothing is inserted.
"""

import argparse
from pathlib import Path

from serve_app.engine.parakeet import ParakeetEngine
from serve_app.model_source import bundled_model_path
from testing.accuracy import HELD_OUT_INDEXES, Figures, add_noise, held_out_strings, judge, recognise
from testing.digit_strings import load_bank


def report(name: str, figures: Figures) -> str:
    """One line of the table that `main` prints."""
    return (
        f"{name:<22} {figures.words:>6} {100 * figures.word_error_rate:>7.2f} % {figures.sentences:>9}"
        f" {100 * figures.exact_sentence_rate:>9.1f} % {100 * figures.exact_string_rate:>8.1f} %"
        f" {1000 * figures.start_error_s:>7.0f} ms {1000 * figures.end_error_s:>7.0f} ms"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recordings", type=Path)
    parser.add_argument("--model", type=Path, default=bundled_model_path())
    parser.add_argument("--strings", type=int, default=600)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    engine = ParakeetEngine.load(arguments.model)
    strings = held_out_strings(load_bank(arguments.recordings, HELD_OUT_INDEXES), arguments.strings, arguments.seed)
    print(f"{'condition':<22} {'words':>6} {'WER':>9} {'sentences':>9} {'exact':>11} {'strings':>10} {'start':>10} {'end':>10}")
    print(report("clean", judge(strings, recognise(engine, strings))))
    for ratio_db in (30, 15):
        noisy = [add_noise(string, ratio_db, i) for i, string in enumerate(strings)]
        print(report(f"white noise, {ratio_db} dB", judge(noisy, recognise(engine, noisy))))


if __name__ == "__main__":
    main()
