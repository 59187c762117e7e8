"""What rooms, microphones, telephones and window edges do to speech, for training the bundled model.

Every function takes and returns float32 samples at 16 kHz; `degrade` draws a random mix of them.
"""

import random
from dataclasses import replace

import numpy as np
from scipy.signal import fftconvolve

from testing.digit_strings import SAMPLE_RATE, DigitString, Samples, SpokenWord

AUDIBLE_PART_KEPT = 0.65
AUDIBLE_PART_DROPPED = 0.3


def coloured_noise(length: int, exponent: float, noise: np.random.Generator) -> Samples:
    """Noise of unit RMS whose power falls as 1/f^exponent: 0 white, 1 pink, 2 brown."""
    spectrum = np.fft.rfft(noise.standard_normal(length))
    frequencies = np.maximum(np.arange(len(spectrum)), 1) / max(len(spectrum), 1)
    shaped = np.fft.irfft(spectrum * frequencies ** (-exponent / 2), length)
    return np.asarray(shaped / (np.sqrt(np.mean(shaped**2)) + 1e-9), dtype=np.float32)


def add_room(samples: Samples, decay_s: float, wet: float, noise: np.random.Generator) -> Samples:
    """Convolve with exponentially decaying noise (a diffuse room) and mix it under the direct sound."""
    length = int(decay_s * SAMPLE_RATE)
    tail = noise.standard_normal(length) * np.exp(-6.9 * np.arange(length) / length)
    tail /= np.sqrt(np.sum(tail**2))
    return np.asarray(samples + wet * fftconvolve(samples, tail)[: len(samples)], dtype=np.float32)


def band_limit(samples: Samples, low_hz: float, high_hz: float) -> Samples:
    """Keep only a band of frequencies, as a telephone does."""
    spectrum = np.fft.rfft(samples)
    frequencies = np.fft.rfftfreq(len(samples), 1 / SAMPLE_RATE)
    spectrum[(frequencies < low_hz) | (frequencies > high_hz)] = 0
    return np.fft.irfft(spectrum, len(samples)).astype(np.float32)


def mu_law(samples: Samples) -> Samples:
    """Round to 8 bits as G.711 does."""
    level = np.sign(samples) * np.log1p(255 * np.minimum(np.abs(samples), 1)) / np.log(256)
    level = np.round(level * 127) / 127
    return np.asarray(np.sign(level) * np.expm1(np.abs(level) * np.log(256)) / 255, dtype=np.float32)


def degrade(samples: Samples, rng: random.Random, noise: np.random.Generator) -> Samples:
    """Room, tilt of the spectrum, band, noise, level and companding, each with its own chance."""
    if rng.random() < 0.3:
        samples = add_room(samples, rng.uniform(0.08, 0.5), rng.uniform(0.1, 0.6), noise)
    if rng.random() < 0.3:
        tilt = rng.uniform(-0.7, 0.7)
        samples = np.append(samples[:1], samples[1:] - tilt * samples[:-1]).astype(np.float32)
    if rng.random() < 0.35:
        samples = band_limit(samples, rng.uniform(50, 350), rng.uniform(3200, 4000))
    samples = samples / (np.abs(samples).max() + 1e-6)
    if rng.random() < 0.5:
        loudness = np.sqrt(np.mean(samples**2)) + 1e-4
        below = 10 ** (-rng.uniform(8, 50) / 20)
        samples = samples + loudness * below * coloured_noise(len(samples), rng.choice([0.0, 0.0, 1.0, 2.0]), noise)
    samples = samples * 10 ** rng.uniform(-1.7, -0.03)
    if rng.random() < 0.15:
        samples = mu_law(samples)
    return samples.astype(np.float32)


def cut_like_a_window(string: DigitString, rng: random.Random) -> DigitString:
    """Cut at a random point on each side, as the edge of a window does, often inside a word.

    A word of which most is left stays in the transcript; one of which little is left goes. The first word of what remains takes a
    capital letter. The last word of a string keeps its full stop when the cut is inside it: audio that ends is taken as a
    sentence that ends.
    """
    first_word, last_word = string.words[0], string.words[-1]
    start = _cut_point(string.words[0], rng) if rng.random() < 0.5 else 0
    end = len(string.samples)
    if rng.random() < 0.5 and last_word is not first_word:
        end = max(_cut_point(last_word, rng), start + SAMPLE_RATE // 4)
    words: list[SpokenWord] = []
    for word in string.words:
        shown_start, shown_end = max(word.start_sample, start), min(word.end_sample, end)
        if shown_end - shown_start < 0.5 * (word.end_sample - word.start_sample):
            continue
        text = word.text
        if not words:
            text = text.capitalize()
        words.append(replace(word, text=text, start_sample=shown_start - start, end_sample=shown_end - start))
    return DigitString(string.samples[start:end], tuple(words))


def _cut_point(word: SpokenWord, rng: random.Random) -> int:
    """A sample inside the word that leaves a clear majority of it on one side."""
    part = rng.choice([rng.uniform(0.05, AUDIBLE_PART_DROPPED), rng.uniform(AUDIBLE_PART_KEPT, 0.95)])
    return int(word.start_sample + part * (word.end_sample - word.start_sample))
