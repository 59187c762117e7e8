"""Who speaks when: probabilities of speech in, the beginnings and ends of utterances out. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from serve_app.transcript import SAMPLE_RATE, Samples

FRAME = 512
"""Samples that one probability is of."""

HYSTERESIS = 0.15
"""Speech that has begun may be so much less probable, as Silero has it."""


@dataclass(frozen=True, slots=True)
class Turn:
    """Somebody begins to speak, or has stopped."""

    is_speech: bool
    sample: int
    """Where in the stream."""
    known_at: int
    """How much of the stream it took to tell: the end of an utterance is known after its silence."""


@dataclass(frozen=True, slots=True)
class Endpointing:
    """What counts as speech, and when an utterance has ended."""

    silence_s: float
    """Without speech for so long; infinite has none end by itself."""
    threshold: float = 0.5
    """Probability at which speech begins; Silero's own."""


class Voice(Protocol):
    """Follows one stream."""

    async def push(self, block: Samples) -> list[Turn]:
        """Take the next int16 [samples]; give the turns that they bring."""
        ...


class Endpointer:
    """Turns of one stream."""

    def __init__(self, endpointing: Endpointing) -> None:
        self._silence = endpointing.silence_s * SAMPLE_RATE
        self._begins_at = endpointing.threshold
        self._goes_on_at = endpointing.threshold - HYSTERESIS
        self._is_speech = False
        self._position = 0
        self._spoken_until = 0

    def push(self, probabilities: Sequence[float]) -> list[Turn]:
        """Take the probabilities of the next frames."""
        turns = []
        for probability in probabilities:
            start, self._position = self._position, self._position + FRAME
            if probability >= (self._goes_on_at if self._is_speech else self._begins_at):
                self._spoken_until = self._position
                if not self._is_speech:
                    self._is_speech = True
                    turns.append(Turn(True, start, self._position))
            elif self._is_speech and self._position - self._spoken_until >= self._silence:
                self._is_speech = False
                turns.append(Turn(False, self._spoken_until, self._position))
        return turns
