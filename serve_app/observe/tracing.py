"""How the server traces requests, whatever collects the traces. Pure.

A span that nobody collects is None. So where tracing is off, or a request is not sampled, it costs a comparison with None.
"""

import asyncio
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Protocol

from serve_app.errors import SpeechError

Attributes = Mapping[str, str | int | float | bool]
NO_ATTRIBUTES: Attributes = {}


class Span(Protocol):
    """A stage of a request. Times are nanoseconds since 1970, by default now."""

    @property
    def context(self) -> str:
        """The span as W3C's `traceparent`, by which another process adds children to it."""
        ...

    def child(self, name: str, attributes: Attributes = NO_ATTRIBUTES, *, start_ns: int | None = None) -> "Span":
        """Begin a stage of this one."""
        ...

    def note(self, attributes: Attributes) -> None:
        """Add attributes, or replace their values."""
        ...

    def end(self, *, error: str = "", end_ns: int | None = None) -> None:
        """End the stage; with an `error`, as a failed one. A span that is not ended is never collected."""
        ...


class Tracer(Protocol):
    """Makes spans, and sends those that have ended to a collector, in a thread of its own."""

    def request(self, name: str, headers: Mapping[str, str], attributes: Attributes) -> Span | None:
        """Begin the span of a request, which continues the trace of its `traceparent`; None if it is not sampled."""
        ...

    def record(self, parent: str, name: str, start_ns: int, end_ns: int, attributes: Attributes, error: str = "") -> None:
        """Record a span that has ended. `parent`: the context of a span of any process."""
        ...

    def close(self) -> None:
        """Send what is left, for a second at most."""
        ...


current: ContextVar[Span | None] = ContextVar("current", default=None)
"""The span of the request that this task works for."""


@contextmanager
def span(name: str) -> Iterator[Span | None]:
    """While the block runs, a stage of the current request."""
    request = current.get()
    if request is None:
        yield None
        return
    with ending(request.child(name)) as child:
        yield child


@contextmanager
def ending(span: Span) -> Iterator[Span]:
    """End the span with the block, as failed if that raises."""
    try:
        yield span
    except BaseException as error:
        end(span, error)
        raise
    span.end()


def end(span: Span, error: BaseException | None) -> None:
    """End the span of what has raised this; work that was given up has not failed."""
    if isinstance(error, asyncio.CancelledError | GeneratorExit):
        span.note({"cancelled": True})
    span.end(error=describe(error))


def describe(error: BaseException | None) -> str:
    """What a span says of an exception; nothing of the end of a task that was given up."""
    if error is None or isinstance(error, asyncio.CancelledError | GeneratorExit):
        return ""
    return f"{type(error).__name__}: {error.message}" if isinstance(error, SpeechError) else repr(error)
