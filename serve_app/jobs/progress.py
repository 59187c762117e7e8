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
        self._saved_segments = sum(len(part.segments) for part in parts)
        self._saved_parts = len(parts)
        self._new_windows: list[tuple[WindowKey, tuple[Token, ...]]] = []
        self._new_segments: list[FinalSegment] = []
        self._unsaved: tuple[bytes, ...] = ()
        self.done_s = done_s
        """Seconds of the recording that are transcribed."""
        self.events = 0
        """Those of the pipeline in this attempt."""

    def find(self, window: Window) -> list[Token] | None:
        """The tokens of a window that was decoded before."""
        tokens = self._windows.get(WindowKey.of(window))
        return None if tokens is None else list(tokens)

    def add(self, window: Window, tokens: Sequence[Token]) -> None:
        """A window was decoded."""
        self._new_windows.append((WindowKey.of(window), tuple(tokens)))

    def take(self, event: Event) -> None:
        """An event of the pipeline."""
        self.events += 1
        if isinstance(event, Progress):
            self.done_s = max(self.done_s, event.done_s)
        elif isinstance(event, SegmentFinal) and event.segment.index >= self._saved_segments + len(self._new_segments):
            self._new_segments.append(FinalSegment.of(event.segment))

    def unsaved(self) -> tuple[int, tuple[bytes, ...]]:
        """The number of the first part that is to be saved, and the parts; the same ones until `saved` is called."""
        if not self._unsaved and (self._new_windows or self._new_segments):
            self._unsaved = (pack_part(Part(tuple(self._new_windows), tuple(self._new_segments))),)
            self._saved_segments += len(self._new_segments)
            self._new_windows, self._new_segments = [], []
        return self._saved_parts, self._unsaved

    def saved(self) -> None:
        """The parts that `unsaved` returned are in the store."""
        self._saved_parts += len(self._unsaved)
        self._unsaved = ()
