"""The simulated engine."""

import numpy as np

from serve_app.engine.simulated import SimulatedEngine
from serve_app.settings import SimulationSettings
from serve_app.window import FRAME_SAMPLES


def test_words_depend_on_the_audio_not_on_the_window() -> None:
    audio = np.random.default_rng(1).integers(-9000, 9000, 40 * FRAME_SAMPLES, dtype=np.int16)
    engine = SimulatedEngine(SimulationSettings(step_s=0, seconds_per_audio_s=0))
    offset = 10 * FRAME_SAMPLES
    whole, late = engine.transcribe([audio, audio[offset:]])
    assert len(whole) > 3
    assert [t for t in whole if t.start_sample >= offset] == [t.moved(offset) for t in late]
