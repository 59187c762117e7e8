"""An engine without a model, for capacity tests with many simulated GPUs on one machine and for tests of the server."""

import math
import time
import zlib
from collections.abc import Sequence

import numpy as np

from serve_app.engine.batch_cost import BatchCost
from serve_app.engine.protocol import EngineInfo
from serve_app.settings import SimulationSettings
from serve_app.transcript import Token, TokenColumns
from serve_app.window import FRAME_SAMPLES, SAMPLE_RATE, Keywords, Samples

PIECE_SAMPLES = 40
"""Length of the pieces of a frame that are examined for silence, samples."""

MIN_LEVEL = 600.0
"""RMS level of a piece up to which it is silence: above the noise that `audio.dither` adds."""


class SimulatedEngine:
    """Takes the time that the settings define. Its words depend only on the audio, not on the window that contains it."""

    info = EngineInfo(device="simulated", precision="none", decoder="simulated", keywords=True)

    def __init__(self, costs: SimulationSettings) -> None:
        self._costs = costs
        time.sleep(costs.load_s)

    def prepare(self, windows: Sequence[Samples], keywords: Sequence[Keywords] = ()) -> Sequence[Samples]:
        """See Engine.prepare."""
        return windows

    def recognise(self, batch: Sequence[Samples]) -> list[TokenColumns]:
        """See Engine.recognise."""
        return list(map(TokenColumns.of, self.transcribe(batch)))

    def transcribe(self, windows: Sequence[Samples], keywords: Sequence[Keywords] = ()) -> list[list[Token]]:
        """See Engine.transcribe. About one frame in six without silence becomes a word, which is the checksum of the frame."""
        padded_s = max(len(w) for w in windows) * len(windows) / SAMPLE_RATE
        time.sleep(self._costs.step_s + self._costs.seconds_per_audio_s * padded_s)
        return [self._words(window) for window in windows]

    def measure_cost(self, window_s: float, max_windows: int) -> BatchCost:
        """See Engine.measure_cost. It is known."""
        return BatchCost(self._costs.step_s, self._costs.seconds_per_audio_s)

    def fitting_audio_s(self) -> float:
        """See Engine.fitting_audio_s."""
        return math.inf

    @staticmethod
    def _words(window: Samples) -> list[Token]:
        frames = window[: len(window) // FRAME_SAMPLES * FRAME_SAMPLES].reshape(-1, FRAME_SAMPLES)
        checksums = np.array([zlib.crc32(frame.data) for frame in frames], np.uint32)
        chosen = np.flatnonzero(checksums % 6 == 0)
        pieces = frames[chosen].reshape(-1, FRAME_SAMPLES // PIECE_SAMPLES, PIECE_SAMPLES).astype(np.float32)
        # In the place of digital silence there is noise, at a level that depends on the window.
        quietest = np.vecdot(pieces, pieces).min(axis=1) / PIECE_SAMPLES
        tokens = []
        for index in chosen[quietest > MIN_LEVEL**2].tolist():
            word, start = int(checksums[index]) % 9973, index * FRAME_SAMPLES
            tokens.append(Token(f"▁w{word}", word, start, start + FRAME_SAMPLES, 1.0))
        return tokens
