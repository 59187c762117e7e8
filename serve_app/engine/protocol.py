"""The interface of every engine: int16 windows in, tokens out."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from serve_app.transcript import Token
from serve_app.window import Keywords, Samples


@dataclass(frozen=True, slots=True)
class FastPaths:
    """Which fast paths an engine uses."""

    used: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()
    """Those that were wanted and are not used, with the reason: `name: reason`."""


@dataclass(frozen=True, slots=True)
class EngineInfo:
    """Device, number format, decoder and fast paths of an engine, for status reports."""

    device: str
    precision: str
    decoder: str
    """How the decoding loop runs: `cuda graphs` (full graph), `cuda graphs without loops`, `eager`, or `simulated`."""
    fast_paths: FastPaths = FastPaths()


class Engine(Protocol):
    """Recognises windows of speech. Not thread-safe."""

    @property
    def info(self) -> EngineInfo: ...

    def transcribe(self, windows: Sequence[Samples], keywords: Sequence[Keywords] = ()) -> list[list[Token]]:
        """Recognise a batch of windows, each int16 [samples] at 16 kHz. `keywords`: phrases to boost, one list per window, or
        empty for none.

        Returns one list of tokens per window, in order, with times in samples from the start of the window. Raises
        EngineOutOfMemory if even a single window does not fit into memory, and EngineBroken if the device is unusable for this
        process.
        """
        ...
