"""Accuracy of the bundled model on held-out recordings of real speakers."""

from pathlib import Path

import pytest

from serve_app.engine.parakeet import ParakeetEngine
from testing.accuracy import HELD_OUT_INDEXES, Figures, add_noise, held_out_strings, judge, recognise
from testing.digit_strings import load_bank

pytestmark = [pytest.mark.speech, pytest.mark.slow]


@pytest.fixture(scope="module")
def figures(engine: ParakeetEngine, recordings: Path) -> Figures:
    strings = held_out_strings(load_bank(recordings, HELD_OUT_INDEXES), 600, seed=1)
    return judge(strings, recognise(engine, strings))


def test_words_are_correct(figures: Figures) -> None:
    assert figures.word_error_rate <= 0.02


def test_sentences_are_exact_with_case_and_full_stop(figures: Figures) -> None:
    assert figures.exact_sentence_rate >= 0.95


def test_times_are_accurate(figures: Figures) -> None:
    assert figures.start_error_s <= 0.08
    assert figures.end_error_s <= 0.12


def test_words_are_correct_in_noise(engine: ParakeetEngine, recordings: Path) -> None:
    strings = held_out_strings(load_bank(recordings, HELD_OUT_INDEXES), 100, seed=2)
    noisy = [add_noise(string, 15, i) for i, string in enumerate(strings)]
    assert judge(noisy, recognise(engine, noisy)).word_error_rate <= 0.05
