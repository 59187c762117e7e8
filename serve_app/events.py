"""What the pipeline yields while a recording or a live stream is transcribed. All frozen; times in seconds of its audio.

`channel` is the channel of a live stream, from 0; None if its channels are mixed.
"""

from dataclasses import dataclass

from serve_app.transcript import Segment, Word


@dataclass(frozen=True, slots=True)
class Progress:
    """Of a file: windows done, windows planned so far, and where in the audio the last window done ends."""

    windows_done: int
    windows_planned: int
    done_s: float


@dataclass(frozen=True, slots=True)
class SegmentFinal:
    """A segment that does not change any more."""

    segment: Segment


@dataclass(frozen=True, slots=True)
class Done:
    """The end: every segment, and the length of the audio."""

    segments: tuple[Segment, ...]
    duration_s: float
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class SpeechStarted:
    """Live: the VAD detected the start of speech."""

    at_s: float
    channel: int | None = None


@dataclass(frozen=True, slots=True)
class SpeechStopped:
    """Live: the VAD detected the end of speech at `at_s`, once the endpointing silence had followed it."""

    at_s: float
    channel: int | None = None


@dataclass(frozen=True, slots=True)
class Hypothesis:
    """Live: the words after the last final segment. Those of `final` do not change any more, those of `partial` may."""

    final: tuple[Word, ...]
    partial: tuple[Word, ...]
    channel: int | None = None


@dataclass(frozen=True, slots=True)
class UtteranceFinal:
    """Live: an utterance has ended, and all of its words are final."""

    at_s: float
    channel: int | None = None


Event = Progress | SegmentFinal | Done
LiveEvent = SpeechStarted | SpeechStopped | Hypothesis | SegmentFinal | UtteranceFinal | Done
