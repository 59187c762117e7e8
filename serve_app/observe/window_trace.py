"""The spans of one window in a replica. Pure."""

import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from types import TracebackType

from serve_app.observe import tracing
from serve_app.observe.tracing import Attributes, Tracer
from serve_app.window import SAMPLE_RATE, Job, Samples

UNTRACED = nullcontext()


class WindowTrace:
    """While its block runs, the window waits (`queue`), then a batch with it is decoded (`step`).

    If a batch fails, its windows are decoded one by one: the step lasts until this window is done.
    """

    def __init__(self, tracer: Tracer, parent: str) -> None:
        """`parent`: the context of the window's span."""
        self._tracer = tracer
        self._parent = parent
        self._queued_ns = time.time_ns()
        self._began_ns = 0
        self._batch: Attributes = {}

    def begin(self, began_ns: int, batch: Attributes) -> None:
        """A batch with the window begins."""
        self._began_ns = self._began_ns or began_ns
        self._batch = batch

    def __enter__(self) -> "WindowTrace":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        now_ns, failure = time.time_ns(), tracing.describe(error)
        began_ns = self._began_ns or now_ns
        self._tracer.record(self._parent, "queue", self._queued_ns, began_ns, {}, "" if self._began_ns else failure)
        if self._began_ns:
            self._tracer.record(self._parent, "step", began_ns, now_ns, self._batch, failure)


def traced(tracer: Tracer | None, job: Job) -> AbstractContextManager[WindowTrace | None]:
    """The trace of a window of a job, if there is one."""
    return UNTRACED if tracer is None or not job.trace else WindowTrace(tracer, job.trace)


def begin_batch(traces: Sequence[WindowTrace | None], windows: Sequence[Samples]) -> None:
    """The batch of these windows begins."""
    if not any(traces):
        return
    lengths = [len(window) for window in windows]
    batch = {
        "batch.windows": len(windows),
        "batch.audio_s": sum(lengths) / SAMPLE_RATE,
        "batch.padded_audio_s": max(lengths) * len(lengths) / SAMPLE_RATE,
    }
    began_ns = time.time_ns()
    for trace in traces:
        if trace is not None:
            trace.begin(began_ns, batch)
