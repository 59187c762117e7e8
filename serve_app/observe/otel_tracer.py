"""Records traces with OpenTelemetry, and sends them by OTLP over HTTP. Imported only where tracing is configured.

The SDK's own variables hold too: OTEL_SERVICE_NAME, OTEL_RESOURCE_ATTRIBUTES, OTEL_EXPORTER_OTLP_HEADERS, OTEL_BSP_* and so on.
"""

import logging
import os
import threading
from collections.abc import Mapping

from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
from opentelemetry.trace import Span, SpanKind, StatusCode, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from serve_app import __version__
from serve_app.observe import tracing
from serve_app.observe.tracing import NO_ATTRIBUTES, Attributes
from serve_app.request_settings import TracingSettings

SERVICE = "parakeet"
"""Name of the server in traces, unless OTEL_SERVICE_NAME is set."""

PATH = "/v1/traces"
"""Where a collector takes spans by OTLP over HTTP."""

CLOSE_S = 1.0
"""Time to send the last spans, seconds."""

_w3c = TraceContextTextMapPropagator()


class OtelTracer:
    """See Tracer. It belongs to one process, and leaves OpenTelemetry's global tracer alone."""

    def __init__(self, settings: TracingSettings, deployment: str, replica: str, exporter: SpanExporter | None = None) -> None:
        """`exporter`: in place of one for the endpoint of the settings."""
        if exporter is None:
            headers = {name: value.get_secret_value() for name, value in settings.headers.items()}
            exporter = OTLPSpanExporter(settings.endpoint.rstrip("/") + PATH, headers=headers or None)
            _log_to(logging.getLogger("ray.serve"))
        resource = {
            "service.name": os.environ.get("OTEL_SERVICE_NAME", SERVICE),
            "service.version": __version__,
            "service.instance.id": replica,
            "deployment": deployment,
        }
        sampler = ParentBased(TraceIdRatioBased(settings.sample_ratio))
        self._provider = TracerProvider(sampler, Resource.create(resource), shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("serve_app", __version__)

    def request(self, name: str, headers: Mapping[str, str], attributes: Attributes) -> "tracing.Span | None":
        """See Tracer."""
        span = self._tracer.start_span(name, _w3c.extract(headers), SpanKind.SERVER, attributes)
        return OtelSpan(self, span) if span.is_recording() else None

    def begin(self, parent: Context, name: str, attributes: Attributes, start_ns: int | None) -> Span:
        """Begin a span of the SDK below another one."""
        return self._tracer.start_span(name, parent, SpanKind.INTERNAL, attributes, start_time=start_ns)

    def record(self, parent: str, name: str, start_ns: int, end_ns: int, attributes: Attributes, error: str = "") -> None:
        """See Tracer."""
        _end(self.begin(_w3c.extract({"traceparent": parent}), name, attributes, start_ns), error, end_ns)

    def close(self) -> None:
        """See Tracer."""
        # In a thread, since where no collector answers it takes longer than any timeout that it has.
        flushing = threading.Thread(target=self._provider.force_flush, daemon=True)
        flushing.start()
        flushing.join(CLOSE_S)


class OtelSpan:
    """See Span."""

    def __init__(self, tracer: OtelTracer, span: Span) -> None:
        self._tracer = tracer
        self._span = span
        self._as_parent = set_span_in_context(span, Context())

    @property
    def context(self) -> str:
        """See Span."""
        carrier: dict[str, str] = {}
        _w3c.inject(carrier, self._as_parent)
        return carrier["traceparent"]

    def child(self, name: str, attributes: Attributes = NO_ATTRIBUTES, *, start_ns: int | None = None) -> "OtelSpan":
        """See Span."""
        return OtelSpan(self._tracer, self._tracer.begin(self._as_parent, name, attributes, start_ns))

    def note(self, attributes: Attributes) -> None:
        """See Span."""
        self._span.set_attributes(attributes)

    def end(self, *, error: str = "", end_ns: int | None = None) -> None:
        """See Span."""
        _end(self._span, error, end_ns)


def _end(span: Span, error: str, end_ns: int | None) -> None:
    if error:
        span.set_status(StatusCode.ERROR, error)
    span.end(end_ns)


def _log_to(log: logging.Logger) -> None:
    """Have the SDK's own warnings in that log: one line for each export that fails, and none for its attempts."""
    of_sdk = logging.getLogger("opentelemetry")
    of_sdk.handlers, of_sdk.propagate = list(log.handlers), not log.handlers
    logging.getLogger("opentelemetry.exporter").setLevel(logging.ERROR)
