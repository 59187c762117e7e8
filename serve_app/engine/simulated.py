"""An engine without a model, for capacity tests with many simulated GPUs on one machine and for tests of the server."""

import time
import zlib
from collections.abc import Sequence

from serve_app.engine.protocol import EngineInfo
from serve_app.settings import SimulationSettings
from serve_app.transcript import Token
from serve_app.window import FRAME_SAMPLES, SAMPLE_RATE, Keywords, Samples


class SimulatedEngine:
    """Takes the time that the settings define. Its words depend only on the audio, not on the window that contains it."""

    info = EngineInfo(device="simulated", precision="none", decoder="simulated")

    def __init__(self, costs: SimulationSettings) -> None:
        self._costs = costs
        time.sleep(costs.load_s)

    def transcribe(self, windows: Sequence[Samples], keywords: Sequence[Keywords] = ()) -> list[list[Token]]:
        """See Engine.transcribe. About one non-silent frame in six becomes a word, which is the checksum of the frame."""
        padded_s = max(len(w) for w in windows) * len(windows) / SAMPLE_RATE
        time.sleep(self._costs.step_s + self._costs.seconds_per_audio_s * padded_s)
        return [self._words(window) for window in windows]

    @staticmethod
    def _words(window: Samples) -> list[Token]:
        tokens = []
        for start in range(0, len(window) - FRAME_SAMPLES + 1, FRAME_SAMPLES):
            frame = window[start : start + FRAME_SAMPLES]
            checksum = zlib.crc32(frame.tobytes())
            if frame.any() and checksum % 6 == 0:
                tokens.append(Token(f"▁w{checksum % 9973}", checksum % 9973, start, start + FRAME_SAMPLES, 1.0))
        return tokens
