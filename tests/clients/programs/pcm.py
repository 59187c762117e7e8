"""The audio that the programs beside it send: a WAV file, mono, 16-bit, 24 kHz, in pieces as they come from a microphone."""

import wave
from collections.abc import Iterator

import numpy as np

RATE = 24_000
FRAME_S = 0.05


def frames(path: str) -> Iterator[np.ndarray]:
    with wave.open(path) as file:
        assert (file.getframerate(), file.getnchannels(), file.getsampwidth()) == (RATE, 1, 2)
        samples = np.frombuffer(file.readframes(file.getnframes()), np.int16)
    step = round(FRAME_S * RATE)
    for start in range(0, len(samples), step):
        yield samples[start : start + step]
