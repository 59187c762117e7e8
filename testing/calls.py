"""Telephone calls with known words: one talker a channel, in turns that may overlap."""

import random
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from testing.digit_strings import SAMPLE_RATE, Bank, Pauses, Samples, SpokenWord, compose

MAX_TURN_DIGITS = 8
PAUSES = Pauses(lead_s=(0.05, 0.1), trail_s=(0.05, 0.1))
"""Within and around a turn."""


@dataclass(frozen=True, slots=True)
class Call:
    """Float32 [samples, channels] at 16 kHz, and the words of each channel, in order."""

    samples: NDArray[np.float32]
    words: tuple[tuple[SpokenWord, ...], ...]

    def texts(self, channel: int) -> list[str]:
        return [word.text for word in self.words[channel]]


def compose_call(
    bank: Bank,
    turns: int,
    seed: int,
    *,
    channels: int = 2,
    gap_s: tuple[float, float] = (-1.0, 1.5),
    crosstalk_db: float | None = None,
    noise_db: float = -60.0,
) -> Call:
    """A call of so many turns. The gaps between them are drawn uniformly from a range; where a gap is negative, turns overlap.

    `crosstalk_db`: level at which a channel hears the others; None: it does not. `noise_db`: level of the noise in each channel,
    relative to full scale.
    """
    rng = random.Random(seed)
    voices = rng.sample(sorted(bank), min(channels, len(bank)))
    said: list[list[tuple[int, Samples]]] = [[] for _ in range(channels)]
    words: list[list[SpokenWord]] = [[] for _ in range(channels)]
    ends, at, talker = [0] * channels, SAMPLE_RATE // 2, 0
    for _ in range(turns):
        digits = [rng.randrange(10) for _ in range(rng.randint(1, MAX_TURN_DIGITS))]
        turn = compose(bank[voices[talker % len(voices)]], digits, rng, PAUSES)
        at = max(at, ends[talker] + SAMPLE_RATE, 0)
        said[talker].append((at, turn.samples))
        words[talker] += [SpokenWord(w.text, w.digit, w.start_sample + at, w.end_sample + at) for w in turn.words]
        ends[talker] = at + len(turn.samples)
        at = ends[talker] + round(rng.uniform(*gap_s) * SAMPLE_RATE)
        talker = (talker + rng.randrange(1, channels)) % channels if channels > 1 else 0
    length = max(ends) + SAMPLE_RATE
    talkers = np.zeros((channels, length), np.float32)
    for track, spoken in zip(talkers, said, strict=True):
        for start, samples in spoken:
            track[start : start + len(samples)] = samples
    gain = 0.0 if crosstalk_db is None else 10 ** (crosstalk_db / 20)
    heard = np.full((channels, channels), gain, np.float32)
    np.fill_diagonal(heard, 1)
    noise = np.random.default_rng(seed).normal(0, 10 ** (noise_db / 20), talkers.shape)
    return Call((0.7 * heard @ talkers + noise).astype(np.float32).T, tuple(map(tuple, words)))
