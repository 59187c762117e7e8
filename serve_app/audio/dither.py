"""Noise in the place of digital silence.

Time stamps with gaps, muted microphones and editors leave exact zeros beside audio that has background noise. Models take the
step between the two for speech, and miss words near it. So zeros get noise with the level and spectrum of the window's own
background noise.
"""

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from serve_app.window import SAMPLE_RATE, Samples, Window

MIN_ZEROS = SAMPLE_RATE // 200
"""Minimum length of a run of zeros that is digital silence, samples (5 ms). Shorter ones occur in ordinary quiet audio."""

LEVEL_SAMPLES = SAMPLE_RATE // 40
"""Length of the pieces whose levels are compared, samples (25 ms)."""

SPECTRUM_SAMPLES = 512
"""Length of the Fourier transform of a piece, samples."""

QUIET_PERCENT = 10
"""Percentile of the levels that is at most the background noise, if there is some between the words."""

HIGHER_PERCENT = 25
"""Another percentile. If it is much higher than the first, there is no background noise between the words, and the quietest
pieces belong to words. So the noise is below the first percentile, by DISTANCES times the distance between the two (in dB)."""

DISTANCES = 2
"""See HIGHER_PERCENT."""

MIN_LEVEL = 1.0
"""Minimum RMS level of the noise, in steps of int16."""

MAX_LEVEL = 580.0
"""RMS level (-35 dBFS) above which the quietest pieces are no background noise, but the middle of a word: MIN_LEVEL is used."""

NOISE: NDArray[np.float32] = np.random.RandomState(0).standard_normal(1 << 16).astype(np.float32)
"""White noise with an RMS level of 1, by the sample's position modulo its length (4 s). NumPy keeps this generator unchanged."""

NOISE_SPECTRUM = np.fft.rfft(NOISE)


def without_zeros(window: Window) -> Window:
    """The window with noise in the place of digital silence, as a function of its samples and position alone.

    Windows without digital silence, and windows of nothing else, are returned unchanged.
    """
    is_silent = _digital_silence(window.samples)
    if not is_silent.any():
        return window
    audio = window.samples[~is_silent]
    pieces = audio[: len(audio) // LEVEL_SAMPLES * LEVEL_SAMPLES].reshape(-1, LEVEL_SAMPLES).astype(np.float32)
    if not len(pieces):
        return window
    positions = (window.start_sample + np.flatnonzero(is_silent)) % len(NOISE)
    samples = window.samples.copy()
    samples[is_silent] = np.clip(np.round(_background_noise(pieces)[positions]), -32768, 32767)
    return replace(window, samples=samples)


def _digital_silence(samples: Samples) -> NDArray[np.bool_]:
    """Which samples are in a run of at least MIN_ZEROS zeros."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], samples == 0, [False]])))
    runs = edges.reshape(-1, 2)
    is_silent = np.zeros(len(samples), np.bool_)
    for start, end in runs[runs[:, 1] - runs[:, 0] >= MIN_ZEROS]:
        is_silent[start:end] = True
    return is_silent


def _background_noise(pieces: NDArray[np.float32]) -> NDArray[np.float32]:
    """Periodic noise like the background noise of `pieces` [pieces, LEVEL_SAMPLES], float32 [len(NOISE)]."""
    levels = np.sqrt(np.square(pieces).mean(axis=1)) + 1e-3
    quiet, higher = np.percentile(levels, [QUIET_PERCENT, HIGHER_PERCENT])
    spectra = np.fft.rfft(pieces[levels <= quiet] * np.hanning(LEVEL_SAMPLES), SPECTRUM_SAMPLES)
    magnitudes = np.sqrt(np.square(np.abs(spectra)).mean(axis=0))
    frequencies = np.linspace(0, len(magnitudes) - 1, len(NOISE_SPECTRUM))
    noise = np.fft.irfft(NOISE_SPECTRUM * np.interp(frequencies, np.arange(len(magnitudes)), magnitudes))
    level = max(MIN_LEVEL, quiet * (quiet / higher) ** DISTANCES)
    if level > MAX_LEVEL:
        level = MIN_LEVEL
    scaled: NDArray[np.float32] = (noise * (level / (np.sqrt(np.square(noise).mean()) + 1e-9))).astype(np.float32)
    return scaled
