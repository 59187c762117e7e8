"""What a worker saves of a job, as bytes: parts of a checkpoint, and the result. Compressed JSON. Pure.

Each has two sections: the segments as readers of events get them, and everything else. So readers do not unpack the tokens, of
which there are a hundred times as many. A section has a line for each item: a single large document would be parsed in one step,
during which no other thread runs.
"""

import json
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

from serve_app.transcript import Segment, Token, Transcript, Word
from serve_app.window import Window

_LEVEL = 1
"""Of the compression: fast, and a third of the size."""

_SIZE_BYTES = 8


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
    speaker: str | None = None

    @classmethod
    def of(cls, segment: Segment) -> "FinalSegment":
        return cls(segment.start_s, segment.end_s, segment.text, segment.channel, segment.speaker)


@dataclass(frozen=True, slots=True)
class Part:
    """What has been done since the part before."""

    windows: tuple[tuple[WindowKey, tuple[Token, ...]], ...]
    """Windows that models have decoded, in the order in which they were done, with their tokens from the window's start."""
    segments: tuple[FinalSegment, ...]
    """The segments that have become final, in the order of the recording."""


def pack_part(part: Part) -> bytes:
    return _joined(_pack(part.segments), _pack(part.windows))


def unpack_part(data: bytes) -> Part:
    _, windows = _sections(data)
    return Part(
        tuple((WindowKey(*key), tuple(Token(*token) for token in tokens)) for key, tokens in _unpack(windows)),
        tuple(unpack_segments(data)),
    )


def pack_transcript(transcript: Transcript) -> bytes:
    head = (transcript.duration_s, transcript.model, transcript.language, transcript.warnings, transcript.channels)
    details = ((segment.words, segment.tokens) for segment in transcript.segments)
    return _joined(_pack(map(FinalSegment.of, transcript.segments)), _pack([head, *details]))


def unpack_transcript(data: bytes) -> Transcript:
    _, rest = _sections(data)
    items = _unpack(rest)
    duration_s, model, language, warnings, channels = next(items)
    segments = (
        Segment(
            index,
            final.text,
            final.start_s,
            final.end_s,
            tuple(Word(*word) for word in words),
            tuple(Token(*token) for token in tokens),
            final.channel,
            final.speaker,
        )
        for index, (final, (words, tokens)) in enumerate(zip(unpack_segments(data), items, strict=True))
    )
    return Transcript(tuple(segments), duration_s, model, language, tuple(warnings), tuple(channels))


def unpack_segments(data: bytes) -> list[FinalSegment]:
    """The segments of a part, or of a result."""
    segments, _ = _sections(data)
    return [FinalSegment(*segment) for segment in _unpack(segments)]


def _joined(segments: bytes, rest: bytes) -> bytes:
    return len(segments).to_bytes(_SIZE_BYTES, "big") + segments + rest


def _sections(data: bytes) -> tuple[bytes, bytes]:
    end = _SIZE_BYTES + int.from_bytes(data[:_SIZE_BYTES], "big")
    return data[_SIZE_BYTES:end], data[end:]


def _pack(items: Iterable[Any]) -> bytes:
    lines = (json.dumps(item, ensure_ascii=False, separators=(",", ":")) for item in items)
    return zlib.compress("\n".join(lines).encode(), _LEVEL)


def _unpack(section: bytes) -> Iterator[Any]:
    # JSON has no line breaks of its own here, and splitlines() would split at others.
    for line in zlib.decompress(section).split(b"\n"):
        if line:
            yield json.loads(line)
