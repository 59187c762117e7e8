"""What a worker saves of a job, as bytes: parts of a checkpoint, and the result. Compressed JSON. Pure."""

import json
import zlib
from dataclasses import dataclass
from typing import Any, NamedTuple

from serve_app.transcript import Segment, Token, Transcript, Word
from serve_app.window import Window

_LEVEL = 1
"""Of the compression: fast, and a third of the size."""


class WindowKey(NamedTuple):
    """What identifies a window of a recording: where it starts and its length in samples, whether it decodes a gap again, and its
    channel."""

    start_sample: int
    samples: int
    is_retry: bool
    channel: int = 0

    @classmethod
    def of(cls, window: Window) -> "WindowKey":
        return cls(window.start_sample, len(window.samples), window.is_retry, window.channel)


class FinalSegment(NamedTuple):
    """A segment as readers of events get it. Times in seconds."""

    start_s: float
    end_s: float
    text: str
    channel: int | None = None

    @classmethod
    def of(cls, segment: Segment) -> "FinalSegment":
        return cls(segment.start_s, segment.end_s, segment.text, segment.channel)


@dataclass(frozen=True, slots=True)
class Part:
    """What has been done since the part before."""

    windows: tuple[tuple[WindowKey, tuple[Token, ...]], ...]
    """Windows that models have decoded, in the order in which they were done, with their tokens from the window's start."""
    segments: tuple[FinalSegment, ...]
    """The segments that have become final, in the order of the recording."""


def pack_part(part: Part) -> bytes:
    return _pack([part.windows, part.segments])


def unpack_part(data: bytes) -> Part:
    windows, segments = _unpack(data)
    return Part(
        tuple((WindowKey(*key), tuple(Token(*token) for token in tokens)) for key, tokens in windows),
        tuple(FinalSegment(*segment) for segment in segments),
    )


def pack_transcript(transcript: Transcript) -> bytes:
    segments = [[each.text, each.start_s, each.end_s, each.words, each.tokens, each.channel] for each in transcript.segments]
    of_all = [transcript.duration_s, transcript.model, transcript.language, transcript.warnings, transcript.channels]
    return _pack([segments, *of_all])


def unpack_transcript(data: bytes) -> Transcript:
    """The same transcript. Those of versions that knew no channels have none."""
    segments, duration_s, model, language, warnings, *channels = _unpack(data)
    return Transcript(
        tuple(_segment(index, *segment) for index, segment in enumerate(segments)),
        duration_s,
        model,
        language,
        tuple(warnings),
        *map(tuple, channels),
    )


def _segment(
    index: int, text: str, start_s: float, end_s: float, words: list[Any], tokens: list[Any], channel: int | None = None
) -> Segment:
    said = tuple(Word(*word) for word in words), tuple(Token(*token) for token in tokens)
    return Segment(index, text, start_s, end_s, *said, channel)


def _pack(value: Any) -> bytes:
    return zlib.compress(json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode(), _LEVEL)


def _unpack(data: bytes) -> Any:
    return json.loads(zlib.decompress(data))
