"""How far the work on a job is: what is saved of it, and what is still to be saved. Pure."""

from collections.abc import Sequence

from serve_app.events import Event, Progress, SegmentFinal
from serve_app.jobs.model import Checkpoint
from serve_app.jobs.parts import FinalSegment, Part, WindowKey, pack_part, unpack_part
from serve_app.transcript import Token
from serve_app.window import Window


class JobProgress:
    """Remembers the tokens of every window that was decoded, so that none is decoded twice.

    A job that goes on from a checkpoint runs the whole pipeline again: the file is decoded and cut from its start, which is fast,
    but its first windows come from here. So the transcript is the same as without an interruption.
    """

    def __init__(self, checkpoint: Checkpoint, done_s: float) -> None:
        """`done_s`: seconds of the recording that were transcribed at the checkpoint."""
        parts = [unpack_part(part) for part in checkpoint.parts]
        self._windows = {key: tokens for part in parts for key, tokens in part.windows}
        self._segments = [segment for part in parts for segment in part.segments]
        self._is_replay = bool(self._segments)
        """Segments of earlier attempts are still to come again."""
        self._saved_segments = len(self._segments)
        self._saved_parts = len(parts)
        self._new_windows: list[tuple[WindowKey, tuple[Token, ...]]] = []
        self._unsaved: tuple[bytes, ...] = ()
        self.done_s = done_s
        """Seconds of the recording that are transcribed."""
        self.events = 0
        """Those of the pipeline in this attempt."""
        self.is_void = False
        """What is saved does not hold any more, and is to be discarded: then everything is unsaved."""

    def find(self, window: Window) -> list[Token] | None:
        """The tokens of a window that was decoded before."""
        tokens = self._windows.get(WindowKey.of(window))
        return None if tokens is None else list(tokens)

    def add(self, window: Window, tokens: Sequence[Token]) -> None:
        """A window was decoded."""
        key = WindowKey.of(window)
        self._new_windows.append((key, tuple(tokens)))
        if self._is_replay:
            self._windows[key] = tuple(tokens)

    def take(self, event: Event) -> None:
        """An event of the pipeline."""
        self.events += 1
        if isinstance(event, Progress):
            self.done_s = max(self.done_s, event.done_s)
        elif isinstance(event, SegmentFinal):
            self._take(FinalSegment.of(event.segment), event.segment.index)

    def _take(self, segment: FinalSegment, index: int) -> None:
        if index < len(self._segments) and self._segments[index] != segment:
            # A diarizer that was away in one of the attempts, or failed in it, divides the same words otherwise.
            del self._segments[index:]
            self._new_windows = list(self._windows.items())
            self._saved_segments, self._saved_parts, self._unsaved = 0, 0, ()
            self.is_void = True
        if index == len(self._segments):
            self._segments.append(segment)
            self._is_replay = False

    def unsaved(self) -> tuple[int, tuple[bytes, ...]]:
        """The number of the first part that is to be saved, and the parts; the same ones until `saved` is called."""
        new_segments = self._segments[self._saved_segments :]
        if not self._unsaved and (self._new_windows or new_segments):
            self._unsaved = (pack_part(Part(tuple(self._new_windows), tuple(new_segments))),)
            self._saved_segments = len(self._segments)
            self._new_windows = []
        return self._saved_parts, self._unsaved

    def discarded(self) -> None:
        """What was saved is no longer in the store."""
        self.is_void = False

    def saved(self) -> None:
        """The parts that `unsaved` returned are in the store."""
        self._saved_parts += len(self._unsaved)
        self._unsaved = ()
