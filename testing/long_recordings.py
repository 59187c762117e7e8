"""Long recordings with known words and times: digit strings of many speakers one after another.

A condition may add noise or long silences, or remove the pauses. To save memory, hours of audio are kept as int16, and noise and
encoding work on blocks.
"""

import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import av
import numpy as np

from serve_app.window import SAMPLE_RATE, Samples, Window
from testing.accuracy import MAX_STRING_DIGITS
from testing.digit_strings import USUAL_PAUSES, Bank, Pauses, SpokenWord, compose, to_int16

BLOCK_SAMPLES = 10 * SAMPLE_RATE
"""Length of a block, samples."""

CUT_SEARCH_S = 4.0
"""A piece ends in the longest pause within this many seconds before its maximum length."""


@dataclass(frozen=True, slots=True)
class Recording:
    """Audio with its transcript: int16 [samples] at 16 kHz and the words in order."""

    samples: Samples
    words: tuple[SpokenWord, ...]


@dataclass(frozen=True, slots=True)
class Condition:
    """The acoustic conditions of a recording."""

    pauses: Pauses = USUAL_PAUSES
    """The silences within and around each digit string."""
    noise_db: float | None = None
    """Ratio of mean speech power to the power of added white noise, decibels. None adds no noise."""
    silence_s: float = 0.0
    """Length of a silence after about every five minutes of speech, seconds. 0 adds no silence."""


NO_PAUSES = Pauses(*[(0.0, 0.0)] * 4)
"""Words follow each other without any silence."""

SPEECH_BETWEEN_SILENCES_S = (200.0, 400.0)
"""Range of the time between two long silences, seconds; drawn uniformly."""

CONDITIONS = {
    "clean": Condition(),
    "noise 30 dB": Condition(noise_db=30),
    "noise 15 dB": Condition(noise_db=15),
    "no pauses": Condition(NO_PAUSES),
    "long silences": Condition(silence_s=300),
    "long silences, noise 30 dB": Condition(silence_s=300, noise_db=30),
}
"""Conditions by the name that reports show."""

FORMATS = {
    "wav": ("wav", "pcm_s16le"),
    "mp3": ("mp3", "libmp3lame"),
    "opus": ("ogg", "libopus"),
    "m4a": ("mp4", "aac"),
}
"""Container and codec by file name extension."""


def compose_long(bank: Bank, duration_s: float, seed: int, condition: Condition = CONDITIONS["clean"]) -> Recording:
    """Join strings of 1 to MAX_STRING_DIGITS digits until the recording is at least `duration_s` long.

    Each string has another speaker, drawn so that every speaker of the bank appears before one appears again.
    """
    rng = random.Random(seed)
    parts: list[Samples] = []
    words: list[SpokenWord] = []
    length, next_speakers = 0, list[str]()
    silence_at = rng.uniform(*SPEECH_BETWEEN_SILENCES_S)
    while length < duration_s * SAMPLE_RATE:
        next_speakers = next_speakers or rng.sample(sorted(bank), len(bank))
        digits = [rng.randrange(10) for _ in range(rng.randint(1, MAX_STRING_DIGITS))]
        string = compose(bank[next_speakers.pop()], digits, rng, condition.pauses)
        words += [SpokenWord(w.text, w.digit, w.start_sample + length, w.end_sample + length) for w in string.words]
        parts.append(to_int16(string.samples))
        length += len(parts[-1])
        if condition.silence_s and length > silence_at * SAMPLE_RATE:
            parts.append(np.zeros(round(condition.silence_s * SAMPLE_RATE), np.int16))
            length += len(parts[-1])
            silence_at = length / SAMPLE_RATE + rng.uniform(*SPEECH_BETWEEN_SILENCES_S)
    recording = Recording(np.concatenate(parts), tuple(words))
    if condition.noise_db is not None:
        _add_noise(recording, condition.noise_db, seed)
    return recording


def _add_noise(recording: Recording, ratio_db: float, seed: int) -> None:
    """Add white noise of constant level in place. It works in blocks, because hours of float samples do not fit in memory."""
    energy = sum(
        float(np.square(recording.samples[w.start_sample : w.end_sample], dtype=np.float64).sum()) for w in recording.words
    )
    power = energy / sum(w.end_sample - w.start_sample for w in recording.words)
    level, noise = math.sqrt(power * 10 ** (-ratio_db / 10)), np.random.default_rng(seed)
    for block in blocks_of(recording.samples):
        noisy = block + np.float32(level) * noise.standard_normal(len(block), np.float32)
        block[:] = np.clip(np.round(noisy), -32768, 32767)


def blocks_of(samples: Samples) -> Iterator[Samples]:
    """Views of int16 [samples], each of BLOCK_SAMPLES or less."""
    for first in range(0, len(samples), BLOCK_SAMPLES):
        yield samples[first : first + BLOCK_SAMPLES]


def write(path: Path, samples: Samples, container: str, codec: str) -> None:
    """Encode int16 [samples] at 16 kHz into a file, with a container and codec of FORMATS."""
    with av.open(path, "w", format=container) as output:
        stream = output.add_stream(codec, rate=SAMPLE_RATE)
        assert isinstance(stream, av.AudioStream)
        stream.layout = "mono"
        for index, block in enumerate(blocks_of(samples)):
            frame = av.AudioFrame.from_ndarray(block[None], format="s16", layout="mono")
            frame.sample_rate = SAMPLE_RATE
            # Without time stamps, an MP4 file would not record the encoder delay at its start.
            frame.pts, frame.time_base = index * BLOCK_SAMPLES, Fraction(1, SAMPLE_RATE)
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))


def piece_starts(recording: Recording, max_s: float) -> list[int]:
    """First sample of each piece, for pieces of at most `max_s` seconds. The first piece starts at 0.

    A cut is in the middle of the longest pause in the last CUT_SEARCH_S seconds of a piece. If words follow each other without a
    pause, the cut is at a boundary between two words.
    """
    spans = [(0, 0), *((w.start_sample, w.end_sample) for w in recording.words), (len(recording.samples),) * 2]
    gaps = [(before[1], after[0]) for before, after in pairwise(spans)]
    starts, first_gap = [0], 0
    while len(recording.samples) - starts[-1] > max_s * SAMPLE_RATE:
        stop = starts[-1] + round(max_s * SAMPLE_RATE)
        start = stop - round(CUT_SEARCH_S * SAMPLE_RATE)
        while gaps[first_gap][1] < start:
            first_gap += 1
        within = [(max(a, start), min(b, stop)) for a, b in gaps[first_gap : first_gap + 100] if b >= start and a < stop]
        low, high = max(within, key=lambda gap: gap[1] - gap[0])
        starts.append((low + high) // 2)
    return starts


def pieces(samples: Samples, starts: Sequence[int]) -> list[Window]:
    """Cut int16 [samples] at `starts` into windows without overlap.

    `samples` may be a decoded copy of the recording, with another length.
    """
    stops = [*starts[1:], len(samples)]
    return [Window(k, start, samples[start:stop]) for k, (start, stop) in enumerate(zip(starts, stops, strict=True))]
