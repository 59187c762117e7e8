"""The spans of one job, from what passes through its pipeline. Pure."""

import time
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing, contextmanager

from serve_app.events import Done, Event, LiveEvent
from serve_app.observe import tracing
from serve_app.observe.job_meter import LANE_NAMES, EntryPoint
from serve_app.observe.tracing import Attributes, Span
from serve_app.window import SAMPLE_RATE, Lane, Window

MAX_WINDOWS = 1_000
"""Windows of a job that have spans, and steps of a diarizer: hours of a file, some minutes of a stream. The viewers of traces
know no bound."""


class JobTrace:
    """Of a live stream."""

    def __init__(self, span: Span) -> None:
        """`span`: the parent of the others."""
        self._span = span
        self._windows = 0
        self._models_done_ns = 0

    @contextmanager
    def recognising(self, window: Window, lane: Lane) -> Iterator[str]:
        """While the block runs, a model decodes this window. Yields the context for the replica; empty without a span."""
        self._windows += 1
        if self._windows > MAX_WINDOWS:
            yield ""
            return
        attributes: Attributes = {
            "index": window.index,
            "start_s": window.start_sample / SAMPLE_RATE,
            "audio_s": len(window.samples) / SAMPLE_RATE,
            "lane": LANE_NAMES[lane],
        }
        with tracing.ending(self._span.child("retry" if window.is_retry else "window", attributes)) as span:
            yield span.context
        self._models_done_ns = time.time_ns()

    def take(self, event: Event | LiveEvent) -> None:
        """An event of the pipeline."""
        if isinstance(event, Done):
            self._span.note({"audio_s": event.duration_s, "windows": self._windows})


class FileTrace(JobTrace):
    """Of a file."""

    def __init__(self, span: Span) -> None:
        """See JobTrace."""
        super().__init__(span)
        self._steps = 0
        """Of a diarizer."""

    async def decoding(self, windows: AsyncGenerator[Window, None]) -> AsyncGenerator[Window, None]:
        """The same windows, with a span for the time in which a file is decoded and cut, and waits for windows at work."""
        count, until_s = 0, 0.0
        with tracing.ending(self._span.child("decode")) as span:
            try:
                async with aclosing(windows):
                    async for window in windows:
                        count, until_s = count + 1, window.end_sample / SAMPLE_RATE
                        yield window
            finally:
                span.note({"windows": count, "audio_s": until_s})

    @contextmanager
    def diarizing(self, audio_s: float) -> Iterator[None]:
        """While the block runs, a diarizer takes its next step, with so much new audio."""
        self._steps += 1
        if self._steps > MAX_WINDOWS:
            yield
            return
        with tracing.ending(self._span.child("diarize", {"index": self._steps - 1, "audio_s": audio_s})):
            yield

    def take(self, event: Event | LiveEvent) -> None:
        """See JobTrace. The `merge` lasts from the last window of the models to the end of the transcript."""
        super().take(event)
        if isinstance(event, Done) and self._models_done_ns:
            self._span.child("merge", start_ns=self._models_done_ns).end()


def of_file(model: str, entry_point: EntryPoint) -> FileTrace | None:
    """The trace of a file of the current request; None if that has none."""
    request = tracing.current.get()
    if request is None:
        return None
    request.note({"model": model, "entry_point": entry_point})
    return FileTrace(request)


@contextmanager
def of_stream(model: str, entry_point: EntryPoint) -> Iterator[JobTrace | None]:
    """The same for a live stream, of which a request may have several, one after the other."""
    request = tracing.current.get()
    if request is None:
        yield None
        return
    with tracing.ending(request.child("stream", {"model": model, "entry_point": entry_point})) as span:
        yield JobTrace(span)
