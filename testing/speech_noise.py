"""Noise that sounds like somebody talking, of any length, and its media files. For benchmarks: nothing in it can be recognised,
but it costs a codec, a gap detector and the simulated engine what speech costs them."""

from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray

from serve_app.window import SAMPLE_RATE
from testing.media import Format

PART_S = 60
"""Length of the parts in which a recording is made, seconds."""

SPEECH_LEVEL, ROOM_LEVEL = 0.25, 0.0005
"""RMS levels of the loudest speech and of a pause, as fractions of full scale."""

SYLLABLES_HZ = 4.0
SYLLABLE_DEPTH = 0.5
"""How far the level falls between two syllables, from 0 to 1."""

PHRASE_S, PAUSE_S = (2.0, 8.0), (0.2, 1.0)
"""Shortest and longest phrase and pause, seconds."""

KNEE_HZ = 500.0
"""The spectrum falls by 6 dB per octave from here."""

SPEECH_FORMATS = {
    "mp3": Format("mp3", "libmp3lame", 44_100, "stereo"),
    "opus": Format("ogg", "libopus", 48_000, "stereo"),
    "m4a": Format("ipod", "aac", 16_000),
    "flac": Format("flac", "flac", 16_000),
    "wav": Format("wav", "pcm_s16le", 48_000, "stereo"),
}
"""What people upload, by the ending of the file's name."""

BIT_RATE = 64_000
"""Of a lossy format, bits per second and channel."""


def parts(seconds: float, seed: int = 1) -> Iterator[NDArray[np.float32]]:
    """Two microphones in one room: float32 [2, samples] at 16 kHz, PART_S seconds at a time; the last part is shorter."""
    rng = np.random.default_rng(seed)
    for start_s in np.arange(0, seconds, PART_S):
        samples = round(min(PART_S, seconds - start_s) * SAMPLE_RATE)
        speech = SPEECH_LEVEL * _level(samples, rng) * _coloured_noise(samples, rng)
        rooms = ROOM_LEVEL * np.stack([_coloured_noise(samples, rng) for _ in range(2)])
        yield np.clip(np.outer((1.0, 0.8), speech) + rooms, -1, 1).astype(np.float32)


def write(path: Path, target: Format, seconds: float) -> None:
    """Encode `seconds` of it; a mono file has the first microphone. The file appears under its name when it is complete."""
    unfinished = path.with_name(f"unfinished-{path.name}")
    resampler = av.AudioResampler(rate=target.rate, layout=target.layout, format="s16")
    with av.open(str(unfinished), "w", format=target.container) as output:
        stream = output.add_stream(target.codec, rate=target.rate)
        assert isinstance(stream, av.AudioStream)
        stream.layout = target.layout
        stream.bit_rate = BIT_RATE * stream.layout.nb_channels
        is_mono, at = target.layout == "mono", 0
        for part in parts(seconds):
            array = np.ascontiguousarray(part[:1] if is_mono else part)
            frame = av.AudioFrame.from_ndarray(array, format="fltp", layout=target.layout)
            frame.sample_rate, frame.time_base, frame.pts = SAMPLE_RATE, Fraction(1, SAMPLE_RATE), at
            at += frame.samples
            for resampled in resampler.resample(frame):
                output.mux(stream.encode(resampled))
        for resampled in resampler.resample(None):
            output.mux(stream.encode(resampled))
        output.mux(stream.encode(None))
    unfinished.rename(path)


def _coloured_noise(samples: int, rng: np.random.Generator) -> NDArray[np.float32]:
    """Noise with an RMS level of 1 whose spectrum falls as that of speech does."""
    spectrum = np.fft.rfft(rng.standard_normal(samples, np.float32))
    spectrum /= 1 + np.fft.rfftfreq(samples, 1 / SAMPLE_RATE) / KNEE_HZ
    noise = np.fft.irfft(spectrum, samples)
    return np.asarray(noise / np.sqrt(np.mean(noise**2)), np.float32)


def _level(samples: int, rng: np.random.Generator) -> NDArray[np.float32]:
    """Phrases of syllables with pauses between them, from 0 to 1."""
    seconds = np.arange(samples) / SAMPLE_RATE
    level = 1 - SYLLABLE_DEPTH * np.cos(np.pi * SYLLABLES_HZ * seconds) ** 2
    at_s = rng.uniform(*PHRASE_S)
    while at_s * SAMPLE_RATE < samples:
        pause_s = rng.uniform(*PAUSE_S)
        level[round(at_s * SAMPLE_RATE) : round((at_s + pause_s) * SAMPLE_RATE)] = 0
        at_s += pause_s + rng.uniform(*PHRASE_S)
    return level.astype(np.float32)
