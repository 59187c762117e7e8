"""The input of a model: a window of 16 kHz audio, its lane in the queue, and its job. The classes are frozen.

Inside the server, time is an integer count of samples at `SAMPLE_RATE`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

SAMPLE_RATE = 16_000
"""Samples per second of all audio inside the server, Hz."""

FRAME_SAMPLES = 1280
"""Samples per encoder frame: a hop of 10 ms, subsampled 8 times. Windows start on multiples of it."""

MAX_WINDOW_S = 600.0
"""Maximum length of a window, seconds."""

Samples = NDArray[np.int16]
"""Mono audio at `SAMPLE_RATE`: int16 [samples]."""

NewSamples: TypeAlias = Callable[[int], Samples]
"""Makes an array for so many samples."""

Levels = NDArray[np.float32]
"""RMS level of each whole encoder frame, as a fraction of full scale: float32 [frames]."""


def new_samples(length: int) -> Samples:
    """An array for so many samples."""
    return np.empty(length, np.int16)


class Lane(IntEnum):
    """Priority of queued windows; lower is more urgent."""

    LIVE = 0
    INTERACTIVE = 1
    BULK = 2


Keywords = tuple[str, ...]
"""Phrases of a recording that the decoder prefers (phrase boosting)."""


@dataclass(frozen=True, slots=True)
class Job:
    """One recording or live stream."""

    job_id: str
    keywords: Keywords = ()
    trace: str = ""
    """The span of one window of it, as W3C's `traceparent`; empty where there is none."""


@dataclass(frozen=True, slots=True)
class Window:
    """A span of one recording; `samples` starts at `start_sample` of the recording."""

    index: int
    start_sample: int
    samples: Samples
    is_retry: bool = False
    """True if the window re-decodes a gap of another window. The merge waits for it, so it is scheduled as interactive."""
    levels: Levels | None = None
    """The levels of `samples`, where they were measured already."""
    channel: int = 0
    """The channel of the recording, from 0; 0 too where channels are mixed."""

    @property
    def end_sample(self) -> int:
        return self.start_sample + len(self.samples)
