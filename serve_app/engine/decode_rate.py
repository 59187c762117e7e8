"""How much audio a replica decodes per second when it is busy. Pure."""

import math
import time
from collections.abc import Callable

from serve_app.engine.batch_cost import BatchCost

MEMORY_S = 20.0
"""Time constant of the mean, busy seconds."""

MAX_RATE = 1e6
"""Where an engine takes no time, seconds per second."""


class DecodeRate:
    """Seconds of audio per second, of batches that are large enough to tell what a busy replica can do.

    A replica with little to do decodes small batches, whose fixed cost says nothing about a full one.
    """

    def __init__(self, cost: BatchCost, full_audio_s: float, now_s: Callable[[], float] = time.monotonic) -> None:
        """`cost`: what was measured at load, the rate until batches have been. Batches of `full_audio_s` are full."""
        self._now_s = now_s
        self._min_audio_s = full_audio_s / 2
        self._busy_s = MEMORY_S
        self._audio_s = MEMORY_S * full_audio_s / max(cost.step_s + cost.per_audio_s * full_audio_s, full_audio_s / MAX_RATE)
        self._began_s = now_s()
        self._batch_audio_s = 0.0

    def begin(self, audio_s: float) -> None:
        """A batch with this much audio, without padding, begins. Batches follow one another."""
        self._began_s, self._batch_audio_s = self._now_s(), audio_s

    def end(self) -> None:
        """The batch is done, or has failed. What is then repeated of it, item by item, begins no batch and does not count."""
        audio_s, self._batch_audio_s = self._batch_audio_s, 0.0
        if audio_s < self._min_audio_s:
            return
        busy_s = self._now_s() - self._began_s
        kept = math.exp(-busy_s / MEMORY_S)
        self._audio_s = self._audio_s * kept + audio_s
        self._busy_s = self._busy_s * kept + busy_s

    @property
    def value(self) -> float:
        return min(MAX_RATE, self._audio_s / self._busy_s)
