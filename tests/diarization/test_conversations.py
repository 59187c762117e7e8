"""The conversations that train and evaluate the bundled diarizer: who speaks when is what is in the audio."""

import random

import numpy as np
import pytest

from testing.conversations import FRAME_SAMPLES, Style, Voice, converse
from testing.digit_strings import SAMPLE_RATE, Bank


@pytest.fixture
def bank() -> Bank:
    """Tones instead of words, of one frequency for each person."""
    times = np.arange(int(0.5 * SAMPLE_RATE)) / SAMPLE_RATE
    tones = {name: np.sin(2 * np.pi * hz * times).astype(np.float32) for name, hz in (("ann", 500), ("ben", 2000), ("cem", 5000))}
    return {name: {digit: [tone] for digit in range(10)} for name, tone in tones.items()}


def test_speakers_are_numbered_as_they_arrive(bank: Bank) -> None:
    for seed in range(20):
        made = converse(bank, [Voice("ann"), Voice("ben"), Voice("cem")], 60.0, random.Random(seed))
        order = list(dict.fromkeys(turn.speaker for turn in made.turns))
        assert order == [0, 1, 2]
        assert len(made.samples) == 60 * SAMPLE_RATE


def test_activity_is_where_the_persons_tone_is(bank: Bank) -> None:
    alone = Style(overlap_probability=0.0, level_db=(0.0, 0.0))
    made = converse(bank, [Voice("ann"), Voice("ben")], 30.0, random.Random(0), alone)
    active = made.activity(4)
    assert active.any(0).tolist() == [True, True, False, False]
    assert active.sum(1).max() == 1
    for speaker, hz in ((0, 500), (1, 2000)):
        assert made.voices[speaker].name == {500: "ann", 2000: "ben"}[hz]
        for turn in made.turns:
            spectrum = np.abs(np.fft.rfft(made.samples[turn.start_sample : turn.end_sample]))
            peak_hz = spectrum.argmax() * SAMPLE_RATE / (turn.end_sample - turn.start_sample)
            assert (abs(peak_hz - hz) < 20) == (turn.speaker == speaker)
    silent = np.asarray(active.sum(1) == 0)
    levels = np.abs(made.samples[: len(active) * FRAME_SAMPLES].reshape(len(active), -1)).mean(1)
    # Frames at the start and end of a turn are half in it.
    inner = silent[1:-1] & silent[:-2] & silent[2:]
    assert levels[1:-1][inner].max() < 0.05
    assert levels[active[:, 0]].mean() > 0.1


def test_people_may_overlap(bank: Bank) -> None:
    made = converse(bank, [Voice("ann"), Voice("ben")], 60.0, random.Random(1), Style(overlap_probability=1.0))
    assert made.activity(2).sum(1).max() == 2


def test_another_speed_is_another_voice_with_its_own_times(bank: Bank) -> None:
    made = converse(bank, [Voice("ann", 1.25)], 10.0, random.Random(2))
    turn = made.turns[0]
    word = turn.words[0]
    assert word.end_sample - word.start_sample == pytest.approx((0.5 * SAMPLE_RATE - 320) / 1.25, abs=2)
    spectrum = np.abs(np.fft.rfft(made.samples[word.start_sample : word.end_sample]))
    assert spectrum.argmax() * SAMPLE_RATE / (word.end_sample - word.start_sample) == pytest.approx(625, abs=5)
