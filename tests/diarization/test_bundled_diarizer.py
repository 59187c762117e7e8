"""The bundled diarizer on conversations in the voices of the repository."""

import random

import numpy as np
import pytest

from serve_app.diarization.sortformer import SortformerEngine
from serve_app.model_source import bundled_diarizer_path
from testing.conversations import Style, Voice, converse
from testing.digit_strings import load_bank, to_int16
from testing.paths import DIGITS
from tools.evaluate_diarizer import diarize, error_of, right_words

MAX_BYTES = 3_000_000
STYLE = Style(turn_words=(3, 8), overlap_probability=0.0, level_db=(-3.0, 0.0))


@pytest.fixture(scope="module")
def engine() -> SortformerEngine:
    return SortformerEngine.load(bundled_diarizer_path(), device="cpu")


def test_it_is_small() -> None:
    assert bundled_diarizer_path().stat().st_size <= MAX_BYTES


def test_it_tells_two_people_apart_over_many_chunks(engine: SortformerEngine) -> None:
    bank = load_bank(DIGITS)
    names = ["espeak-male", "flite-slt"]
    made = converse(bank, [Voice(name) for name in names], 60.0, random.Random(1), STYLE)
    found = diarize(engine, to_int16(made.samples))
    assert len(made.samples) > 3 * engine.shape.chunk_samples
    assert error_of(made, found).rate < 0.2
    right, words = right_words(made, found)
    assert right / words > 0.9
    assert found[:, 2:].max(initial=0) < 0.5, "there are two people"


def test_silence_has_no_speakers(engine: SortformerEngine) -> None:
    found = diarize(engine, np.zeros(30 * 16_000, np.int16))
    assert found.max() < 0.5
