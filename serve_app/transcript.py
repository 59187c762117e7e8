"""The output of recognition: tokens, words, segments and the transcript of a recording. The classes are frozen.

Tokens and words are named tuples, because there are many: they are made several times as fast as data classes.

The times of tokens are samples at 16 kHz. The times of words and segments, which clients receive, are seconds.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

MIN_CONFIDENCE = 1e-10
"""Lower limit of a confidence before its logarithm is taken, so that the logarithm is finite."""


class Token(NamedTuple):
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
        return math.log(max(self.confidence, MIN_CONFIDENCE))

    def moved(self, samples: int) -> "Token":
        """The same token, `samples` later."""
        piece, token_id, start, end, confidence = self
        return Token(piece, token_id, start + samples, end + samples, confidence)


@dataclass(frozen=True, slots=True, eq=False)
class TokenColumns:
    """The tokens of one window as columns, in which they travel from an engine to the ingress.

    An engine has them as arrays, and for each token an object of its own would cost a replica more than all the rest that it does
    in Python. The pieces travel along, so that they are always those of the vocabulary that the window was decoded with.
    """

    pieces: list[str]
    token_ids: NDArray[np.int32]
    start_samples: NDArray[np.int32]
    end_samples: NDArray[np.int32]
    confidences: NDArray[np.float32]

    @classmethod
    def of(cls, tokens: Sequence[Token]) -> "TokenColumns":
        """Columns that hold these tokens."""
        pieces, ids, starts, ends, confidences = zip(*tokens, strict=True) if tokens else ((),) * 5
        whole = [np.asarray(column, np.int32) for column in (ids, starts, ends)]
        return cls(list(pieces), whole[0], whole[1], whole[2], np.asarray(confidences, np.float32))

    def tokens(self) -> list[Token]:
        """The tokens, one by one."""
        columns = (self.token_ids, self.start_samples, self.end_samples, self.confidences)
        return list(map(Token, self.pieces, *(column.tolist() for column in columns)))


class Word(NamedTuple):
    """A written word with the punctuation attached to it."""

    text: str
    start_s: float
    end_s: float
    confidence: float
    """The lowest confidence of its tokens."""


@dataclass(frozen=True, slots=True)
class Segment:
    """A sentence, or the words between two long pauses."""

    index: int
    text: str
    start_s: float
    end_s: float
    words: tuple[Word, ...]
    tokens: tuple[Token, ...]
    channel: int | None = None
    """The channel of the recording, from 0; None if the channels are mixed."""
    speaker: str | None = None
    """Who says all of it; None if that is not known."""

    @property
    def mean_log_probability(self) -> float:
        """Mean natural logarithm of the token confidences; 0 for a segment without tokens."""
        return sum(token.log_probability for token in self.tokens) / max(len(self.tokens), 1)


@dataclass(frozen=True, slots=True)
class Transcript:
    """The transcript of one recording."""

    segments: tuple[Segment, ...]
    duration_s: float
    model: str
    language: str
    warnings: tuple[str, ...] = ()
    channels: tuple[int, ...] = ()
    """The channels that were transcribed, from 0, also those without words; empty if they are mixed."""

    def of_channel(self, channel: int) -> "Transcript":
        """What was said in one channel."""
        return replace(self, segments=tuple(segment for segment in self.segments if segment.channel == channel))

    @property
    def speakers(self) -> tuple[str, ...]:
        """Those who speak, in the order in which they begin to; empty if it is not known who does."""
        return tuple(dict.fromkeys(segment.speaker for segment in self.segments if segment.speaker is not None))

    @property
    def text(self) -> str:
        return " ".join(segment.text for segment in self.segments)

    @property
    def words(self) -> tuple[Word, ...]:
        return tuple(word for segment in self.segments for word in segment.words)

    @property
    def tokens(self) -> tuple[Token, ...]:
        return tuple(token for segment in self.segments for token in segment.tokens)
