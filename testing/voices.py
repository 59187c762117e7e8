"""Audio for a simulated diarizer: its four voices are tones, with noise that decides where there are simulated words."""

import base64
from collections.abc import Sequence

import numpy as np

from serve_app.window import SAMPLE_RATE, Samples
from testing import media

VOICES_HZ = (250.0, 650.0, 1300.0, 2600.0)


def tone(voice: int, seconds: float, seed: int = 0) -> Samples:
    """One of the voices, int16 [samples]."""
    time_s = np.arange(round(seconds * SAMPLE_RATE)) / SAMPLE_RATE
    noise = np.random.default_rng([voice, seed]).normal(0, 10, len(time_s))
    return (8000 * np.sin(2 * np.pi * VOICES_HZ[voice] * time_s + 0.3) + noise).astype(np.int16)


def conversation(turns: Sequence[tuple[int, float]], pause_s: float = 2.5) -> Samples:
    """Turns of voices, each so many seconds long, with quiet noise after each."""
    rng = np.random.default_rng(7)
    pieces = []
    for index, (voice, seconds) in enumerate(turns):
        pieces += [tone(voice, seconds, index), rng.normal(0, 10, round(pause_s * SAMPLE_RATE)).astype(np.int16)]
    return np.concatenate(pieces)


def data_url(voice: int, seconds: float = 3.0) -> str:
    """One of the voices, as a reference of a known speaker."""
    wav = media.wav(tone(voice, seconds).astype(np.float32) / 32768)
    return f"data:audio/wav;base64,{base64.b64encode(wav).decode()}"
