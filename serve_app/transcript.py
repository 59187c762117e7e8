"""Domain types, all frozen. Inside, time is an integer count of samples at `SAMPLE_RATE`; a word or segment at the edge has
seconds.

`Window` is a piece of audio on its way to a model, `Token` what a model makes of it, `Word` and `Segment` what people read.
"""

import math
from dataclasses import dataclass, replace
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

SAMPLE_RATE = 16_000
"""Samples per second of all audio inside the server, Hz."""

FRAME_SAMPLES = 1280
"""Samples per encoder frame: a hop of 10 ms, subsampled 8 times. Windows start on multiples of it."""

LEAST_CONFIDENCE = 1e-10

Samples = NDArray[np.int16]
"""Mono audio at `SAMPLE_RATE`: int16 [samples]."""


class Lane(IntEnum):
    """Who goes first when work waits."""

    LIVE = 0
    INTERACTIVE = 1
    BULK = 2


Keywords = tuple[str, ...]
"""Phrases that are likely in a recording; the decoder leans towards them."""


@dataclass(frozen=True, slots=True)
class Job:
    """One recording on its way through the server, as the models know it."""

    job_id: str
    keywords: Keywords = ()


@dataclass(frozen=True, slots=True)
class Token:
    """One token of the model's vocabulary as the decoder emitted it."""

    piece: str
    """Text of the token; a leading `▁` begins a word (SentencePiece)."""
    token_id: int
    start_sample: int
    end_sample: int
    confidence: float
    """The model's probability of this token where it was emitted, 0 to 1."""

    @property
    def log_probability(self) -> float:
        """Natural logarithm of the confidence, finite."""
        return math.log(max(self.confidence, LEAST_CONFIDENCE))

    def moved(self, samples: int) -> "Token":
        """The same token `samples` later."""
        return replace(self, start_sample=self.start_sample + samples, end_sample=self.end_sample + samples)


@dataclass(frozen=True, slots=True)
class Window:
    """A stretch of one recording. `samples` starts at `start_sample` of the recording."""

    index: int
    start_sample: int
    samples: Samples
    is_urgent: bool = False
    """Others wait for it: it is a second look at a window that was done."""

    @property
    def end_sample(self) -> int:
        return self.start_sample + len(self.samples)


@dataclass(frozen=True, slots=True)
class Word:
    """A written word with the punctuation attached to it."""

    text: str
    start_s: float
    end_s: float
    confidence: float
    """Smallest confidence of its tokens: a word is as doubtful as its weakest part."""


@dataclass(frozen=True, slots=True)
class Segment:
    """A sentence, or a stretch between pauses."""

    index: int
    text: str
    start_s: float
    end_s: float
    words: tuple[Word, ...]
    tokens: tuple[Token, ...]

    @property
    def mean_log_probability(self) -> float:
        """Mean natural logarithm of the token confidences; 0 for a segment without tokens."""
        return sum(token.log_probability for token in self.tokens) / max(len(self.tokens), 1)


@dataclass(frozen=True, slots=True)
class Transcript:
    """What was said in one recording."""

    segments: tuple[Segment, ...]
    duration_s: float
    model: str
    language: str
    warnings: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        return " ".join(segment.text for segment in self.segments)

    @property
    def words(self) -> tuple[Word, ...]:
        return tuple(word for segment in self.segments for word in segment.words)

    @property
    def tokens(self) -> tuple[Token, ...]:
        return tuple(token for segment in self.segments for token in segment.tokens)
