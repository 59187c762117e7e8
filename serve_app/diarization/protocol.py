"""The interface of every diarizer: int16 chunks in, probabilities of speakers out. Pure."""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from serve_app.window import Samples

Probabilities = NDArray[np.float16]
"""Of each speaker in each frame of 80 ms: float16 [frames, speakers]. Several people may speak at once, so they do not add up to
1."""


@dataclass(frozen=True, slots=True)
class DiarizerShape:
    """How a recording is cut for a diarizer: into chunks without overlap, each sent with the audio around it."""

    chunk_samples: int
    """A multiple of FRAME_SAMPLES; the last chunk of a recording may be shorter."""
    left_samples: int
    """Audio before the chunk, less at the start of the recording."""
    right_samples: int
    """Audio after it, less at the end of the recording."""
    max_speakers: int


@dataclass(frozen=True, slots=True)
class DiarizerInfo:
    """How a diarizer runs, for status reports."""

    device: str
    precision: str
    fast_paths: tuple[str, ...] = ()
    fast_paths_left_out: tuple[str, ...] = ()
    """Each with its reason."""


class DiarizerEngine(Protocol):
    """Finds who speaks. Not thread-safe."""

    @property
    def shape(self) -> DiarizerShape: ...

    @property
    def info(self) -> DiarizerInfo: ...

    def step(self, samples: Samples, left_samples: int, right_samples: int, state: bytes | None) -> tuple[Probabilities, bytes]:
        """The probabilities of a chunk, [ceil(chunk / FRAME_SAMPLES), max_speakers], and the state for the next chunk.

        `samples`: left context, chunk and right context. `state`: what the step before returned, below 1 MB; None: the first one.
        Speakers have the columns in the order in which they arrive. Pure: equal inputs give equal outputs on every replica with
        the same device and number format, so a step may be repeated anywhere. Raises DiarizerChanged for the state
        of another model or shape, and EngineBroken if the device is unusable for this process.
        """
        ...
