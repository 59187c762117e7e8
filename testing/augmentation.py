"""Data augmentation for training the bundled model: rooms, microphones, telephones and window edges.

Every function of audio takes and returns float32 [samples] at 16 kHz. `degrade` applies a random selection.
"""

import random
from dataclasses import replace

import numpy as np
from scipy.signal import fftconvolve

from testing.digit_strings import SAMPLE_RATE, DigitString, Samples, SpokenWord

MAX_EARLY_CUT = 0.3
"""A cut in the first part of a word is at most this fraction of the word from its start."""

MIN_LATE_CUT = 0.65
"""A cut in the last part of a word is at least this fraction of the word from its start."""


def coloured_noise(length: int, exponent: float, noise: np.random.Generator) -> Samples:
    """Noise of unit RMS whose power falls as 1/f^exponent: 0 white, 1 pink, 2 brown."""
    spectrum = np.fft.rfft(noise.standard_normal(length))
    frequencies = np.maximum(np.arange(len(spectrum)), 1) / max(len(spectrum), 1)
    shaped = np.fft.irfft(spectrum * frequencies ** (-exponent / 2), length)
    return np.asarray(shaped / (np.sqrt(np.mean(shaped**2)) + 1e-9), dtype=np.float32)


def add_room(samples: Samples, decay_s: float, wet: float, noise: np.random.Generator) -> Samples:
    """Add reverberation: convolve with noise that decays by 60 dB over `decay_s`, and add the result times `wet`."""
    length = int(decay_s * SAMPLE_RATE)
    tail = noise.standard_normal(length) * np.exp(-6.9 * np.arange(length) / length)
    tail /= np.sqrt(np.sum(tail**2))
    return np.asarray(samples + wet * fftconvolve(samples, tail)[: len(samples)], dtype=np.float32)


def band_limit(samples: Samples, low_hz: float, high_hz: float) -> Samples:
    """Remove all frequencies outside a band, as a telephone does."""
    spectrum = np.fft.rfft(samples)
    frequencies = np.fft.rfftfreq(len(samples), 1 / SAMPLE_RATE)
    spectrum[(frequencies < low_hz) | (frequencies > high_hz)] = 0
    return np.fft.irfft(spectrum, len(samples)).astype(np.float32)


def mu_law(samples: Samples) -> Samples:
    """Quantise to 8 bits with mu-law companding, as in G.711."""
    level = np.sign(samples) * np.log1p(255 * np.minimum(np.abs(samples), 1)) / np.log(256)
    level = np.round(level * 127) / 127
    return np.asarray(np.sign(level) * np.expm1(np.abs(level) * np.log(256)) / 255, dtype=np.float32)


def degrade(samples: Samples, rng: random.Random, noise: np.random.Generator) -> Samples:
    """Apply reverberation, spectral tilt, a band limit, noise, a level and companding, most of them with a probability."""
    if rng.random() < 0.3:
        samples = add_room(samples, rng.uniform(0.08, 0.5), rng.uniform(0.1, 0.6), noise)
    if rng.random() < 0.3:
        tilt = rng.uniform(-0.7, 0.7)
        samples = np.append(samples[:1], samples[1:] - tilt * samples[:-1]).astype(np.float32)
    if rng.random() < 0.35:
        samples = band_limit(samples, rng.uniform(50, 350), rng.uniform(3200, 4000))
    samples = samples / (np.abs(samples).max() + 1e-6)
    if rng.random() < 0.5:
        level = np.sqrt(np.mean(samples**2)) + 1e-4
        noise_ratio = 10 ** (-rng.uniform(8, 50) / 20)
        samples = samples + level * noise_ratio * coloured_noise(len(samples), rng.choice([0.0, 0.0, 1.0, 2.0]), noise)
    samples = samples * 10 ** rng.uniform(-1.7, -0.03)
    if rng.random() < 0.15:
        samples = mu_law(samples)
    return samples.astype(np.float32)


def cut_like_a_window(string: DigitString, rng: random.Random) -> DigitString:
    """Truncate the first and the last word of a string, each with a probability of one half, as a window edge does.

    A string of one word is cut at its start only. A truncated word stays in the transcript if at least half of it is left. The
    first remaining word gets a capital letter. A truncated last word keeps its full stop, because the model should end a
    sentence where the audio ends.
    """
    first_word, last_word = string.words[0], string.words[-1]
    start = _cut_point(string.words[0], rng) if rng.random() < 0.5 else 0
    end = len(string.samples)
    if rng.random() < 0.5 and last_word is not first_word:
        end = max(_cut_point(last_word, rng), start + SAMPLE_RATE // 4)
    words: list[SpokenWord] = []
    for word in string.words:
        kept_start, kept_end = max(word.start_sample, start), min(word.end_sample, end)
        if kept_end - kept_start < 0.5 * (word.end_sample - word.start_sample):
            continue
        text = word.text
        if not words:
            text = text.capitalize()
        words.append(replace(word, text=text, start_sample=kept_start - start, end_sample=kept_end - start))
    return DigitString(string.samples[start:end], tuple(words))


def _cut_point(word: SpokenWord, rng: random.Random) -> int:
    """A random sample inside the word, never near its middle, so that it is clear whether the word stays in the transcript."""
    part = rng.choice([rng.uniform(0.05, MAX_EARLY_CUT), rng.uniform(MIN_LATE_CUT, 0.95)])
    return int(word.start_sample + part * (word.end_sample - word.start_sample))
