"""Noise in the place of digital silence.

Time stamps with gaps, muted microphones and editors leave exact zeros beside audio that has background noise. Models take the
step between the two for speech, and miss words near it. So zeros get noise like the background noise of their own window: with
the level and the spectrum of its quietest audio.
"""

import math
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from serve_app.window import SAMPLE_RATE, Samples, Window

MIN_ZEROS = SAMPLE_RATE // 200
"""Minimum length of a run of zeros that is digital silence, samples (5 ms). Shorter ones occur in ordinary quiet audio."""

EDGE_SAMPLES = SAMPLE_RATE // 100
"""Length of the audio on either side of digital silence whose level is measured, samples (10 ms). It is faint where the words of
a recording without background noise fade to zero."""

EDGES_AT_ONCE = 1024
"""So many of these spans are measured at once: a forged file may have hundreds of thousands."""

PIECE_SAMPLES = SAMPLE_RATE // 40
"""Length of the pieces that a window is searched for its quietest audio in, samples (25 ms)."""

QUIET_PERCENT = 10
"""Percentage of the pieces that are the quietest ones."""

SPECTRUM_SAMPLES = 512
"""Length of the Fourier transform of a piece, samples."""

MIN_LEVEL = 1.0
"""Minimum RMS level of the noise, in steps of int16."""

MAX_LEVEL = 580.0
"""RMS level (-35 dBFS) above which the quietest audio is no background noise, but the middle of a word: MIN_LEVEL is used."""

NOISE: NDArray[np.float32] = np.random.RandomState(0).standard_normal(1 << 14).astype(np.float32)
"""White noise with an RMS level of 1, by the sample's position modulo its length (1 s). NumPy keeps this generator unchanged."""

NOISE_SPECTRUM = np.fft.rfft(NOISE)
"""In single precision, which halves the time of the transforms: complex64."""

NOISE_FREQUENCIES = np.linspace(0, SPECTRUM_SAMPLES // 2, len(NOISE_SPECTRUM))
"""The place of each frequency of NOISE_SPECTRUM in the spectrum of a piece."""

HANN_WINDOW = np.hanning(PIECE_SAMPLES).astype(np.float32)


def without_zeros(window: Window) -> Window:
    """The window with noise in the place of digital silence, as a function of its samples and position alone.

    Windows without digital silence, and windows of nothing else, are returned unchanged.
    """
    samples = window.samples
    runs = _digital_silence(samples)
    if not len(runs):
        return window
    pieces = _pieces(samples, runs)
    if not len(pieces):
        return window
    powers = np.einsum("ij,ij->i", pieces, pieces)
    place = (len(powers) - 1) * QUIET_PERCENT // 100
    quiet = pieces[powers <= np.partition(powers, place)[place]]
    noise = _level(quiet, samples, runs) * _noise_like(quiet)
    steps = np.clip(np.round(noise), -32768, 32767).astype(np.int16)
    filled, noise_here = samples.copy(), np.resize(np.roll(steps, -window.start_sample), len(samples))
    for start, end in runs:
        filled[start:end] = noise_here[start:end]
    return replace(window, samples=filled)


def _digital_silence(samples: Samples) -> NDArray[np.intp]:
    """The runs of at least MIN_ZEROS zeros: start and end, [runs, 2]."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], samples == 0, [False]])))
    runs = edges.reshape(-1, 2)
    return runs[runs[:, 1] - runs[:, 0] >= MIN_ZEROS]


def _pieces(samples: Samples, runs: NDArray[np.intp]) -> NDArray[np.float32]:
    """The audio outside the runs, [pieces, PIECE_SAMPLES]."""
    starts, ends = [0, *runs[:, 1]], [*runs[:, 0], len(samples)]
    audio = np.concatenate([samples[start:end] for start, end in zip(starts, ends, strict=True)])
    return audio[: len(audio) // PIECE_SAMPLES * PIECE_SAMPLES].reshape(-1, PIECE_SAMPLES).astype(np.float32)


def _level(quiet: NDArray[np.float32], samples: Samples, runs: NDArray[np.intp]) -> float:
    """RMS level of the noise: that of the quietest pieces, or of the audio next to a run where that is quieter."""
    starts = np.concatenate([runs[:, 0] - EDGE_SAMPLES, runs[:, 1]])
    power = min(
        _power_of_quietest(samples, starts[first : first + EDGES_AT_ONCE]) for first in range(0, len(starts), EDGES_AT_ONCE)
    )
    level = min(_rms(quiet), math.sqrt(power))
    return level if MIN_LEVEL <= level <= MAX_LEVEL else MIN_LEVEL


def _power_of_quietest(samples: Samples, starts: NDArray[np.intp]) -> float:
    """Mean square of the quietest span of EDGE_SAMPLES samples from one of `starts`, as far as they are in the window; infinite
    if all are silent."""
    places = starts[:, None] + np.arange(EDGE_SAMPLES)
    is_inside = (places >= 0) & (places < len(samples))
    spans = np.where(is_inside, samples.take(places, mode="clip"), 0).astype(np.float32)
    powers = np.vecdot(spans, spans) / np.maximum(1, is_inside.sum(axis=1))
    return float(powers[powers > 0].min(initial=np.inf))


def _rms(samples: NDArray[Any]) -> float:
    return float(np.sqrt(np.square(samples.astype(np.float32)).mean()))


def _noise_like(quiet: NDArray[np.float32]) -> NDArray[np.float32]:
    """Periodic noise with an RMS level of 1 and the spectrum of pieces [pieces, PIECE_SAMPLES], float32 [len(NOISE)]."""
    spectra = np.fft.rfft(quiet * HANN_WINDOW, SPECTRUM_SAMPLES)
    magnitudes = np.sqrt(np.square(np.abs(spectra)).mean(axis=0))
    shape = np.interp(NOISE_FREQUENCIES, np.arange(len(magnitudes)), magnitudes).astype(np.float32)
    noise = np.fft.irfft(NOISE_SPECTRUM * shape).astype(np.float32, copy=False)
    return noise / np.float32(_rms(noise) + 1e-9)
