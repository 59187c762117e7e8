"""A clip of real speech, for measurements and checks on the user's device."""

import wave
from pathlib import Path

import numpy as np

from serve_app.window import Samples

CLIP = Path(__file__).parent.parent / "bundled" / "check.wav"


def speech_clip() -> Samples:
    """int16 [samples] at 16 kHz: 1.6 s of spoken digits."""
    with wave.open(str(CLIP)) as file:
        return np.frombuffer(file.readframes(file.getnframes()), np.dtype("<i2")).astype(np.int16)
