"""Who speaks when: probabilities of speech in, the beginnings and ends of utterances out. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from serve_app.transcript import SAMPLE_RATE, Samples

FRAME = 512
"""Samples that one probability is of."""

BEGINS_AT = 0.5
GOES_ON_AT = 0.35
"""Silero's own thresholds: speech that has begun may be less certain."""


@dataclass(frozen=True, slots=True)
class Turn:
    """Somebody begins to speak, or has stopped."""

    is_speech: bool
    sample: int
    """Where in the stream."""


class Voice(Protocol):
    """Follows one stream."""

    async def push(self, block: Samples) -> list[Turn]:
        """Take the next int16 [samples]; give the turns that they bring."""
        ...


class Endpointer:
    """Turns of one stream; an utterance has ended when there was no speech for `silence_s`."""

    def __init__(self, silence_s: float) -> None:
        self._silence = silence_s * SAMPLE_RATE
        self._is_speech = False
        self._position = 0
        self._spoken_until = 0

    def push(self, probabilities: Sequence[float]) -> list[Turn]:
        """Take the probabilities of the next frames."""
        turns = []
        for probability in probabilities:
            start, self._position = self._position, self._position + FRAME
            if probability >= (GOES_ON_AT if self._is_speech else BEGINS_AT):
                self._spoken_until = self._position
                if not self._is_speech:
                    self._is_speech = True
                    turns.append(Turn(True, start))
            elif self._is_speech and self._position - self._spoken_until >= self._silence:
                self._is_speech = False
                turns.append(Turn(False, self._spoken_until))
        return turns
