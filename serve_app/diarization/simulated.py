"""A diarizer without a model, for tests and capacity tests: it tells speakers by the frequency of their voice. Pure."""

import time

import numpy as np

from serve_app.diarization.protocol import DiarizerInfo, DiarizerShape, Probabilities
from serve_app.errors import DiarizerChanged
from serve_app.settings import SimulationSettings
from serve_app.window import FRAME_SAMPLES, SAMPLE_RATE, Samples

SHAPE = DiarizerShape(chunk_samples=62 * FRAME_SAMPLES, left_samples=FRAME_SAMPLES, right_samples=FRAME_SAMPLES, max_speakers=4)
BORDERS_HZ = (450.0, 900.0, 1800.0)
"""Frequencies between the four voices."""

MIN_LEVEL = 600.0
"""RMS level up to which a frame is silence."""

STATE = b"simulated 1\n"
"""What every state begins with."""


class SimulatedDiarizer:
    """The voice of a frame is one of four, by the rate at which its samples change their sign."""

    shape = SHAPE
    info = DiarizerInfo(device="simulated", precision="none")

    def __init__(self, costs: SimulationSettings) -> None:
        self._costs = costs
        time.sleep(costs.load_s)

    def step(self, samples: Samples, left_samples: int, right_samples: int, state: bytes | None) -> tuple[Probabilities, bytes]:
        """See DiarizerEngine.step. The state has the voices in the order in which they were first heard."""
        time.sleep(self._costs.step_s + self._costs.seconds_per_audio_s * len(samples) / SAMPLE_RATE)
        if state is not None and not state.startswith(STATE):
            raise DiarizerChanged("The state is that of another diarizer.")
        voices = list((state or STATE)[len(STATE) :])
        chunk = samples[left_samples : len(samples) - right_samples]
        found = np.zeros((-(-len(chunk) // FRAME_SAMPLES), SHAPE.max_speakers), np.float16)
        for index in range(len(found)):
            voice = _voice(chunk[index * FRAME_SAMPLES : (index + 1) * FRAME_SAMPLES])
            if voice is None:
                continue
            if voice not in voices:
                voices.append(voice)
            found[index] = 0.05
            found[index, voices.index(voice)] = 0.9
        return found, STATE + bytes(voices)


def _voice(frame: Samples) -> int | None:
    """None: silence."""
    if np.sqrt(np.square(frame.astype(np.float32)).mean()) <= MIN_LEVEL:
        return None
    changes = np.count_nonzero(np.diff(np.signbit(frame)))
    return int(np.searchsorted(BORDERS_HZ, changes * SAMPLE_RATE / 2 / len(frame)))
