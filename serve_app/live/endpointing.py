"""Endpointing: speech probabilities of a VAD in, starts and ends of speech out. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from serve_app.window import SAMPLE_RATE, Samples

VAD_FRAME_SAMPLES = 512
"""Samples per speech probability (32 ms)."""

HYSTERESIS = 0.15
"""Speech continues while its probability stays above the threshold minus this, as in Silero's own iterator."""

MIN_STOP_THRESHOLD = 0.01
"""Minimum probability at which speech continues, as in Silero's own iterator. At 0 speech would never end."""

MIN_SPEECH_PROBABILITY = 0.1
"""A frame with a lower probability holds no speech, whatever the threshold for its start.

Measured with Silero's model on spoken digits: at a signal-to-noise ratio of -3 dB or better, every word has a frame above it. No
white noise of -90 to -20 dBFS reaches it, nor do such pauses, from 0.3 s after the last word on.
"""


@dataclass(frozen=True, slots=True)
class VadEvent:
    """The start or the end of speech."""

    is_speech: bool
    sample: int
    """Position in the stream."""
    detected_at: int
    """Samples of the stream that it took to detect it: the end of speech is known only after the endpointing silence."""


@dataclass(frozen=True, slots=True)
class Endpointing:
    """What counts as speech, and when an utterance has ended."""

    silence_s: float
    """Silence that ends an utterance, seconds; infinite: none ends by silence."""
    threshold: float = 0.5
    """Probability at which speech starts; the default is Silero's."""


class VoiceActivityDetector(Protocol):
    """Follows one stream."""

    @property
    def possible_speech_until(self) -> int:
        """End of the newest frame that may hold speech, samples of the stream; 0: none did."""
        ...

    async def push(self, block: Samples) -> list[VadEvent]:
        """Take the next int16 [samples]; return the events that they complete."""
        ...


class Endpointer:
    """The VAD events of one stream."""

    def __init__(self, endpointing: Endpointing) -> None:
        self._silence = endpointing.silence_s * SAMPLE_RATE
        self._start_threshold = endpointing.threshold
        self._stop_threshold = max(endpointing.threshold - HYSTERESIS, MIN_STOP_THRESHOLD)
        self._is_speech = False
        self._position = 0
        self._speech_until = 0
        self.possible_speech_until = 0
        """See VoiceActivityDetector.possible_speech_until."""

    def push(self, probabilities: Sequence[float]) -> list[VadEvent]:
        """Take the speech probabilities of the next frames of `VAD_FRAME_SAMPLES`."""
        events = []
        for probability in probabilities:
            start, self._position = self._position, self._position + VAD_FRAME_SAMPLES
            if probability >= MIN_SPEECH_PROBABILITY:
                self.possible_speech_until = self._position
            if probability >= (self._stop_threshold if self._is_speech else self._start_threshold):
                self._speech_until = self._position
                if not self._is_speech:
                    self._is_speech = True
                    events.append(VadEvent(True, start, self._position))
            elif self._is_speech and self._position - self._speech_until >= self._silence:
                self._is_speech = False
                events.append(VadEvent(False, self._speech_until, self._position))
        return events
