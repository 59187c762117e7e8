"""The interface of every engine: int16 windows in, tokens out."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from serve_app.engine.batch_cost import BatchCost
from serve_app.transcript import Token, TokenColumns
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
    """How a transducer's decoding loop runs: `cuda graphs` (full graph), `cuda graphs without loops` or `eager`. Without a loop:
    `ctc` or `simulated`."""
    keywords: bool
    """Whether phrases can be boosted."""
    fast_paths: FastPaths = FastPaths()


class Engine(Protocol):
    """Recognises windows of speech. Not thread-safe, but one thread may prepare a batch while another one recognises one."""

    @property
    def info(self) -> EngineInfo: ...

    def prepare(self, windows: Sequence[Samples], keywords: Sequence[Keywords] = ()) -> Any:
        """First stage of a batch, for `recognise`. On a GPU: the windows are copied to the device and features computed there.

        `windows`: each int16 [samples] at 16 kHz. `keywords`: phrases to boost, one list per window, or empty for none; only if
        `info.keywords`. Raises EngineBroken if the device is unusable for this process.
        """
        ...

    def recognise(self, batch: Any) -> list[TokenColumns]:
        """The tokens of each window of a prepared batch, in order, with times in samples from the start of the window.

        Raises EngineOutOfMemory if even a single window does not fit into memory, and EngineBroken if the device is unusable for
        this process.
        """
        ...

    def transcribe(self, windows: Sequence[Samples], keywords: Sequence[Keywords] = ()) -> list[list[Token]]:
        """Both stages, for callers that have one batch."""
        ...

    def measure_cost(self, window_s: float, max_windows: int) -> BatchCost:
        """What a batch costs on this device, found with batches of at most `max_windows` windows of `window_s` seconds.

        Takes about a second, or as long as two windows. Raises EngineOutOfMemory or EngineBroken.
        """
        ...

    def fitting_audio_s(self) -> float:
        """Padded audio of a batch that fits into the device's memory, seconds, by `measure_cost`; infinite where there is no
        bound."""
        ...
