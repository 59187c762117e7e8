"""A tracer whose spans tests can read."""

from typing import Any

from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from serve_app.observe.otel_tracer import OtelTracer
from serve_app.request_settings import TracingSettings

TRACE_ID = "0af7651916cd43dd8448eb211c80319c"
CLIENT_SPAN = "b7ad6b7169203331"
TRACEPARENT = f"00-{TRACE_ID}-{CLIENT_SPAN}-01"
"""Of a client that wants its request traced."""


class MemoryTracer(OtelTracer):
    """Keeps the spans that have ended."""

    def __init__(self, **settings: Any) -> None:
        self._exporter = InMemorySpanExporter()
        super().__init__(TracingSettings(**settings), "ingress", "a-replica", self._exporter)

    def spans(self) -> list[ReadableSpan]:
        """In the order of their starts."""
        self.close()
        return sorted(self._exporter.get_finished_spans(), key=lambda span: span.start_time or 0)

    def names(self) -> list[str]:
        """Of the spans."""
        return [span.name for span in self.spans()]

    def only(self, name: str) -> ReadableSpan:
        """The one span of that name."""
        (span,) = [span for span in self.spans() if span.name == name]
        return span


def attributes(span: ReadableSpan) -> dict[str, Any]:
    return dict(span.attributes or {})


def is_within(inner: ReadableSpan, outer: ReadableSpan) -> bool:
    """Whether a span is a child of another one, by its parent and in time."""
    times_ns = [time_ns or 0 for time_ns in (outer.start_time, inner.start_time, inner.end_time, outer.end_time)]
    return inner.parent is not None and inner.parent.span_id == outer.context.span_id and times_ns == sorted(times_ns)
