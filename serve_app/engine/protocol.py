"""What every engine is: int16 windows in, tokens out."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from serve_app.transcript import Token
from serve_app.window import Keywords, Samples


@dataclass(frozen=True, slots=True)
class EngineInfo:
    """What an engine runs on."""

    device: str
    precision: str
    decoder: str
    """How the decoding loop runs: `cuda graphs` (full graph), `cuda graphs without loops`, `eager`, or `simulated`."""


class Engine(Protocol):
    """Anything that turns windows into tokens."""

    @property
    def info(self) -> EngineInfo: ...

    def transcribe(self, windows: Sequence[Samples], keywords: Sequence[Keywords] = ()) -> list[list[Token]]:
        """Recognise a batch of windows, each int16 [samples] at 16 kHz; `keywords` has phrases to expect in each, or is empty.

        Returns one list of tokens per window, in order, with times in samples from the window's start. Raises EngineOutOfMemory
        when even a single window does not fit, EngineBroken when the device is lost to this process.
        """
        ...
