"""Long recordings with known words and times: digit strings of many speakers one after another, in hard conditions if wanted.

Hours of audio are kept as int16 and made, spoilt and written in blocks.
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
CUT_SEARCH_S = 4.0
"""A piece ends in the longest pause of its last seconds, so many of them."""


@dataclass(frozen=True, slots=True)
class Recording:
    """Audio with its transcript: int16 samples at 16 kHz (half of what float32 would take) and the words in order."""

    samples: Samples
    words: tuple[SpokenWord, ...]


@dataclass(frozen=True, slots=True)
class Condition:
    """What a recording is like."""

    pauses: Pauses = USUAL_PAUSES
    noise_db: float | None = None
    """Mean power of speech over that of white noise; None adds none."""
    silence_s: float = 0.0
    """How long the silences are that come after about five minutes of speech each; 0 for none."""


NO_PAUSES = Pauses(*[(0.0, 0.0)] * 4)
SPEECH_BETWEEN_SILENCES_S = (200.0, 400.0)

CONDITIONS = {
    "clean": Condition(),
    "noise 30 dB": Condition(noise_db=30),
    "noise 15 dB": Condition(noise_db=15),
    "no pauses": Condition(NO_PAUSES),
    "long silences": Condition(silence_s=300),
    "long silences, noise 30 dB": Condition(silence_s=300, noise_db=30),
}

FORMATS = {
    "wav": ("wav", "pcm_s16le"),
    "mp3": ("mp3", "libmp3lame"),
    "opus": ("ogg", "libopus"),
    "m4a": ("mp4", "aac"),
}
"""Container and codec by the file name's ending."""


def compose_long(bank: Bank, duration_s: float, seed: int, condition: Condition = CONDITIONS["clean"]) -> Recording:
    """Strings of 1 to 12 digits, speakers taking turns, until the recording has that length; the last one is whole."""
    rng = random.Random(seed)
    parts: list[Samples] = []
    words: list[SpokenWord] = []
    length, speakers = 0, list[str]()
    silence_at = rng.uniform(*SPEECH_BETWEEN_SILENCES_S)
    while length < duration_s * SAMPLE_RATE:
        speakers = speakers or rng.sample(sorted(bank), len(bank))
        digits = [rng.randrange(10) for _ in range(rng.randint(1, MAX_STRING_DIGITS))]
        string = compose(bank[speakers.pop()], digits, rng, condition.pauses)
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
    """White noise of one level throughout, added in place and in blocks: hours do not fit in memory as floats."""
    energy = sum(
        float(np.square(recording.samples[w.start_sample : w.end_sample], dtype=np.float64).sum()) for w in recording.words
    )
    power = energy / sum(w.end_sample - w.start_sample for w in recording.words)
    level, noise = math.sqrt(power * 10 ** (-ratio_db / 10)), np.random.default_rng(seed)
    for block in blocks_of(recording.samples):
        noisy = block + np.float32(level) * noise.standard_normal(len(block), np.float32)
        block[:] = np.clip(np.round(noisy), -32768, 32767)


def blocks_of(samples: Samples) -> Iterator[Samples]:
    """Views of int16 [samples], ten seconds each."""
    for first in range(0, len(samples), BLOCK_SAMPLES):
        yield samples[first : first + BLOCK_SAMPLES]


def write(path: Path, samples: Samples, container: str, codec: str) -> None:
    """Encode int16 [samples] at 16 kHz into a file, block by block; see FORMATS."""
    with av.open(path, "w", format=container) as output:
        stream = output.add_stream(codec, rate=SAMPLE_RATE)
        assert isinstance(stream, av.AudioStream)
        stream.layout = "mono"
        for index, block in enumerate(blocks_of(samples)):
            frame = av.AudioFrame.from_ndarray(block[None], format="s16", layout="mono")
            frame.sample_rate = SAMPLE_RATE
            # Without time stamps an mp4 would not say how much of its beginning is the encoder's own delay.
            frame.pts, frame.time_base = index * BLOCK_SAMPLES, Fraction(1, SAMPLE_RATE)
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))


def piece_starts(recording: Recording, about_s: float) -> list[int]:
    """Samples at which pieces of at most `about_s` begin, the first at 0: in the longest pause within reach of the last cut.

    Where words follow each other without a pause, that is a boundary between two.
    """
    spans = [(0, 0), *((w.start_sample, w.end_sample) for w in recording.words), (len(recording.samples),) * 2]
    gaps = [(before[1], after[0]) for before, after in pairwise(spans)]
    starts, near = [0], 0
    while len(recording.samples) - starts[-1] > about_s * SAMPLE_RATE:
        stop = starts[-1] + round(about_s * SAMPLE_RATE)
        start = stop - round(CUT_SEARCH_S * SAMPLE_RATE)
        while gaps[near][1] < start:
            near += 1
        within = [(max(a, start), min(b, stop)) for a, b in gaps[near : near + 100] if b >= start and a < stop]
        low, high = max(within, key=lambda gap: gap[1] - gap[0])
        starts.append((low + high) // 2)
    return starts


def pieces(samples: Samples, starts: Sequence[int]) -> list[Window]:
    """The stretches between `starts` as windows without overlap; `samples` may be a decoded copy of another length."""
    stops = [*starts[1:], len(samples)]
    return [Window(k, start, samples[start:stop]) for k, (start, stop) in enumerate(zip(starts, stops, strict=True))]
