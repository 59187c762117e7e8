"""Digital silence beside other audio gets noise like the window's own background noise."""

import numpy as np
import pytest

from serve_app.audio.dither import MIN_ZEROS, without_zeros
from serve_app.window import SAMPLE_RATE, Samples, Window
from testing.augmentation import coloured_noise


def background(seconds: float, level: float = 100.0, exponent: float = 0.0, seed: int = 0) -> Samples:
    """Noise of an RMS level in steps of int16, without zeros. Its power falls as 1/f^exponent."""
    noise = np.round(level * coloured_noise(round(seconds * SAMPLE_RATE), exponent, np.random.default_rng(seed)))
    return np.where(noise == 0, 1, noise).astype(np.int16)


def zeros(seconds: float) -> Samples:
    return np.zeros(round(seconds * SAMPLE_RATE), np.int16)


def filled(*parts: Samples, start: int = 0) -> Samples:
    return without_zeros(Window(3, start, np.concatenate(parts))).samples


def level(samples: Samples) -> float:
    return float(np.sqrt(np.square(samples.astype(float)).mean()))


@pytest.mark.parametrize("rms", [3.0, 33.0, 330.0])
def test_zeros_get_the_level_of_the_background_noise(rms: float) -> None:
    speech = background(1.0, 5000.0)
    samples = filled(background(1.0, rms), speech, zeros(2.0))
    assert level(samples[2 * SAMPLE_RATE :]) == pytest.approx(rms, rel=0.15)
    assert np.array_equal(samples[: 2 * SAMPLE_RATE], np.concatenate([background(1.0, rms), speech]))


def test_the_spectrum_is_that_of_the_background_noise() -> None:
    samples = filled(background(2.0, exponent=2.0), zeros(2.0))[2 * SAMPLE_RATE :]
    power = np.square(np.abs(np.fft.rfft(samples)))
    assert power[: len(power) // 8].sum() > 0.9 * power.sum()


def test_where_words_fade_to_zero_the_noise_is_faint() -> None:
    fading = (background(0.3, 3000.0) * np.hanning(round(0.3 * SAMPLE_RATE))).astype(np.int16)
    samples = filled(*[fading, zeros(0.2)] * 5)
    assert level(samples[round(0.3 * SAMPLE_RATE) : round(0.5 * SAMPLE_RATE)]) < 30


@pytest.mark.parametrize("faint", [0, 1, 1_500, 2_999])
def test_of_any_number_of_words_the_one_that_is_faintest_beside_zeros_counts(faint: int) -> None:
    """Wherever it is; in the window's first and last samples, too."""
    words = [background(0.01, 20.0 if number == faint else 2_000.0, seed=number) for number in range(3_000)]
    samples = np.concatenate([part for word in words for part in (word, zeros(0.01))])
    for window in (samples, samples[: -len(zeros(0.01))]):
        noise = filled(window)[window == 0]
        assert level(noise) == pytest.approx(20.0, rel=0.2)


def test_the_middle_of_a_word_is_no_background_noise() -> None:
    """A live window may begin within a word."""
    assert np.abs(filled(background(0.3, 3000.0), zeros(1.0))[round(0.3 * SAMPLE_RATE) :]).max() <= 5


def test_the_noise_depends_on_the_position_in_the_recording_alone() -> None:
    whole = filled(background(1.0), zeros(3.0), start=1280)
    assert np.array_equal(whole, filled(background(1.0), zeros(3.0), start=1280))
    assert not np.array_equal(whole, filled(background(1.0), zeros(3.0), start=2560))
    shorter = filled(background(1.0), zeros(1.0), start=1280)
    assert np.array_equal(shorter, whole[: len(shorter)])


def test_audio_before_the_window_makes_no_difference() -> None:
    recording = np.concatenate([background(1.0, 900.0), background(1.0, 50.0, seed=1), zeros(1.0)])
    window = Window(1, SAMPLE_RATE, recording[SAMPLE_RATE:])
    other = Window(1, SAMPLE_RATE, np.concatenate([zeros(1.0), recording[SAMPLE_RATE:]])[SAMPLE_RATE:])
    assert np.array_equal(without_zeros(window).samples, without_zeros(other).samples)


@pytest.mark.parametrize(
    "samples",
    [
        background(1.0),
        zeros(1.0),
        zeros(0.0),
        np.concatenate([background(1.0), np.zeros(MIN_ZEROS - 1, np.int16), background(1.0)]),
    ],
    ids=["no zeros", "only zeros", "empty", "a short run"],
)
def test_a_window_without_digital_silence_beside_audio_is_unchanged(samples: Samples) -> None:
    window = Window(0, 0, samples)
    assert without_zeros(window) is window


def test_one_bit_noise_stays_one_bit_noise() -> None:
    one_bit = np.random.default_rng(0).integers(-1, 2, SAMPLE_RATE // 2).astype(np.int16)
    assert np.abs(filled(one_bit, zeros(2.0))).max() <= 5
